"""Tables of the raw evidence: uploaded chunks, completion markers of processes, and their logs."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from lem_server.database.metadata import metadata

chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("attempt_id", sa.Uuid, primary_key=True),
    sa.Column("process", sa.Text, primary_key=True),
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("t_min_ns", sa.BigInteger),
    sa.Column("t_max_ns", sa.BigInteger),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    # Each partition is vacuumed and indexed alone; the migration creates them.
    postgresql_partition_by="HASH (attempt_id)",
)

process_results = sa.Table(
    "process_results",
    metadata,
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("attempts.id"), primary_key=True),
    sa.Column("process", sa.Text, primary_key=True),
    sa.Column("streams", JSONB, nullable=False),
    sa.Column("summary", JSONB, nullable=False),
    sa.Column("completed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)

logs = sa.Table(
    "logs",
    metadata,
    sa.Column("attempt_id", sa.Uuid, sa.ForeignKey("attempts.id"), primary_key=True),
    sa.Column("process", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
)
