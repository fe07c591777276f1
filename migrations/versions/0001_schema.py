"""Creates the schema: tables, the guards of run states, and the rights of the application's role.

The tables are those of `lem_server.database.tables`, so that each column is described once. Before a second migration
is added, freeze this one: replace `create_all` and `EDGES` with the statements that they produce today.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from alembic import op

from lem_domain.states import EDGES
from lem_server.database.tables import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CHUNK_PARTITIONS = 8

# A role belongs to the whole cluster, so databases that migrate at the same time race to create it; the loser ignores
# the error. A login without CREATEROLE (managed databases) skips it: the server then keeps that login, and only the
# triggers guard the log.
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

# Even the login that created the role needs the grant: since PostgreSQL 16, CREATE ROLE gives its creator ADMIN but not
# SET on the role. The grant fails where another login created the role (the server then keeps its login) and where
# another database of the cluster grants at the same moment ("tuple concurrently updated" is an internal_error).
GRANTS = """
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
"""

# SECURITY DEFINER: they write tables that the application's role may not. Error codes: LE001 illegal transition, LE002
# no actor, LE003 append-only, LE004 invalid import; `lem_server` maps them to problems.
FUNCTIONS = (
    """
CREATE FUNCTION lem_guard_run_state() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    actor_kind text := nullif(current_setting('lem.actor', true), '');
    actor_name text := nullif(current_setting('lem.actor_name', true), '');
BEGIN
    IF actor_kind IS NULL OR actor_name IS NULL THEN
        RAISE EXCEPTION 'lem.actor and lem.actor_name must be set in a transaction that changes the state of a run'
            USING ERRCODE = 'LE002';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF NOT EXISTS (
            SELECT 1 FROM run_edges e WHERE e.source = OLD.state AND e.target = NEW.state AND e.actor = actor_kind
        ) THEN
            RAISE EXCEPTION 'transition of a run from % to % by the % is not allowed', OLD.state, NEW.state, actor_kind
                USING ERRCODE = 'LE001';
        END IF;
        NEW.version := OLD.version + 1;
        NEW.updated_at := clock_timestamp();
    ELSIF NEW.state <> 'queued' THEN
        RAISE EXCEPTION 'a new run must be queued, not %', NEW.state USING ERRCODE = 'LE001';
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
    -- PostgreSQL delivers equal notifications of one transaction once.
    PERFORM pg_notify('lem_campaign', NEW.campaign_id::text);
    IF NEW.state = 'queued' THEN
        PERFORM pg_notify('lem_queue', NEW.backend);
    END IF;
    RETURN NULL;
END $$
""",
    """
CREATE FUNCTION lem_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only', TG_TABLE_NAME USING ERRCODE = 'LE003';
END $$
""",
    """
CREATE FUNCTION lem_guard_imported_run() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF coalesce(current_setting('lem.importing', true), '') <> NEW.campaign_id::text
           OR NOT EXISTS (SELECT 1 FROM campaigns c WHERE c.id = NEW.campaign_id AND c.imported IS NOT NULL)
           OR NEW.state NOT IN ('completed', 'aggregated', 'failed', 'interrupted', 'cancelled') THEN
            RAISE EXCEPTION 'an imported run must have ended and is inserted by lem_import_runs only'
                USING ERRCODE = 'LE004';
        END IF;
    ELSIF NEW.imported <> OLD.imported THEN
        RAISE EXCEPTION 'runs.imported cannot be changed' USING ERRCODE = 'LE004';
    ELSIF OLD.state <> 'completed' THEN
        -- The evidence of an imported run may be aggregated; every other transition is refused.
        RAISE EXCEPTION 'an imported run remains %', OLD.state USING ERRCODE = 'LE001';
    END IF;
    RETURN NEW;
END $$
""",
    """
CREATE FUNCTION lem_guard_imported_campaign() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'campaigns.imported cannot be changed' USING ERRCODE = 'LE004';
END $$
""",
    # The only way to insert ended runs, and the only writer of the log but the log triggers. `p_runs` holds rows of
    # `runs`, all with the same keys; `p_entries` holds rows of `run_transitions` in order. Each history must begin with
    # "queued", follow allowed edges, and end in the state of its run.
    """
