"""Campaigns that were measured elsewhere: marked, never queued, with the history that they bring.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE campaigns ADD COLUMN imported jsonb",
    "ALTER TABLE runs ADD COLUMN imported boolean NOT NULL DEFAULT false",
    # Entries that this database's own trigger did not write.
    "ALTER TABLE run_transitions ADD COLUMN imported boolean NOT NULL DEFAULT false",
    # What was queued here goes the way that it always did.
    "DROP TRIGGER guard_insert ON runs",
    """
    CREATE TRIGGER guard_insert BEFORE INSERT ON runs FOR EACH ROW
        WHEN (NOT NEW.imported) EXECUTE FUNCTION lem_guard_run_state()
    """,
    "DROP TRIGGER log_insert ON runs",
    """
    CREATE TRIGGER log_insert AFTER INSERT ON runs FOR EACH ROW
        WHEN (NOT NEW.imported) EXECUTE FUNCTION lem_log_run_state()
    """,
    """
    CREATE FUNCTION lem_guard_imported_run() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            IF coalesce(current_setting('lem.importing', true), '') <> NEW.campaign_id::text
               OR NOT EXISTS (SELECT 1 FROM campaigns c WHERE c.id = NEW.campaign_id AND c.imported IS NOT NULL)
               OR NEW.state NOT IN ('completed', 'aggregated', 'failed', 'interrupted', 'cancelled') THEN
                RAISE EXCEPTION 'an imported run has ended, and comes with its history into an imported campaign'
                    USING ERRCODE = 'LE004';
            END IF;
        ELSIF NEW.imported <> OLD.imported THEN
            RAISE EXCEPTION 'where a run was measured does not change' USING ERRCODE = 'LE004';
        ELSIF OLD.state <> 'completed' THEN
            -- Its evidence may be aggregated here; beyond that it is a record.
            RAISE EXCEPTION 'an imported run stays %', OLD.state USING ERRCODE = 'LE001';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER guard_imported_insert BEFORE INSERT ON runs FOR EACH ROW
        WHEN (NEW.imported) EXECUTE FUNCTION lem_guard_imported_run()
    """,
    """
    CREATE TRIGGER guard_imported_update BEFORE UPDATE ON runs FOR EACH ROW
        WHEN (NEW.imported <> OLD.imported OR (OLD.imported AND OLD.state IS DISTINCT FROM NEW.state))
        EXECUTE FUNCTION lem_guard_imported_run()
    """,
    """
    CREATE FUNCTION lem_guard_imported_campaign() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'where a campaign was measured does not change' USING ERRCODE = 'LE004';
    END $$
    """,
    """
    CREATE TRIGGER guard_imported BEFORE UPDATE ON campaigns FOR EACH ROW
        WHEN (NEW.imported IS DISTINCT FROM OLD.imported) EXECUTE FUNCTION lem_guard_imported_campaign()
    """,
    # The only way that runs come in ended, and that the log is written to by anything but the trigger: runs with their
    # whole histories, each of which must be one that a run can have and end in the run's state. `p_runs` are rows of
    # runs, all with the same keys; `p_entries` are rows of the log in order.
    """
    CREATE FUNCTION lem_import_runs(p_campaign uuid, p_runs jsonb, p_entries jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    DECLARE
        names text;
        wrong uuid;
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
            SELECT e.run_id, e.source, e.target, e.actor, given.place,
                   lag(e.target) OVER (PARTITION BY e.run_id ORDER BY given.place) AS before,
                   lead(e.target) OVER (PARTITION BY e.run_id ORDER BY given.place) AS after
              FROM jsonb_array_elements(p_entries) WITH ORDINALITY AS given (entry, place),
                   jsonb_populate_record(NULL::run_transitions, given.entry) AS e
        ), brought AS (
            SELECT (run ->> 'id')::uuid AS id, run ->> 'state' AS state FROM jsonb_array_elements(p_runs) AS run
        )
        SELECT coalesce(b.id, e.run_id) INTO wrong
          FROM brought b
          FULL JOIN entries e ON e.run_id = b.id
         WHERE b.id IS NULL OR e.run_id IS NULL
            OR (e.before IS NULL AND NOT (e.source IS NULL AND e.target = 'queued'))
            OR (e.before IS NOT NULL AND (e.source IS DISTINCT FROM e.before OR NOT EXISTS (
                   SELECT 1 FROM run_edges r WHERE r.source = e.source AND r.target = e.target AND r.actor = e.actor)))
            OR (e.after IS NULL AND e.target <> b.state)
         LIMIT 1;
        IF wrong IS NOT NULL THEN
            RAISE EXCEPTION 'the history of run % is not one that a run can have', replace(wrong::text, '-', '')
                USING ERRCODE = 'LE004';
        END IF;

        INSERT INTO run_transitions (run_id, campaign_id, source, target, at, actor, actor_name, reason, message,
                                     attempt_id, imported)
        SELECT e.run_id, p_campaign, e.source, e.target, e.at, e.actor, e.actor_name, e.reason, e.message,
               e.attempt_id, true
          FROM jsonb_array_elements(p_entries) WITH ORDINALITY AS given (entry, place),
               jsonb_populate_record(NULL::run_transitions, given.entry) AS e
         ORDER BY given.place;
    END $$
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER guard_imported ON campaigns")
    for trigger in ("guard_imported_insert", "guard_imported_update", "guard_insert", "log_insert"):
        op.execute(f"DROP TRIGGER {trigger} ON runs")
    op.execute("DROP FUNCTION lem_import_runs, lem_guard_imported_run, lem_guard_imported_campaign")
    op.execute("CREATE TRIGGER guard_insert BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION lem_guard_run_state()")
    op.execute("CREATE TRIGGER log_insert AFTER INSERT ON runs FOR EACH ROW EXECUTE FUNCTION lem_log_run_state()")
    op.execute("ALTER TABLE run_transitions DROP COLUMN imported")
    op.execute("ALTER TABLE runs DROP COLUMN imported")
    op.execute("ALTER TABLE campaigns DROP COLUMN imported")
