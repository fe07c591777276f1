"""Campaigns, runs with their guarded states, workers, leases, evidence and aggregates.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

CHUNK_PARTITIONS = 8


# Frozen here, as every migration is; a test compares the table with lem_domain.states.
EDGES = (
    ("completed", "aggregated", "server"),
    ("completed", "failed", "server"),
    ("failed", "queued", "server"),
    ("failed", "queued", "user"),
    ("initialised", "cancelled", "server"),
    ("initialised", "cancelled", "worker"),
    ("initialised", "failed", "worker"),
    ("initialised", "interrupted", "server"),
    ("initialised", "interrupted", "worker"),
    ("initialised", "running", "worker"),
    ("interrupted", "cancelled", "user"),
    ("interrupted", "failed", "server"),
    ("interrupted", "queued", "server"),
    ("interrupted", "queued", "user"),
    ("queued", "cancelled", "user"),
    ("queued", "initialised", "worker"),
    ("running", "cancelled", "server"),
    ("running", "cancelled", "worker"),
    ("running", "completed", "worker"),
    ("running", "failed", "worker"),
    ("running", "interrupted", "server"),
    ("running", "interrupted", "worker"),
)
RUN_STATES = "'queued', 'initialised', 'running', 'completed', 'aggregated', 'failed', 'interrupted', 'cancelled'"
STORED_CAMPAIGN_STATES = "'active', 'paused', 'cancelled'"

TABLES = f"""
CREATE TABLE run_edges (
    source text NOT NULL CONSTRAINT ck_run_edges_source CHECK (source IN ({RUN_STATES})),
    target text NOT NULL CONSTRAINT ck_run_edges_target CHECK (target IN ({RUN_STATES})),
    actor  text NOT NULL CONSTRAINT ck_run_edges_actor CHECK (actor IN ('user', 'worker', 'server')),
    CONSTRAINT pk_run_edges PRIMARY KEY (source, target, actor)
);

CREATE TABLE workers (
    id            uuid NOT NULL CONSTRAINT pk_workers PRIMARY KEY,
    boot_id       uuid NOT NULL,
    name          text NOT NULL,
    host          text NOT NULL,
    backend       text NOT NULL,
    devices       jsonb NOT NULL,
    versions      jsonb NOT NULL,
    labels        jsonb NOT NULL,
    draining      boolean NOT NULL DEFAULT false,
    registered_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at  timestamptz NOT NULL DEFAULT now(),
    signed_off_at timestamptz
);

