"""Table of attempts: one row per execution of a run by a worker."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from lem_server.database.metadata import metadata

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("worker_id", sa.Uuid, sa.ForeignKey("workers.id"), nullable=False),
    sa.Column("boot_id", sa.Uuid, nullable=False),
    sa.Column("claim_id", sa.Uuid, nullable=False),
    sa.Column("devices", ARRAY(sa.Text), nullable=False),
    sa.Column("device_details", JSONB, nullable=False),
    sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("started_at", sa.DateTime(timezone=True)),
    sa.Column("ended_at", sa.DateTime(timezone=True)),
    sa.Column("outcome", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("environment", JSONB),
    sa.Column("effective_config", JSONB),
    sa.Column("manifest", JSONB),
    sa.UniqueConstraint("claim_id"),
    sa.UniqueConstraint("run_id", "number"),
    sa.CheckConstraint("outcome IN ('completed', 'failed', 'interrupted', 'cancelled')", name="outcome"),
    sa.CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended_has_outcome"),
)
