"""Table of aggregates, keyed by the digest of their inputs."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSON, JSONB

from lem_server.database.metadata import metadata

aggregates = sa.Table(
    "aggregates",
    metadata,
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("attempts.id"), primary_key=True),
    sa.Column("key", sa.LargeBinary, primary_key=True),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("parameters", JSONB, nullable=False),
    sa.Column("evidence_sha256", sa.LargeBinary, nullable=False),
    # JSON, not JSONB: it keeps the canonical text byte for byte.
    sa.Column("result", JSON, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Index("ix_aggregates_run_id", "run_id", "created_at"),
)