CREATE TABLE campaigns (
    id           uuid NOT NULL CONSTRAINT pk_campaigns PRIMARY KEY,
    name         text NOT NULL,
    spec         jsonb NOT NULL,
    submitted_by text NOT NULL,
    state        text NOT NULL DEFAULT 'active'
                      CONSTRAINT ck_campaigns_state CHECK (state IN ({STORED_CAMPAIGN_STATES})),
    priority     smallint NOT NULL,
    labels       jsonb NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ix_campaigns_name ON campaigns (name);

CREATE TABLE experiments (
    id           uuid NOT NULL CONSTRAINT pk_experiments PRIMARY KEY,
    campaign_id  uuid NOT NULL CONSTRAINT fk_experiments_campaign_id_campaigns REFERENCES campaigns (id),
    ordinal      integer NOT NULL,
    display_name text NOT NULL,
    varied       jsonb NOT NULL,
    config       jsonb NOT NULL,
    config_hash  text NOT NULL,
    CONSTRAINT uq_experiments_campaign_id_config_hash UNIQUE (campaign_id, config_hash),
    CONSTRAINT uq_experiments_campaign_id_ordinal UNIQUE (campaign_id, ordinal)
);

CREATE TABLE runs (
    id                  uuid NOT NULL CONSTRAINT pk_runs PRIMARY KEY,
    campaign_id         uuid NOT NULL CONSTRAINT fk_runs_campaign_id_campaigns REFERENCES campaigns (id),
    experiment_id       uuid NOT NULL CONSTRAINT fk_runs_experiment_id_experiments REFERENCES experiments (id),
    cycle               integer NOT NULL,
    position            integer NOT NULL,
    backend             text NOT NULL,
    device_count        smallint NOT NULL,
    priority            smallint NOT NULL,
    state               text NOT NULL DEFAULT 'queued' CONSTRAINT ck_runs_state CHECK (state IN ({RUN_STATES})),
    reason              text,
    message             text,
    not_before          timestamptz NOT NULL DEFAULT now(),
    current_attempt     uuid,
    attempts            integer NOT NULL DEFAULT 0,
    retries_left        smallint NOT NULL,
    losses_left         smallint NOT NULL,
    cancel_requested_at timestamptz,
    version             integer NOT NULL DEFAULT 0,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_runs_campaign_id_position UNIQUE (campaign_id, position),
    CONSTRAINT uq_runs_experiment_id_cycle UNIQUE (experiment_id, cycle),
    CONSTRAINT ck_runs_live_has_attempt CHECK (state NOT IN ('initialised', 'running') OR current_attempt IS NOT NULL)
);
CREATE INDEX ix_runs_claim ON runs (backend, priority DESC, campaign_id, position) WHERE state = 'queued';
CREATE INDEX ix_runs_campaign_id_state ON runs (campaign_id, state);

CREATE TABLE attempts (
    id               uuid NOT NULL CONSTRAINT pk_attempts PRIMARY KEY,
    run_id           uuid NOT NULL CONSTRAINT fk_attempts_run_id_runs REFERENCES runs (id),
    number           integer NOT NULL,
    worker_id        uuid NOT NULL CONSTRAINT fk_attempts_worker_id_workers REFERENCES workers (id),
    boot_id          uuid NOT NULL,
    claim_id         uuid NOT NULL CONSTRAINT uq_attempts_claim_id UNIQUE,
    devices          text[] NOT NULL,
    device_details   jsonb NOT NULL,
    claimed_at       timestamptz NOT NULL DEFAULT now(),
    started_at       timestamptz,
    ended_at         timestamptz,
    outcome          text CONSTRAINT ck_attempts_outcome
                          CHECK (outcome IN ('completed', 'failed', 'interrupted', 'cancelled')),
    reason           text,
    message          text,
    environment      jsonb,
    effective_config jsonb,
    manifest         jsonb,
    CONSTRAINT uq_attempts_run_id_number UNIQUE (run_id, number),
    CONSTRAINT ck_attempts_ended_has_outcome CHECK ((ended_at IS NULL) = (outcome IS NULL))
);

-- Narrow and hot: beats update rows in place (HOT), so no index may stand on a column that a beat changes.
CREATE TABLE leases (
    attempt_id uuid NOT NULL CONSTRAINT pk_leases PRIMARY KEY,
    run_id     uuid NOT NULL CONSTRAINT uq_leases_run_id UNIQUE,
    worker_id  uuid NOT NULL,
    boot_id    uuid NOT NULL,
    until      timestamptz NOT NULL,
    beat_at    timestamptz NOT NULL DEFAULT now(),
    cancel     boolean NOT NULL DEFAULT false,
    progress   jsonb
) WITH (fillfactor = 50);

-- A device's UUID is unique in the world, so workers of several backends on one host exclude each other too.
CREATE TABLE device_leases (
    device_uuid text NOT NULL CONSTRAINT pk_device_leases PRIMARY KEY,
    attempt_id  uuid NOT NULL CONSTRAINT fk_device_leases_attempt_id_leases REFERENCES leases (attempt_id)
                     ON DELETE CASCADE
);
CREATE INDEX ix_device_leases_attempt_id ON device_leases (attempt_id);

CREATE TABLE run_transitions (
    id          bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_run_transitions PRIMARY KEY,
    xact        xid8 NOT NULL DEFAULT pg_current_xact_id(),
    run_id      uuid NOT NULL CONSTRAINT fk_run_transitions_run_id_runs REFERENCES runs (id),
    campaign_id uuid NOT NULL,
    source      text,
    target      text NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor       text NOT NULL,
    actor_name  text NOT NULL,
    reason      text,
    message     text,
    attempt_id  uuid
);
CREATE INDEX ix_run_transitions_run_id ON run_transitions (run_id, id);
CREATE INDEX ix_run_transitions_campaign_id ON run_transitions (campaign_id, xact, id);

CREATE TABLE chunks (
    attempt_id  uuid NOT NULL,
    process     text NOT NULL,
    stream      text NOT NULL,
    seq         integer NOT NULL,
    rows        integer NOT NULL,
    t_min_ns    bigint,
    t_max_ns    bigint,
    sha256      bytea NOT NULL,
    bytes       integer NOT NULL,
    body        bytea NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_chunks PRIMARY KEY (attempt_id, process, stream, seq)
) PARTITION BY HASH (attempt_id);
-- Already compressed: keep it out of line and don't compress it again.
ALTER TABLE chunks ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE process_results (
    attempt_id   uuid NOT NULL CONSTRAINT fk_process_results_attempt_id_attempts REFERENCES attempts (id),
    process      text NOT NULL,
    streams      jsonb NOT NULL,
    summary      jsonb NOT NULL,
    completed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_process_results PRIMARY KEY (attempt_id, process)
);

CREATE TABLE logs (
    attempt_id  uuid NOT NULL CONSTRAINT fk_logs_attempt_id_attempts REFERENCES attempts (id),
    process     text NOT NULL,
    seq         integer NOT NULL,
    text        text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT pk_logs PRIMARY KEY (attempt_id, process, seq)
);

-- `result` is json, not jsonb: it keeps the canonical text byte for byte.
CREATE TABLE aggregates (
    key             bytea NOT NULL,
    run_id          uuid NOT NULL CONSTRAINT fk_aggregates_run_id_runs REFERENCES runs (id),
    attempt_id      uuid NOT NULL CONSTRAINT fk_aggregates_attempt_id_attempts REFERENCES attempts (id),
    method          text NOT NULL,
    parameters      jsonb NOT NULL,
    evidence_sha256 bytea NOT NULL,
    result          json NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_aggregates PRIMARY KEY (attempt_id, key)
);
CREATE INDEX ix_aggregates_run_id ON aggregates (run_id, created_at);

CREATE TABLE datasets (
    sha256     bytea NOT NULL CONSTRAINT pk_datasets PRIMARY KEY,
    name       text NOT NULL,
    prompts    integer NOT NULL,
    texts      jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
"""

GUARD = (
    """
CREATE FUNCTION lem_guard_run_state() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    who      text := nullif(current_setting('lem.actor', true), '');
    who_name text := nullif(current_setting('lem.actor_name', true), '');
    came_from text;
BEGIN
    IF who IS NULL OR who_name IS NULL THEN
        RAISE EXCEPTION 'a run''s state changes only with lem.actor and lem.actor_name set in the transaction'
            USING ERRCODE = 'LE002';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        came_from := OLD.state;
        IF NOT EXISTS (
            SELECT 1 FROM run_edges e WHERE e.source = OLD.state AND e.target = NEW.state AND e.actor = who
        ) THEN
            RAISE EXCEPTION 'a run may not go from % to % by the %', OLD.state, NEW.state, who
                USING ERRCODE = 'LE001';
        END IF;
        NEW.version := OLD.version + 1;
        NEW.updated_at := clock_timestamp();
    ELSIF NEW.state <> 'queued' THEN
        RAISE EXCEPTION 'a run begins queued, not %', NEW.state USING ERRCODE = 'LE001';
    END IF;
    RETURN NEW;
END $$
""",
    """
CREATE FUNCTION lem_log_run_state() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO run_transitions (run_id, campaign_id, source, target, actor, actor_name, reason, message, attempt_id)
    VALUES (NEW.id, NEW.campaign_id, CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.state,
            current_setting('lem.actor', true), current_setting('lem.actor_name', true),
            NEW.reason, NEW.message, NEW.current_attempt);
    -- Equal notifications of one transaction are delivered once.
    PERFORM pg_notify('lem_campaign', NEW.campaign_id::text);
    IF NEW.state = 'queued' THEN
        PERFORM pg_notify('lem_queue', NEW.backend);
    END IF;
    RETURN NULL;
END $$
""",
    """
CREATE TRIGGER guard_insert BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION lem_guard_run_state()
""",
    """
CREATE TRIGGER guard_update BEFORE UPDATE ON runs FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION lem_guard_run_state()
""",
    """
CREATE TRIGGER log_insert AFTER INSERT ON runs FOR EACH ROW EXECUTE FUNCTION lem_log_run_state()
""",
    """
CREATE TRIGGER log_update AFTER UPDATE ON runs FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION lem_log_run_state()
""",
    """
CREATE FUNCTION lem_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only', TG_TABLE_NAME USING ERRCODE = 'LE003';
END $$
""",
    """
-- Even the owner can't rewrite history by mistake; the application's role isn't granted the right at all.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON run_transitions
    FOR EACH STATEMENT EXECUTE FUNCTION lem_refuse_change()
""",
    """
CREATE TRIGGER immutable BEFORE UPDATE OR TRUNCATE ON chunks
    FOR EACH STATEMENT EXECUTE FUNCTION lem_refuse_change()
""",
    """
DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'lem_app') THEN
        REVOKE ALL ON run_transitions, run_edges FROM lem_app;
        GRANT SELECT ON run_transitions, run_edges TO lem_app;
        REVOKE UPDATE, TRUNCATE ON chunks FROM lem_app;
        REVOKE DELETE ON runs, attempts FROM lem_app;
    END IF;
END $$
""",
)

# Neither privileges nor statement triggers of a table are its partitions', and each can be named in a statement. The
# application reaches them through their table only, for which it needs no right on them.
PARTITION_TRIGGER = """
CREATE TRIGGER immutable BEFORE UPDATE OR TRUNCATE ON chunks_p{partition}
    FOR EACH STATEMENT EXECUTE FUNCTION lem_refuse_change()
"""
PARTITION_RIGHTS = """
DO $$
BEGIN
    IF EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'lem_app') THEN
        REVOKE ALL ON chunks_p{partition} FROM lem_app;
    END IF;
END $$
"""


def upgrade() -> None:
    for statement in TABLES.split(";\n"):
        if statement.strip():
            op.execute(statement)
    for partition in range(CHUNK_PARTITIONS):
        op.execute(
            f"CREATE TABLE chunks_p{partition} PARTITION OF chunks "
            f"FOR VALUES WITH (MODULUS {CHUNK_PARTITIONS}, REMAINDER {partition})"
        )
    edges = ", ".join(str(edge) for edge in EDGES)
    op.execute(f"INSERT INTO run_edges (source, target, actor) VALUES {edges}")
    for statement in GUARD:
        op.execute(statement)
    for partition in range(CHUNK_PARTITIONS):
        op.execute(PARTITION_TRIGGER.format(partition=partition))
        op.execute(PARTITION_RIGHTS.format(partition=partition))


def downgrade() -> None:
    op.execute(
        "DROP TABLE datasets, aggregates, logs, process_results, chunks, run_transitions, device_leases, leases, "
        "attempts, runs, experiments, campaigns, workers, run_edges"
    )
    op.execute("DROP FUNCTION lem_guard_run_state, lem_log_run_state, lem_refuse_change")
