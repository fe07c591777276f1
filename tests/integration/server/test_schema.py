"""The schema: the tables in code are those of the migrations, and the database itself guards the states of runs."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.states import EDGES, LIVE_STATES, ActorKind, Edge, RunState
from lem_server.database.tables import metadata
from lem_server.runs.transitions import set_actor

pytestmark = pytest.mark.anyio

ILLEGAL_EDGE, NO_ACTOR, APPEND_ONLY, NO_PRIVILEGE = "LE001", "LE002", "LE003", "42501"


def is_in_code(item: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Partitions of chunks belong to their table; Alembic keeps a table of its own."""
    return not (kind == "table" and name is not None and (name.startswith("chunks_p") or name == "alembic_version"))


async def test_the_tables_in_code_are_those_of_the_migrations(engine: AsyncEngine) -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True, "include_object": is_in_code}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_the_checks_in_code_are_those_of_the_migrations(engine: AsyncEngine) -> None:
    def checks(connection: Connection) -> set[tuple[str, str]]:
        inspector = inspect(connection)
        return {
            (table, str(check["name"])) for table in metadata.tables for check in inspector.get_check_constraints(table)
        }

    in_code = {
        (table.name, str(constraint.name))
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    async with engine.connect() as connection:
        assert await connection.run_sync(checks) == in_code


async def test_the_edges_in_the_database_are_those_of_the_domain(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT source, target, actor FROM run_edges"))
        assert {Edge(RunState(s), RunState(t), ActorKind(a)) for s, t, a in rows} == EDGES


@pytest.fixture
async def connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction of the owner that is rolled back; a test may fail statements inside savepoints of it."""
    async with engine.connect() as connection:
        transaction = await connection.begin()
        await connection.execute(text("SET LOCAL ROLE NONE"))
        yield connection
        await transaction.rollback()


@pytest.fixture
async def run_id(connection: AsyncConnection) -> UUID:
    """A queued run."""
    campaign_id, experiment_id, run_id = uuid4(), uuid4(), uuid4()
    await connection.execute(
        text("""
            INSERT INTO campaigns (id, name, spec, submitted_by, priority, labels)
            VALUES (:id, 'c', '{}', 'tester', 0, '{}')
        """),
        {"id": campaign_id},
    )
    await connection.execute(
        text("""
            INSERT INTO experiments (id, campaign_id, ordinal, display_name, varied, config, config_hash)
            VALUES (:id, :campaign_id, 0, 'e', '{}', '{}', 'hash')
        """),
        {"id": experiment_id, "campaign_id": campaign_id},
    )
    await set_actor(connection, ActorKind.USER, "tester")
    await connection.execute(
        text("""
            INSERT INTO runs (id, campaign_id, experiment_id, cycle, position, backend, device_count, priority,
                              retries_left, losses_left)
            VALUES (:id, :campaign_id, :experiment_id, 1, 0, 'simulated', 1, 0, 0, 3)
        """),
        {"id": run_id, "campaign_id": campaign_id, "experiment_id": experiment_id},
    )
    await set_actor(connection, ActorKind.USER, "")
    return run_id


async def put_in_state(connection: AsyncConnection, run_id: UUID, state: RunState) -> None:
    """Set a state past every guard, as only a superuser can."""
    await connection.execute(text("SET LOCAL session_replication_role = replica"))
    await connection.execute(
        text("UPDATE runs SET state = :state, current_attempt = :attempt WHERE id = :id"),
        {"id": run_id, "state": state, "attempt": uuid4() if state in LIVE_STATES else None},
    )
    await connection.execute(text("SET LOCAL session_replication_role = origin"))


async def move(connection: AsyncConnection, run_id: UUID, state: RunState) -> None:
    await connection.execute(
        text("UPDATE runs SET state = :state, current_attempt = coalesce(current_attempt, :attempt) WHERE id = :id"),
        {"id": run_id, "state": state, "attempt": uuid4()},
    )


async def refusal(connection: AsyncConnection, statement: str, **parameters: object) -> str | None:
    """The SQLSTATE that a statement is refused with; None when it isn't. Nothing of it stays."""
    savepoint = await connection.begin_nested()
    try:
        await connection.execute(text(statement), parameters)
    except DBAPIError as error:
        return sqlstate(error)
    else:
        return None
    finally:
        await savepoint.rollback()


def sqlstate(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None))


async def entries(connection: AsyncConnection, run_id: UUID) -> int:
    counted = await connection.execute(text("SELECT count(*) FROM run_transitions WHERE run_id = :id"), {"id": run_id})
    return int(counted.scalar_one())


async def test_the_database_allows_exactly_the_edges_of_the_domain(connection: AsyncConnection, run_id: UUID) -> None:
    wrong = []
    for source, target, actor in itertools.product(RunState, RunState, ActorKind):
        if source == target:
            continue
        await put_in_state(connection, run_id, source)
        await set_actor(connection, actor, "tester")
        refused = await refusal(
            connection,
            "UPDATE runs SET state = :state, current_attempt = coalesce(current_attempt, gen_random_uuid()) "
            "WHERE id = :id",
            state=target,
            id=run_id,
        )
        if refused != (None if Edge(source, target, actor) in EDGES else ILLEGAL_EDGE):
            wrong.append((source, target, actor, refused))
    assert wrong == []


async def test_a_run_begins_queued(connection: AsyncConnection, run_id: UUID) -> None:
    await set_actor(connection, ActorKind.WORKER, "tester")
    insert = """
        INSERT INTO runs (id, campaign_id, experiment_id, cycle, position, backend, device_count, priority, state,
                          retries_left, losses_left)
        SELECT gen_random_uuid(), campaign_id, experiment_id, 2, 1, backend, 1, 0, :state, 0, 3 FROM runs WHERE id = :id
    """
    refused = {state: await refusal(connection, insert, id=run_id, state=state) for state in RunState}
    assert refused == {state: None if state is RunState.QUEUED else ILLEGAL_EDGE for state in RunState}


@pytest.mark.parametrize(("actor", "name"), [("", "tester"), ("user", "")])
async def test_a_state_changes_only_with_an_actor(
    connection: AsyncConnection, run_id: UUID, actor: str, name: str
) -> None:
    await connection.execute(
        text("SELECT set_config('lem.actor', :actor, true), set_config('lem.actor_name', :name, true)"),
        {"actor": actor, "name": name},
    )
    assert await refusal(connection, "UPDATE runs SET state = 'cancelled' WHERE id = :id", id=run_id) == NO_ACTOR


async def test_every_change_is_logged_with_its_actor_reason_and_attempt(
    connection: AsyncConnection, run_id: UUID
) -> None:
    await set_actor(connection, ActorKind.WORKER, "wrk_1")
    await move(connection, run_id, RunState.INITIALISED)
    await connection.execute(
        text("UPDATE runs SET state = 'failed', reason = 'out_of_memory', message = 'too big' WHERE id = :id"),
        {"id": run_id},
    )
    rows = (
        await connection.execute(
            text("""
                SELECT t.source, t.target, t.actor, t.actor_name, t.reason, t.message,
                       t.attempt_id = r.current_attempt, t.xact = pg_current_xact_id()
                  FROM run_transitions t JOIN runs r ON r.id = t.run_id
                 WHERE t.run_id = :id ORDER BY t.id
            """),
            {"id": run_id},
        )
    ).all()
    assert rows == [
        (None, "queued", "user", "tester", None, None, None, True),
        ("queued", "initialised", "worker", "wrk_1", None, None, True, True),
        ("initialised", "failed", "worker", "wrk_1", "out_of_memory", "too big", True, True),
    ]


async def test_an_update_that_leaves_the_state_is_not_logged(connection: AsyncConnection, run_id: UUID) -> None:
    before = await entries(connection, run_id)
    await connection.execute(
        text("UPDATE runs SET state = state, cancel_requested_at = now() WHERE id = :id"), {"id": run_id}
    )
    assert await entries(connection, run_id) == before


@pytest.mark.parametrize(
    "statement",
    ["UPDATE run_transitions SET reason = 'x'", "DELETE FROM run_transitions", "TRUNCATE run_transitions"],
)
async def test_the_log_is_append_only_even_for_its_owner(
    connection: AsyncConnection, run_id: UUID, statement: str
) -> None:
    assert await refusal(connection, statement) == APPEND_ONLY


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE run_transitions SET reason = 'x'",
        "DELETE FROM run_transitions",
        "TRUNCATE run_transitions",
        "INSERT INTO run_transitions (run_id, campaign_id, target, actor, actor_name) "
        "SELECT id, campaign_id, 'queued', 'user', 'x' FROM runs",
        "INSERT INTO run_edges VALUES ('aggregated', 'queued', 'user')",
        "DELETE FROM runs",
        "UPDATE chunks SET rows = 0",
    ],
)
async def test_the_application_role_cannot_rewrite_history(
    connection: AsyncConnection, run_id: UUID, statement: str
) -> None:
    await connection.execute(text("SET LOCAL ROLE lem_app"))
    assert await refusal(connection, statement) == NO_PRIVILEGE


@pytest.mark.parametrize("table", ["chunks", *(f"chunks_p{number}" for number in range(8))])
@pytest.mark.parametrize("statement", ["UPDATE {} SET rows = 0", "TRUNCATE {}"])
async def test_chunks_never_change_in_their_table_or_in_a_partition(
    connection: AsyncConnection, table: str, statement: str
) -> None:
    assert await refusal(connection, statement.format(table)) == APPEND_ONLY
    await connection.execute(text("SET LOCAL ROLE lem_app"))
    assert await refusal(connection, statement.format(table)) == NO_PRIVILEGE


async def test_the_application_role_moves_runs_and_its_moves_are_logged(
    connection: AsyncConnection, run_id: UUID
) -> None:
    await connection.execute(text("SET LOCAL ROLE lem_app"))
    await set_actor(connection, ActorKind.USER, "tester")
    await move(connection, run_id, RunState.CANCELLED)
    assert await entries(connection, run_id) == 2
