"""The application's role, access tokens and idempotency keys.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A role belongs to the whole cluster: several databases migrate at once and one of them makes it. Where the login may
# not make roles (a managed database), the server works as that login and the triggers alone guard the log.
ROLE = """
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'lem_app')
       AND (SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        BEGIN
            CREATE ROLE lem_app NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
END $$
"""

# The grant is made even to the role's maker: since PostgreSQL 16 making it gives the right to administer it and not to
# take it on. It fails where another login made the role (the server then works as this login), or where another
# database of the cluster does the same at this moment ("tuple concurrently updated" is an internal_error).
GRANTS = """
DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'lem_app') THEN
        IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            BEGIN
                EXECUTE format('GRANT lem_app TO %I', current_user);
            EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation OR internal_error THEN
                NULL;
            END;
        END IF;
        GRANT USAGE ON SCHEMA public TO lem_app;
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO lem_app;
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO lem_app;
        GRANT SELECT ON alembic_version TO lem_app;
    END IF;
END $$
"""

API_TOKENS = """
CREATE TABLE api_tokens (
    id           uuid NOT NULL CONSTRAINT pk_api_tokens PRIMARY KEY,
    name         text NOT NULL,
    kind         text NOT NULL CONSTRAINT ck_api_tokens_kind CHECK (kind IN ('owner', 'user', 'worker', 'ci')),
    sha256       bytea NOT NULL CONSTRAINT uq_api_tokens_sha256 UNIQUE,
    scopes       text[] NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
)
"""

IDEMPOTENCY_KEYS = """
CREATE TABLE idempotency_keys (
    principal   uuid NOT NULL,
    route       text NOT NULL,
    key         text NOT NULL,
    fingerprint bytea NOT NULL,
    status      smallint,
    body        bytea,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (principal, route, key)
)
"""


def upgrade() -> None:
    op.execute(ROLE)
    op.execute(GRANTS)
    op.execute(API_TOKENS)
    op.execute(IDEMPOTENCY_KEYS)


def downgrade() -> None:
    op.execute("DROP TABLE idempotency_keys, api_tokens")
    op.execute("""
        DO $$
        BEGIN
            IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'lem_app') THEN
                ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON TABLES FROM lem_app;
                ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON SEQUENCES FROM lem_app;
                REVOKE ALL ON SCHEMA public FROM lem_app;
            END IF;
        END $$
    """)
