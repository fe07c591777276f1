"""Table of aggregates, keyed by the digest of their inputs."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, ForeignKey, Index, LargeBinary, Table, Text, Uuid, func
from sqlalchemy.dialects.postgresql import JSON, JSONB

from lem_server.database.metadata import metadata

aggregates = Table(
    "aggregates",
    metadata,
    Column("attempt_id", Uuid, ForeignKey("attempts.id"), primary_key=True),
    Column("key", LargeBinary, primary_key=True),
    Column("run_id", Uuid, ForeignKey("runs.id"), nullable=False),
    Column("method", Text, nullable=False),
    Column("parameters", JSONB, nullable=False),
    Column("evidence_sha256", LargeBinary, nullable=False),
    # JSON, not JSONB: it keeps the canonical text byte for byte.
    Column("result", JSON, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("ix_aggregates_run_id", "run_id", "created_at"),
)
