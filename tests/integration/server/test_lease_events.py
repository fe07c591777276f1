"""A lease that missed its beats is suspect; both that and its recovery are written down, once."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import run_ids, submit
from factories.worker import FakeWorker
from lem_domain.ids import IdKind, parse_id
from lem_server.leases.service import mark_suspects

pytestmark = pytest.mark.anyio


async def live_run(api: httpx.AsyncClient) -> tuple[FakeWorker, str, str]:
    (run,) = await run_ids(api, await submit(api))
    worker = await FakeWorker(api).ready()
    return worker, run, (await worker.started()).attempt_id


async def age(engine: AsyncEngine, attempt: str, seconds: float) -> None:
    """The lease ran out so long ago, after the 60 s that it lasts without a beat."""
    async with engine.begin() as connection:
        await connection.execute(
            text("""
                UPDATE leases SET until = now() - make_interval(secs => :s), beat_at = now() - make_interval(secs => :b)
                 WHERE attempt_id = :id
            """),
            {"s": seconds, "b": seconds + 60, "id": parse_id(IdKind.ATTEMPT, attempt)},
        )


async def events(api: httpx.AsyncClient, run: str) -> list[dict[str, Any]]:
    page: list[dict[str, Any]] = (await api.get(f"/api/v1/runs/{run}/lease_events")).json()["items"]
    return page


async def test_a_lease_in_time_has_nothing_to_report(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    worker, run, attempt = await live_run(api)
    assert await mark_suspects(engine) == 0
    await worker.beat(attempt)
    assert await events(api, run) == []


async def test_a_late_lease_is_suspect_once_however_many_servers_look(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    _, run, attempt = await live_run(api)
    await age(engine, attempt, 10)
    assert sorted(await asyncio.gather(*(mark_suspects(engine) for _ in range(5)))) == [0, 0, 0, 0, 1]
    (event,) = await events(api, run)
    assert (event["kind"], event["attempt_id"]) == ("suspect", attempt)
    assert event["silent_s"] == pytest.approx(60, abs=1)


async def test_a_heartbeat_within_the_grace_recovers_the_lease_and_both_facts_are_logged(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    worker, run, attempt = await live_run(api)
    await age(engine, attempt, 10)
    await mark_suspects(engine)
    assert (await worker.beat(attempt)).json()["attempts"][0]["verdict"] == "ok"
    assert [event["kind"] for event in await events(api, run)] == ["suspect", "recovered"]
    assert (await events(api, run))[1]["silent_s"] == pytest.approx(70, abs=5)
    await worker.beat(attempt)
    assert await mark_suspects(engine) == 0
    assert len(await events(api, run)) == 2, "once recovered, it is as any other lease"
    await age(engine, attempt, 1)
    assert await mark_suspects(engine) == 1, "and may become suspect again"


async def test_a_late_heartbeat_that_comes_before_anybody_looked_is_logged_all_the_same(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    worker, run, attempt = await live_run(api)
    await age(engine, attempt, 10)
    await worker.beat(attempt)
    log = await events(api, run)
    assert [event["kind"] for event in log] == ["suspect", "recovered"]
    assert log[0]["at"] < log[1]["at"]


async def test_the_log_of_leases_is_append_only(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    _, _, attempt = await live_run(api)
    await age(engine, attempt, 10)
    await mark_suspects(engine)
    for statement in ("UPDATE lease_events SET silent_s = 0", "DELETE FROM lease_events", "TRUNCATE lease_events"):
        with pytest.raises(DBAPIError, match=r"permission denied|append-only"):
            async with engine.begin() as connection:
                await connection.execute(text(statement))
