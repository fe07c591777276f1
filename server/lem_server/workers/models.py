"""Tables of registered workers and of all their boots."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, DateTime, ForeignKey, Table, Text, Uuid, func, text
from sqlalchemy.dialects.postgresql import JSONB

from lem_server.database.metadata import metadata

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("boot_id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("backend", Text, nullable=False),
    Column("devices", JSONB, nullable=False),
    Column("versions", JSONB, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("draining", Boolean, nullable=False, server_default=text("false")),
    Column("registered_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("last_seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("signed_off_at", DateTime(timezone=True)),
    Column("asked_at", DateTime(timezone=True)),
    Column("temperatures_c", JSONB, nullable=False, server_default=text("'{}'")),
)

# Every boot that a worker ever had: a superseded one must not register again.
worker_boots = Table(
    "worker_boots",
    metadata,
    Column("worker_id", Uuid, ForeignKey("workers.id"), primary_key=True),
    Column("boot_id", Uuid, primary_key=True),
    Column("registered_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
