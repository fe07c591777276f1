"""Tables of the raw evidence: uploaded chunks, completion markers of processes, and their logs."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Integer, LargeBinary, Table, Text, Uuid, func
from sqlalchemy.dialects.postgresql import JSONB

from lem_server.database.metadata import metadata

chunks = Table(
    "chunks",
    metadata,
    Column("attempt_id", Uuid, primary_key=True),
    Column("process", Text, primary_key=True),
    Column("stream", Text, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("rows", Integer, nullable=False),
    Column("t_min_ns", BigInteger),
    Column("t_max_ns", BigInteger),
    Column("sha256", LargeBinary, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("received_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    # Each partition is vacuumed and indexed alone; the migration creates them.
    postgresql_partition_by="HASH (attempt_id)",
)

process_results = Table(
    "process_results",
    metadata,
    Column("attempt_id", Uuid, ForeignKey("attempts.id"), primary_key=True),
    Column("process", Text, primary_key=True),
    Column("streams", JSONB, nullable=False),
    Column("summary", JSONB, nullable=False),
    Column("completed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)

logs = Table(
    "logs",
    metadata,
    Column("attempt_id", Uuid, ForeignKey("attempts.id"), primary_key=True),
    Column("process", Text, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("text", Text, nullable=False),
    Column("received_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
)
