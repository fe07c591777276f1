"""Table of uploaded sets of prompts, keyed by the digest of their texts."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from lem_server.database.metadata import metadata

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("sha256", sa.LargeBinary, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("prompts", sa.Integer, nullable=False),
    sa.Column("texts", JSONB, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
)
