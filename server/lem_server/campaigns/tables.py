"""Tables of campaigns and their experiments."""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from lem_server.database.metadata import metadata

campaigns = Table(
    "campaigns",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    Column("submitted_by", Text, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'active'")),
    Column("priority", SmallInteger, nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("imported", JSONB),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("state IN ('active', 'paused', 'cancelled')", name="state"),
    Index("ix_campaigns_name", "name"),
)

experiments = Table(
    "experiments",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("campaign_id", Uuid, ForeignKey("campaigns.id"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("varied", JSONB, nullable=False),
    Column("config", JSONB, nullable=False),
    Column("config_hash", Text, nullable=False),
    UniqueConstraint("campaign_id", "config_hash", name="uq_experiments_campaign_id_config_hash"),
    UniqueConstraint("campaign_id", "ordinal", name="uq_experiments_campaign_id_ordinal"),
)
