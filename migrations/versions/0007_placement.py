"""Where the runs of a campaign are placed, who was served when, and what ran last on a device.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

STATEMENTS = (
    # Campaigns that were submitted before there were placements go on as they began: on any device.
    """
    ALTER TABLE campaigns
        ADD COLUMN placement text NOT NULL DEFAULT 'any'
            CONSTRAINT ck_campaigns_placement CHECK (placement IN ('same_device', 'same_model', 'any')),
        ADD COLUMN fail_fast boolean NOT NULL DEFAULT false
    """,
    "CREATE INDEX ix_campaigns_fail_fast ON campaigns (id) WHERE fail_fast",
    "ALTER TABLE workers ADD COLUMN asked_at timestamptz, ADD COLUMN temperatures_c jsonb NOT NULL DEFAULT '{}'",
    """
    CREATE TABLE campaign_places (
        id          bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_campaign_places PRIMARY KEY,
        campaign_id uuid NOT NULL CONSTRAINT fk_campaign_places_campaign_id_campaigns REFERENCES campaigns (id),
        simulated   boolean NOT NULL,
        devices     text[] NOT NULL,
        kind        text NOT NULL,
        name        text NOT NULL,
        placed_at   timestamptz NOT NULL DEFAULT now(),
        ended_at    timestamptz,
        ended_by    text
    )
    """,
    """
    CREATE UNIQUE INDEX uq_campaign_places_current ON campaign_places (campaign_id, simulated) WHERE ended_at IS NULL
    """,
    "CREATE INDEX ix_campaign_places_campaign_id ON campaign_places (campaign_id)",
    """
    CREATE TABLE campaign_devices (
        campaign_id uuid NOT NULL CONSTRAINT fk_campaign_devices_campaign_id_campaigns REFERENCES campaigns (id),
        device_uuid text NOT NULL,
        run_id      uuid NOT NULL CONSTRAINT fk_campaign_devices_run_id_runs REFERENCES runs (id),
        claimed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT pk_campaign_devices PRIMARY KEY (campaign_id, device_uuid)
    )
    """,
    """
    CREATE TABLE device_uses (
        device_uuid text NOT NULL CONSTRAINT pk_device_uses PRIMARY KEY,
        attempt_id  uuid NOT NULL CONSTRAINT fk_device_uses_attempt_id_attempts REFERENCES attempts (id)
    )
    """,
    # The queue is read campaign by campaign now; how they come after one another is the campaigns' own.
    "DROP INDEX ix_runs_claim",
    "CREATE INDEX ix_runs_claim ON runs (campaign_id, backend, position) WHERE state = 'queued'",
    "INSERT INTO run_edges (source, target, actor) VALUES ('queued', 'cancelled', 'server')",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DELETE FROM run_edges WHERE (source, target, actor) = ('queued', 'cancelled', 'server')")
    op.execute("DROP INDEX ix_runs_claim")
    op.execute(
        "CREATE INDEX ix_runs_claim ON runs (backend, priority DESC, campaign_id, position) WHERE state = 'queued'"
    )
    op.execute("DROP TABLE device_uses, campaign_devices, campaign_places")
    op.execute("ALTER TABLE workers DROP COLUMN asked_at, DROP COLUMN temperatures_c")
    op.execute("DROP INDEX ix_campaigns_fail_fast")
    op.execute("ALTER TABLE campaigns DROP COLUMN placement, DROP COLUMN fail_fast")
