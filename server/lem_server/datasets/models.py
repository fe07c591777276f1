"""Table of uploaded sets of prompts, keyed by the digest of their texts."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, Integer, LargeBinary, Table, Text, func
from sqlalchemy.dialects.postgresql import JSONB

from lem_server.database.metadata import metadata

datasets = Table(
    "datasets",
    metadata,
    Column("sha256", LargeBinary, primary_key=True),
    Column("name", Text, nullable=False),
    Column("prompts", Integer, nullable=False),
    Column("texts", JSONB, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
