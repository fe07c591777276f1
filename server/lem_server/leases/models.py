"""Tables of leases on runs and devices, of the last use of each device, and of lost and recovered heartbeats."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from lem_server.database.metadata import metadata

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("attempt_id", sa.Uuid, primary_key=True),
    sa.Column("run_id", sa.Uuid, nullable=False),
    sa.Column("worker_id", sa.Uuid, nullable=False),
    sa.Column("boot_id", sa.Uuid, nullable=False),
    sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    sa.Column("beat_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("cancel", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("progress", JSONB),
    sa.Column("suspect_since", sa.DateTime(timezone=True)),
    sa.Column("pause", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.UniqueConstraint("run_id"),
    # Every heartbeat updates a row. Half-empty pages let PostgreSQL do that in place (HOT), which also requires that no
    # index covers a column that a heartbeat changes.
    postgresql_with={"fillfactor": 50},
)

# A UUID identifies a device world-wide, so its primary key also excludes workers of other backends on the same host.
device_leases = sa.Table(
    "device_leases",
    metadata,
    sa.Column("device_uuid", sa.Text, primary_key=True),
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("leases.attempt_id", ondelete="CASCADE"), nullable=False),
    sa.Index("ix_device_leases_attempt_id", "attempt_id"),
)

device_uses = sa.Table(
    "device_uses",
    metadata,
    sa.Column("device_uuid", sa.Text, primary_key=True),
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("attempts.id"), nullable=False),
)

lease_events = sa.Table(
    "lease_events",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("attempts.id"), nullable=False),
    sa.Column("run_id", sa.Uuid, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("silent_s", sa.Double, nullable=False),
    sa.CheckConstraint("kind IN ('suspect', 'recovered')", name="kind"),
    sa.Index("ix_lease_events_run_id", "run_id", "id"),
)
