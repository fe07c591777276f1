"""Tables of registered workers and of all their boots."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from lem_server.database.metadata import metadata

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("boot_id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("backend", sa.Text, nullable=False),
    sa.Column("devices", JSONB, nullable=False),
    sa.Column("versions", JSONB, nullable=False),
    sa.Column("labels", JSONB, nullable=False),
    sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("signed_off_at", sa.DateTime(timezone=True)),
    sa.Column("asked_at", sa.DateTime(timezone=True)),
    sa.Column("temperatures_c", JSONB, nullable=False, server_default=sa.text("'{}'")),
)

# Every boot that a worker ever had: a superseded one must not register again.
worker_boots = sa.Table(
    "worker_boots",
    metadata,
    sa.Column("worker_id", sa.Uuid, sa.ForeignKey("workers.id"), primary_key=True),
    sa.Column("boot_id", sa.Uuid, primary_key=True),
    sa.Column("registered_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)
