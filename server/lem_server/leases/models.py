"""Tables of the leases that workers hold on runs and devices: narrow, because every beat writes to them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from lem_server.database.metadata import metadata

leases = Table(
    "leases",
    metadata,
    Column("attempt_id", Uuid, primary_key=True),
    Column("run_id", Uuid, nullable=False),
    Column("worker_id", Uuid, nullable=False),
    Column("boot_id", Uuid, nullable=False),
    Column("until", DateTime(timezone=True), nullable=False),
    Column("beat_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("cancel", Boolean, nullable=False, server_default=text("false")),
    Column("progress", JSONB),
    Column("suspect_since", DateTime(timezone=True)),
    Column("pause", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("run_id", name="uq_leases_run_id"),
    postgresql_with={"fillfactor": 50},
)

device_leases = Table(
    "device_leases",
    metadata,
    Column("device_uuid", Text, primary_key=True),
    Column("attempt_id", Uuid, ForeignKey("leases.attempt_id", ondelete="CASCADE"), nullable=False),
    Index("ix_device_leases_attempt_id", "attempt_id"),
)

device_uses = Table(
    "device_uses",
    metadata,
    Column("device_uuid", Text, primary_key=True),
    Column("attempt_id", Uuid, ForeignKey("attempts.id"), nullable=False),
)

lease_events = Table(
    "lease_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("attempt_id", Uuid, ForeignKey("attempts.id"), nullable=False),
    Column("run_id", Uuid, nullable=False),
    Column("kind", Text, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("silent_s", Double, nullable=False),
    CheckConstraint("kind IN ('suspect', 'recovered')", name="kind"),
    Index("ix_lease_events_run_id", "run_id", "id"),
)
