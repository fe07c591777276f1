"""Leases say when they became suspect and whether their run is to be handed back; both facts have a log.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE leases ADD COLUMN suspect_since timestamptz",
    "ALTER TABLE leases ADD COLUMN pause boolean NOT NULL DEFAULT false",
    """
    CREATE TABLE lease_events (
        id         bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_lease_events PRIMARY KEY,
        attempt_id uuid NOT NULL CONSTRAINT fk_lease_events_attempt_id_attempts REFERENCES attempts (id),
        run_id     uuid NOT NULL,
        kind       text NOT NULL CONSTRAINT ck_lease_events_kind CHECK (kind IN ('suspect', 'recovered')),
        at         timestamptz NOT NULL,
        silent_s   double precision NOT NULL
    )
    """,
    "CREATE INDEX ix_lease_events_run_id ON lease_events (run_id, id)",
    "CREATE INDEX ix_idempotency_keys_created_at ON idempotency_keys (created_at)",
    """
    CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON lease_events
        FOR EACH STATEMENT EXECUTE FUNCTION lem_refuse_change()
    """,
    """
    DO $$
    BEGIN
        IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'lem_app') THEN
            REVOKE UPDATE, DELETE, TRUNCATE ON lease_events FROM lem_app;
        END IF;
    END $$
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE lease_events")
    op.execute("DROP INDEX ix_idempotency_keys_created_at")
    op.execute("ALTER TABLE leases DROP COLUMN suspect_since, DROP COLUMN pause")
