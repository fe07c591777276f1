"""Pausing, resuming and trying again, at every state that a run can be in."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import complete, move, run_ids, store_aggregate, submit
from factories.worker import FakeWorker
from lem_domain.ids import IdKind, parse_id
from lem_domain.states import ActorKind
from lem_server.http.idempotency import forget_old_keys

pytestmark = pytest.mark.anyio


async def act(api: httpx.AsyncClient, campaign: dict[str, Any], verb: str, **body: Any) -> httpx.Response:
    return await api.post(f"/api/v1/campaigns/{campaign['id']}:{verb}", json=body or None)


async def state_of(api: httpx.AsyncClient, campaign: dict[str, Any]) -> str:
    return str((await api.get(f"/api/v1/campaigns/{campaign['id']}")).json()["state"])


async def run_of(api: httpx.AsyncClient, run: str) -> dict[str, Any]:
    view: dict[str, Any] = (await api.get(f"/api/v1/runs/{run}")).json()
    return view


async def budgets(engine: AsyncEngine, run: str) -> tuple[int, int]:
    async with engine.connect() as connection:
        row = await connection.execute(
            text("SELECT retries_left, losses_left FROM runs WHERE id = :id"), {"id": parse_id(IdKind.RUN, run)}
        )
        retries, losses = row.one()
        return retries, losses


async def verdict(worker: FakeWorker, attempt: str) -> str:
    return str((await worker.beat(attempt)).json()["attempts"][0]["verdict"])


# --- pause and resume -------------------------------------------------------------------------------------------------


async def test_nothing_of_a_paused_campaign_is_claimed_until_it_is_resumed(api: httpx.AsyncClient) -> None:
    paused, other = await submit(api, name="paused", priority=5), await submit(api, name="other")
    assert (await act(api, paused, "pause")).json()["state"] == "paused"
    assert (await act(api, paused, "pause")).json()["state"] == "paused", "done again it changes nothing"
    worker = await FakeWorker(api, devices=1).ready()
    assert (await worker.claimed()).campaign_id == other["id"], "others go on meanwhile"
    second = await FakeWorker(api).ready()
    assert (await second.claim()).status_code == 204
    assert (await act(api, paused, "resume")).json()["state"] == "active"
    assert (await second.claimed()).campaign_id == paused["id"]
    assert (await act(api, paused, "resume")).json()["state"] == "active"


async def test_a_claim_that_waits_is_woken_by_a_resume(api: httpx.AsyncClient, app: FastAPI) -> None:
    campaign = await submit(api)
    await act(api, campaign, "pause")
    await app.state.context.hub.listener.connected.wait()
    worker = await FakeWorker(api).ready()
    waiting = asyncio.create_task(worker.claim(wait_s=30))
    await asyncio.sleep(0)
    await act(api, campaign, "resume")
    assert (await waiting).status_code == 200


async def test_live_runs_finish_unless_the_pause_stops_them(api: httpx.AsyncClient) -> None:
    campaign = await submit(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    await act(api, campaign, "pause")
    assert await verdict(worker, attempt) == "ok"
    await act(api, campaign, "pause", live_runs="stop")
    assert await verdict(worker, attempt) == "pause"


async def test_a_run_that_a_pause_stopped_waits_and_has_lost_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    campaign = await submit(api, execution={"retries": 1})
    (run,) = await run_ids(api, campaign)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    await act(api, campaign, "pause", live_runs="stop")
    assert (await worker.end(attempt, "interrupted", "user_paused", "paused")).status_code == 200
    assert (await run_of(api, run))["state"] == "queued"
    assert await budgets(engine, run) == (1, 3)
    assert (await worker.claim()).status_code == 204
    await act(api, campaign, "resume")
    assert (await worker.claimed()).number == 2


async def test_a_resume_takes_back_a_stop_that_the_worker_has_not_heard_of(api: httpx.AsyncClient) -> None:
    campaign = await submit(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    await act(api, campaign, "pause", live_runs="stop")
    await act(api, campaign, "resume")
    assert await verdict(worker, attempt) == "ok"


async def test_a_cancel_is_stronger_than_a_pause(api: httpx.AsyncClient) -> None:
    campaign = await submit(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    await act(api, campaign, "pause", live_runs="stop")
    await act(api, campaign, "cancel")
    assert await verdict(worker, attempt) == "cancel"
    for verb in ("pause", "resume", "retry_failed"):
        answer = await act(api, campaign, verb)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert "submit it again" in answer.json()["detail"]


async def test_a_campaign_with_nothing_left_is_completed_paused_or_not(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    campaign = await submit(api)
    (run,) = await run_ids(api, campaign)
    worker = await FakeWorker(api).ready()
    await worker.started()
    await act(api, campaign, "pause")
    assert await state_of(api, campaign) == "paused"
    await move(engine, run, "completed")
    assert await state_of(api, campaign) == "completed"
    assert (await act(api, campaign, "pause")).json()["state"] == "completed"
    for state, found in (("completed", 1), ("paused", 0), ("active", 0)):
        assert len((await api.get("/api/v1/campaigns", params={"state": state})).json()["items"]) == found


async def test_a_pause_waits_for_a_claim_that_is_under_way(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    """A claim that chose a run holds its campaign, so that the pause that stops live runs finds this one live."""
    campaign = await submit(api)
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1 FROM campaigns FOR SHARE"))
        pausing = asyncio.create_task(act(api, campaign, "pause"))
        await until_somebody_waits(engine)
        assert not pausing.done()
        await connection.rollback()
    assert (await pausing).status_code == 200


async def until_somebody_waits(engine: AsyncEngine) -> None:
    """Return when a transaction of this database waits for a lock."""
    waiting = """
        SELECT count(*) FROM pg_locks WHERE NOT granted
           AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())
    """
    async with asyncio.timeout(300):
        while True:
            async with engine.connect() as connection:
                if (await connection.execute(text(waiting))).scalar_one():
                    return


# --- trying again -----------------------------------------------------------------------------------------------------


async def test_what_failed_is_queued_again_with_fresh_budgets(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    campaign = await submit(api, execution={"cycles": 3, "retries": 1})
    first, second, third = await run_ids(api, campaign)
    worker = await FakeWorker(api).ready()
    for _ in range(2):
        await worker.end((await worker.started()).attempt_id, "failed", "inference", "it broke")
    assert ((await run_of(api, first))["state"], await budgets(engine, first)) == ("failed", (0, 3))
    await complete(engine, second)
    answer = await act(api, campaign, "retry_failed")
    assert (answer.status_code, answer.json()) == (200, {"run_ids": [first]})
    shown = await run_of(api, first)
    assert (shown["state"], shown["reason"], shown["message"]) == ("queued", None, "queued again by owner")
    assert await budgets(engine, first) == (1, 3)
    assert (await run_of(api, third))["state"] == "queued"
    assert ((await worker.claimed()).run_id, (await run_of(api, first))["attempts"]) == (first, 3)
    assert (await act(api, campaign, "retry_failed")).json() == {"run_ids": []}


async def test_a_retry_has_its_user_in_the_log(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    (run,) = await run_ids(api, await submit(api))
    worker = await FakeWorker(api).ready()
    await worker.end((await worker.started()).attempt_id)
    assert (await api.post(f"/api/v1/runs/{run}:retry")).json()["state"] == "queued"
    last = (await api.get(f"/api/v1/runs/{run}/transitions")).json()["items"][-1]
    assert (last["source"], last["target"], last["actor"], last["actor_name"]) == ("failed", "queued", "user", "owner")


async def test_a_retry_sent_again_after_the_run_failed_again_is_one_retry(api: httpx.AsyncClient) -> None:
    (run,) = await run_ids(api, await submit(api))
    worker = await FakeWorker(api).ready()
    await worker.end((await worker.started()).attempt_id)
    key = {"Idempotency-Key": "again"}
    first = await api.post(f"/api/v1/runs/{run}:retry", headers=key)
    await worker.end((await worker.started()).attempt_id)
    again = await api.post(f"/api/v1/runs/{run}:retry", headers=key)
    assert (again.status_code, again.content) == (200, first.content)
    assert (await run_of(api, run))["state"] == "failed"


@pytest.mark.parametrize("state", ["queued", "initialised", "running"])
async def test_a_run_that_is_under_way_is_not_queued_twice(
    api: httpx.AsyncClient, engine: AsyncEngine, state: str
) -> None:
    (run,) = await run_ids(api, await submit(api))
    worker = await FakeWorker(api).ready()
    if state != "queued":
        attempt = (await worker.claimed()).attempt_id
    if state == "running":
        await worker.start(attempt)
    before = (await run_of(api, run)) | {"progress": None}
    answer = await api.post(f"/api/v1/runs/{run}:retry")
    assert (answer.status_code, answer.json() | {"progress": None}) == (200, before)


@pytest.mark.parametrize("state", ["completed", "aggregated", "cancelled"])
async def test_a_run_that_is_over_for_good_is_not_tried_again(
    api: httpx.AsyncClient, engine: AsyncEngine, state: str
) -> None:
    campaign = await submit(api)
    (run,) = await run_ids(api, campaign)
    if state == "cancelled":
        await move(engine, run, "cancelled", actor=ActorKind.USER)
    else:
        attempt = await complete(engine, run)
    if state == "aggregated":
        await store_aggregate(engine, run, attempt, '{"method": "m2"}')
    answer = await api.post(f"/api/v1/runs/{run}:retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert state in answer.json()["detail"]
    assert (await act(api, campaign, "retry_failed")).json() == {"run_ids": []}
    assert (await run_of(api, run))["state"] == state


async def test_what_is_not_there_is_not_found(api: httpx.AsyncClient) -> None:
    for address in ("campaigns/cmp_{0}:pause", "campaigns/cmp_{0}:resume", "campaigns/cmp_{0}:retry_failed"):
        assert (await api.post("/api/v1/" + address.format("0" * 32))).status_code == 404
    assert (await api.post(f"/api/v1/runs/run_{'0' * 32}:retry")).status_code == 404
    assert (await api.get(f"/api/v1/runs/run_{'0' * 32}/lease_events")).status_code == 404


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_old_keys_are_forgotten_and_young_ones_kept(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    campaign = await submit(api)
    for key in ("old", "young"):
        await api.post(f"/api/v1/campaigns/{campaign['id']}:retry_failed", headers={"Idempotency-Key": key})
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE idempotency_keys SET created_at = now() - interval '8 days' WHERE key = 'old'")
        )
    assert await forget_old_keys(engine) == 1
    async with engine.connect() as connection:
        assert list((await connection.execute(text("SELECT key FROM idempotency_keys"))).scalars()) == ["young"]