CREATE FUNCTION lem_import_runs(p_campaign uuid, p_runs jsonb, p_entries jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    names text;
    invalid_run uuid;
BEGIN
    SELECT string_agg(format('%I', key), ', ') INTO names FROM jsonb_object_keys(p_runs -> 0) AS key
     WHERE key NOT IN ('campaign_id', 'imported');
    PERFORM set_config('lem.importing', p_campaign::text, true);
    EXECUTE format(
        'INSERT INTO runs (campaign_id, imported, %1$s)
         SELECT $1, true, %1$s FROM jsonb_populate_recordset(NULL::runs, $2)', names
    ) USING p_campaign, p_runs;
    PERFORM set_config('lem.importing', '', true);

    WITH entries AS (
        SELECT e.run_id, e.source, e.target, e.actor, given.ordinal,
               lag(e.target) OVER (PARTITION BY e.run_id ORDER BY given.ordinal) AS before,
               lead(e.target) OVER (PARTITION BY e.run_id ORDER BY given.ordinal) AS after
          FROM jsonb_array_elements(p_entries) WITH ORDINALITY AS given (entry, ordinal),
               jsonb_populate_record(NULL::run_transitions, given.entry) AS e
    ), given_runs AS (
        SELECT (run ->> 'id')::uuid AS id, run ->> 'state' AS state FROM jsonb_array_elements(p_runs) AS run
    )
    SELECT coalesce(b.id, e.run_id) INTO invalid_run
      FROM given_runs b
      FULL JOIN entries e ON e.run_id = b.id
     WHERE b.id IS NULL OR e.run_id IS NULL
        OR (e.before IS NULL AND NOT (e.source IS NULL AND e.target = 'queued'))
        OR (e.before IS NOT NULL AND (e.source IS DISTINCT FROM e.before OR NOT EXISTS (
               SELECT 1 FROM run_edges r WHERE r.source = e.source AND r.target = e.target AND r.actor = e.actor)))
        OR (e.after IS NULL AND e.target <> b.state)
     LIMIT 1;
    IF invalid_run IS NOT NULL THEN
        RAISE EXCEPTION 'the history of run % is incomplete or not allowed', replace(invalid_run::text, '-', '')
            USING ERRCODE = 'LE004';
    END IF;

    INSERT INTO run_transitions (run_id, campaign_id, source, target, at, actor, actor_name, reason, message,
                                 attempt_id, imported)
    SELECT e.run_id, p_campaign, e.source, e.target, e.at, e.actor, e.actor_name, e.reason, e.message,
           e.attempt_id, true
      FROM jsonb_array_elements(p_entries) WITH ORDINALITY AS given (entry, ordinal),
           jsonb_populate_record(NULL::run_transitions, given.entry) AS e
     ORDER BY given.ordinal;
END $$
""",
)

# Triggers of rows: name, event, condition, function.
ROW_TRIGGERS = (
    ("guard_insert", "BEFORE INSERT ON runs", "NOT NEW.imported", "lem_guard_run_state"),
    ("guard_update", "BEFORE UPDATE ON runs", "OLD.state IS DISTINCT FROM NEW.state", "lem_guard_run_state"),
    ("guard_imported_insert", "BEFORE INSERT ON runs", "NEW.imported", "lem_guard_imported_run"),
    (
        "guard_imported_update",
        "BEFORE UPDATE ON runs",
        "NEW.imported <> OLD.imported OR (OLD.imported AND OLD.state IS DISTINCT FROM NEW.state)",
        "lem_guard_imported_run",
    ),
    (
        "guard_imported",
        "BEFORE UPDATE ON campaigns",
        "NEW.imported IS DISTINCT FROM OLD.imported",
        "lem_guard_imported_campaign",
    ),
    ("log_insert", "AFTER INSERT ON runs", "NOT NEW.imported", "lem_log_run_state"),
    ("log_update", "AFTER UPDATE ON runs", "OLD.state IS DISTINCT FROM NEW.state", "lem_log_run_state"),
)

# Even the owner of the tables can't rewrite history by mistake; RIGHTS keep the application's role from trying.
# A partition inherits neither the privileges nor the statement triggers of its table, and a statement can name it
# directly. The application needs no right on partitions: it reaches them through their table.
PARTITIONS = tuple(f"chunks_p{number}" for number in range(CHUNK_PARTITIONS))
STATEMENT_TRIGGERS = (
    ("append_only", "UPDATE OR DELETE OR TRUNCATE ON run_transitions"),
    ("append_only", "UPDATE OR DELETE OR TRUNCATE ON lease_events"),
    *(("immutable", f"UPDATE OR TRUNCATE ON {table}") for table in ("chunks", *PARTITIONS)),
)

RIGHTS = f"""
    REVOKE ALL ON run_transitions, run_edges, {", ".join(PARTITIONS)} FROM lem_app;
    GRANT SELECT ON run_transitions, run_edges TO lem_app;
    REVOKE UPDATE, DELETE, TRUNCATE ON lease_events FROM lem_app;
    REVOKE UPDATE, TRUNCATE ON chunks FROM lem_app;
    REVOKE DELETE ON runs, attempts FROM lem_app;
"""

REVOKE_DEFAULTS = """
    ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON TABLES FROM lem_app;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE ALL ON SEQUENCES FROM lem_app;
    REVOKE ALL ON SCHEMA public FROM lem_app;
"""


def with_role(statements: str) -> None:
    """Execute statements in a database whose cluster has the application's role."""
    exists = "EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'lem_app')"
    op.execute(f"DO $$ BEGIN IF {exists} THEN {statements} END IF; END $$")


def upgrade() -> None:
    op.execute(ROLE)
    # The default privileges come before the tables that they apply to.
    with_role(GRANTS)
    metadata.create_all(op.get_bind())
    edges = ", ".join(sorted(f"('{edge.source}', '{edge.target}', '{edge.actor}')" for edge in EDGES))
    op.execute(f"INSERT INTO run_edges (source, target, actor) VALUES {edges}")
    # Chunks are compressed already: PostgreSQL stores them out of line and does not try again. Partitions inherit it.
    op.execute("ALTER TABLE chunks ALTER COLUMN body SET STORAGE EXTERNAL")
    for number, partition in enumerate(PARTITIONS):
        bounds = f"MODULUS {CHUNK_PARTITIONS}, REMAINDER {number}"
        op.execute(f"CREATE TABLE {partition} PARTITION OF chunks FOR VALUES WITH ({bounds})")
    for function in FUNCTIONS:
        op.execute(function)
    for name, event, condition, function in ROW_TRIGGERS:
        op.execute(f"CREATE TRIGGER {name} {event} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {function}()")
    for name, event in STATEMENT_TRIGGERS:
        op.execute(f"CREATE TRIGGER {name} BEFORE {event} FOR EACH STATEMENT EXECUTE FUNCTION lem_refuse_change()")
    with_role(RIGHTS)


def downgrade() -> None:
    metadata.drop_all(op.get_bind())
    op.execute(
        "DROP FUNCTION lem_guard_run_state, lem_log_run_state, lem_refuse_change, lem_guard_imported_run, "
        "lem_guard_imported_campaign, lem_import_runs"
    )
    with_role(REVOKE_DEFAULTS)
