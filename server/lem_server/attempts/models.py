"""Table of attempts: one row per try of a worker at a run."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, DateTime, ForeignKey, Integer, Table, Text, UniqueConstraint, Uuid, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from lem_server.database.metadata import metadata

attempts = Table(
    "attempts",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("run_id", Uuid, ForeignKey("runs.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("worker_id", Uuid, ForeignKey("workers.id"), nullable=False),
    Column("boot_id", Uuid, nullable=False),
    Column("claim_id", Uuid, nullable=False),
    Column("devices", ARRAY(Text), nullable=False),
    Column("device_details", JSONB, nullable=False),
    Column("claimed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("started_at", DateTime(timezone=True)),
    Column("ended_at", DateTime(timezone=True)),
    Column("outcome", Text),
    Column("reason", Text),
    Column("message", Text),
    Column("environment", JSONB),
    Column("effective_config", JSONB),
    Column("manifest", JSONB),
    UniqueConstraint("claim_id", name="uq_attempts_claim_id"),
    UniqueConstraint("run_id", "number", name="uq_attempts_run_id_number"),
    CheckConstraint("outcome IN ('completed', 'failed', 'interrupted', 'cancelled')", name="outcome"),
    CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", name="ended_has_outcome"),
)
