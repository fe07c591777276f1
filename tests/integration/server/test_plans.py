"""How PostgreSQL carries out the hot statements when there are many runs: by their indexes, and never by a scan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_server.campaigns import reading as campaigns
from lem_server.leases import claim_queries, queue_queries
from lem_server.runs import changes
from lem_server.runs import reading as runs

pytestmark = pytest.mark.anyio

CAMPAIGNS, RUNS = 20, 1000
FREE = {"uuids": ["SIM-0"], "names": ["Simulated"], "kinds": ["simulated"]}

SMALL = {"pk_runs", "pk_campaigns", "pk_campaign_devices", "uq_campaign_places_current"}

_FILL = """
    SELECT set_config('lem.actor', 'user', true), set_config('lem.actor_name', 'tester', true);
    INSERT INTO campaigns (id, name, spec, submitted_by, priority, labels)
    SELECT gen_random_uuid(), 'c' || n, '{{}}', 'tester', 0, '{{}}' FROM generate_series(1, {campaigns}) n;
    INSERT INTO experiments (id, campaign_id, ordinal, display_name, varied, config, config_hash)
    SELECT gen_random_uuid(), id, 0, 'e', '{{}}', '{{}}', 'hash' FROM campaigns;
    INSERT INTO runs (id, campaign_id, experiment_id, cycle, position, backend, device_count, priority, retries_left,
                      losses_left)
    SELECT gen_random_uuid(), e.campaign_id, e.id, n, n, 'simulated', 1, 0, 0, 3
      FROM experiments e, generate_series(1, {runs}) n;
    SET LOCAL session_replication_role = replica;
    UPDATE runs SET state = 'aggregated' WHERE position <= {runs} / 2;
"""


@pytest.fixture
async def connection(engine: AsyncEngine) -> Any:
    """A database with many runs, half of them done, as the owner sees it; nothing of it stays."""
    async with engine.connect() as connection:
        transaction = await connection.begin()
        await connection.execute(text("SET LOCAL ROLE NONE"))
        for statement in _FILL.format(campaigns=CAMPAIGNS, runs=RUNS).split(";\n"):
            if statement.strip():
                await connection.execute(text(statement))
        await connection.execute(text("ANALYZE runs"))
        await connection.execute(text("ANALYZE campaigns"))
        yield connection
        await transaction.rollback()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


async def plan_of(connection: AsyncConnection, statement: TextClause, **values: object) -> list[dict[str, Any]]:
    """Every step of a statement's plan."""
    explain = text(f"EXPLAIN (FORMAT JSON) {statement.text}")
    explain = explain.bindparams(*(statement._bindparams[name] for name in explain._bindparams))
    found = (await connection.execute(explain, values)).scalar_one()
    return list(nodes((json.loads(found) if isinstance(found, str) else found)[0]["Plan"]))


async def campaign(connection: AsyncConnection) -> UUID:
    found: UUID = (await connection.execute(text("SELECT id FROM campaigns ORDER BY id LIMIT 1"))).scalar_one()
    return found


def indexes(plan: list[dict[str, Any]]) -> set[str]:
    return {node["Index Name"] for node in plan if "Index Name" in node}


def scanned(plan: list[dict[str, Any]]) -> set[str]:
    return {node["Relation Name"] for node in plan if node["Node Type"] == "Seq Scan"}


def sorted_by_position(plan: list[dict[str, Any]]) -> list[str]:
    return [key for node in plan for key in node.get("Sort Key", ()) if '."position"' in key]


async def test_the_queue_is_read_by_steps_down_its_index(connection: AsyncConnection) -> None:
    plan = await plan_of(connection, queue_queries._QUEUE, **FREE)
    assert "runs" not in scanned(plan)
    of_queue = [node for node in plan if node.get("Index Name") == "ix_runs_claim"]
    assert len(of_queue) == 3
    # What failed is looked for in campaigns that end with it, one by one; nothing is sorted but the list at last.
    assert indexes(plan) <= {"ix_runs_claim", "ix_runs_campaign_id_state", *SMALL}
    failed = [node for node in plan if node.get("Index Name") == "ix_runs_campaign_id_state"]
    assert all("campaign_id" in node["Index Cond"] for node in failed)
    assert sorted_by_position(plan[1:]) == []


async def test_a_claim_locks_the_next_run_by_the_index_of_the_queue(connection: AsyncConnection) -> None:
    plan = await plan_of(
        connection,
        claim_queries._NEXT_RUN,
        **FREE,
        campaign_id=await campaign(connection),
        backend="simulated",
        position=None,
    )
    assert "runs" not in scanned(plan)
    assert "ix_runs_claim" in indexes(plan)
    assert sorted_by_position(plan) == []


@pytest.mark.parametrize("state", [None, "queued"])
async def test_a_page_of_a_campaigns_runs_begins_where_the_last_one_ended(
    connection: AsyncConnection, state: str | None
) -> None:
    conditions = [runs._OF_CAMPAIGN] if state is None else [runs._OF_CAMPAIGN, runs._IN_STATE]
    statement = text(runs._SELECT_RUNS + runs._LIST.format(conditions=" AND ".join(conditions)))
    values = {"campaign_id": await campaign(connection), "after_position": RUNS - 200, "limit": 100}
    plan = await plan_of(connection, statement, **values, **({} if state is None else {"state": state}))
    assert "runs" not in scanned(plan)
    assert indexes(plan) & {"uq_runs_campaign_id_position", "ix_runs_campaign_id_state", "ix_runs_claim"}
    if state is None:
        [found] = [node for node in plan if node.get("Index Name") == "uq_runs_campaign_id_position"]
        assert '"position" >' in found["Index Cond"] and "ROW" not in found["Index Cond"]


async def test_a_campaigns_runs_are_counted_in_an_index(connection: AsyncConnection) -> None:
    plan = await plan_of(connection, campaigns._GET, id=await campaign(connection))
    assert "runs" not in scanned(plan)


async def test_a_cancel_finds_a_campaigns_open_runs_by_index(connection: AsyncConnection) -> None:
    plan = await plan_of(connection, changes._LOCK_OPEN, campaign_id=await campaign(connection))
    assert "runs" not in scanned(plan)


async def test_what_a_campaign_waits_for_is_found_by_index(connection: AsyncConnection) -> None:
    plan = await plan_of(connection, queue_queries._FIRST_RUN, id=await campaign(connection), backends=["simulated"])
    assert "runs" not in scanned(plan)
    assert "runs" not in scanned(await plan_of(connection, claim_queries._BY_CLAIM, claim_id=uuid4()))
