"""Tables of campaigns, their experiments, their placements and their devices."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
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
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

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
    Column("placement", Text, nullable=False, server_default=text("'any'")),
    Column("fail_fast", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("state IN ('active', 'paused', 'cancelled')", name="state"),
    CheckConstraint("placement IN ('same_device', 'same_model', 'any')", name="placement"),
    Index("ix_campaigns_name", "name"),
    Index("ix_campaigns_fail_fast", "id", postgresql_where=text("fail_fast")),
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

# Placements of a campaign, one row per decision; the unique index allows one current row each for real and simulated.
campaign_places = Table(
    "campaign_places",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("campaign_id", Uuid, ForeignKey("campaigns.id"), nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("devices", ARRAY(Text), nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("placed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("ended_at", DateTime(timezone=True)),
    Column("ended_by", Text),
    Index("ix_campaign_places_campaign_id", "campaign_id"),
)
Index(
    "uq_campaign_places_current",
    campaign_places.c.campaign_id,
    campaign_places.c.simulated,
    unique=True,
    postgresql_where=text("ended_at IS NULL"),
)

campaign_devices = Table(
    "campaign_devices",
    metadata,
    Column("campaign_id", Uuid, ForeignKey("campaigns.id"), primary_key=True),
    Column("device_uuid", Text, primary_key=True),
    Column("run_id", Uuid, ForeignKey("runs.id"), nullable=False),
    Column("claimed_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
)
