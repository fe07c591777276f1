"""Tables of campaigns, their experiments, their placements and their devices."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from lem_server.database.metadata import metadata

campaigns = sa.Table(
    "campaigns",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("spec", JSONB, nullable=False),
    sa.Column("submitted_by", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default=sa.text("'active'")),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("labels", JSONB, nullable=False),
    sa.Column("imported", JSONB),
    sa.Column("placement", sa.Text, nullable=False, server_default=sa.text("'any'")),
    sa.Column("fail_fast", sa.Boolean, nullable=False, server_default=sa.text("false")),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint("state IN ('active', 'paused', 'cancelled')", name="state"),
    sa.CheckConstraint("placement IN ('same_device', 'same_model', 'any')", name="placement"),
    sa.Index("ix_campaigns_name", "name"),
    sa.Index("ix_campaigns_fail_fast", "id", postgresql_where=sa.text("fail_fast")),
)

experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("campaign_id", sa.Uuid, sa.ForeignKey("campaigns.id"), nullable=False),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("display_name", sa.Text, nullable=False),
    sa.Column("varied", JSONB, nullable=False),
    sa.Column("config", JSONB, nullable=False),
    sa.Column("config_hash", sa.Text, nullable=False),
    sa.UniqueConstraint("campaign_id", "config_hash"),
    sa.UniqueConstraint("campaign_id", "ordinal"),
)

# Placements of a campaign, one row per decision; the unique index allows one current row each for real and simulated.
campaign_places = sa.Table(
    "campaign_places",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("campaign_id", sa.Uuid, sa.ForeignKey("campaigns.id"), nullable=False),
    sa.Column("simulated", sa.Boolean, nullable=False),
    sa.Column("devices", ARRAY(sa.Text), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("placed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("ended_at", sa.DateTime(timezone=True)),
    sa.Column("ended_by", sa.Text),
    sa.Index("ix_campaign_places_campaign_id", "campaign_id"),
)
sa.Index(
    "uq_campaign_places_current",
    campaign_places.c.campaign_id,
    campaign_places.c.simulated,
    unique=True,
    postgresql_where=sa.text("ended_at IS NULL"),
)

campaign_devices = sa.Table(
    "campaign_devices",
    metadata,
    sa.Column("campaign_id", sa.Uuid, sa.ForeignKey("campaigns.id"), primary_key=True),
    sa.Column("device_uuid", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
)
