"""Tables of leases on runs and devices, of the last use of each device, and of lost and recovered heartbeats."""

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
    # Every heartbeat updates a row. Half-empty pages let PostgreSQL do that in place (HOT), which also requires that no
    # index covers a column that a heartbeat changes.
    postgresql_with={"fillfactor": 50},
)

# A UUID identifies a device world-wide, so its primary key also excludes workers of other backends on the same host.
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
