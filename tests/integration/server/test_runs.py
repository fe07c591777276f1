"""Runs and attempts over HTTP: lists, progress, cancel, log of transitions, output."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import claim, complete, move, run_ids, set_progress, submit, write_log
from lem_domain.ids import IdKind, parse_id
from lem_domain.states import ActorKind

pytestmark = pytest.mark.anyio

PROGRESS = {"phase": "measure", "requests_done": 3, "generated_tokens": 96, "elapsed_s": 1.5, "fraction": 0.25}


async def listed(api: httpx.AsyncClient, **parameters: Any) -> list[dict[str, Any]]:
    answer = await api.get("/api/v1/runs", params=parameters)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def all_pages(api: httpx.AsyncClient, address: str, **parameters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await api.get(address, params={**parameters, **cursor})).json()
        assert len(page["items"]) <= parameters["limit"]
        found += page["items"]
        if page["next"] is None:
            return found
        cursor = {"cursor": page["next"]}


async def test_runs_are_listed_in_the_order_of_the_queue_across_campaigns(api: httpx.AsyncClient) -> None:
    made = [await submit(api, execution={"cycles": 3}) for _ in range(2)]
    runs = await all_pages(api, "/api/v1/runs", limit=2)
    assert [(run["campaign_id"], run["position"]) for run in runs] == list(
        itertools.product([one["id"] for one in made], range(3))
    )


async def test_pages_stay_stable_while_runs_move_and_are_added(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    view = await submit(api, execution={"cycles": 4})
    expected = await run_ids(api, view)
    first = (await api.get("/api/v1/runs", params={"campaign_id": view["id"], "limit": 2})).json()
    await complete(engine, expected[0])
    await claim(engine, expected[3])
    await submit(api)
    rest = (
        await api.get("/api/v1/runs", params={"campaign_id": view["id"], "limit": 2, "cursor": first["next"]})
    ).json()
    assert [run["id"] for run in first["items"] + rest["items"]] == expected
    assert rest["next"] is None


async def test_runs_are_filtered_by_campaign_and_state(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    mine, other = await submit(api, execution={"cycles": 2}), await submit(api)
    first, second = await run_ids(api, mine)
    await complete(engine, first)
    assert [run["id"] for run in await listed(api, campaign_id=mine["id"], state="queued")] == [second]
    assert [run["id"] for run in await listed(api, state="completed")] == [first]
    assert len(await listed(api, state="queued")) == 2
    assert await listed(api, campaign_id=other["id"], state="failed") == []


async def test_a_busy_run_shows_what_it_is_doing(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    (run_id,) = await run_ids(api, await submit(api))
    attempt = await claim(engine, run_id)
    run = (await api.get(f"/api/v1/runs/{run_id}")).json()
    assert (run["state"], run["current_attempt"], run["attempts"], run["progress"]) == ("initialised", attempt, 1, None)
    await set_progress(engine, run_id, PROGRESS)
    run = (await api.get(f"/api/v1/runs/{run_id}")).json()
    assert run["progress"] == {**PROGRESS, "output_rate_tok_s": None, "power_w": None}
    await move(engine, run_id, "failed", reason="out_of_memory", message="the device is full")
    run = (await api.get(f"/api/v1/runs/{run_id}")).json()
    assert (run["progress"], run["reason"], run["message"]) == (None, "out_of_memory", "the device is full")


async def test_a_queued_run_is_cancelled_at_once(api: httpx.AsyncClient) -> None:
    first, second = await run_ids(api, await submit(api, execution={"cycles": 2}))
    answer = await api.post(f"/api/v1/runs/{first}:cancel")
    assert answer.status_code == 200
    run = answer.json()
    assert (run["state"], run["reason"], run["message"]) == ("cancelled", "user_cancelled", "cancelled by owner")
    assert (await api.get(f"/api/v1/runs/{second}")).json()["state"] == "queued"


async def test_the_cancel_of_a_live_run_is_asked_of_its_worker(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    (run_id,) = await run_ids(api, await submit(api))
    await claim(engine, run_id)
    for _ in range(2):
        run = (await api.post(f"/api/v1/runs/{run_id}:cancel")).json()
        assert (run["state"], run["cancel_requested"]) == ("initialised", True)
    async with engine.connect() as connection:
        asked = await connection.execute(
            text("SELECT cancel FROM leases WHERE run_id = :id"), {"id": parse_id(IdKind.RUN, run_id)}
        )
        assert asked.scalar_one() is True


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
async def test_the_cancel_of_a_run_that_ended_changes_nothing(
    api: httpx.AsyncClient, engine: AsyncEngine, state: str
) -> None:
    (run_id,) = await run_ids(api, await submit(api))
    await claim(engine, run_id)
    await move(engine, run_id, "running")
    await move(engine, run_id, state)
    before = (await api.get(f"/api/v1/runs/{run_id}")).json()
    answer = await api.post(f"/api/v1/runs/{run_id}:cancel")
    assert (answer.status_code, answer.json()) == (200, before)


async def test_an_interrupted_run_can_be_cancelled(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    (run_id,) = await run_ids(api, await submit(api))
    await claim(engine, run_id)
    await move(engine, run_id, "interrupted", reason="worker_lost")
    assert (await api.post(f"/api/v1/runs/{run_id}:cancel")).json()["state"] == "cancelled"


async def test_the_log_reports_who_moved_the_run_when_and_why(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    (run_id,) = await run_ids(api, await submit(api))
    attempt = await claim(engine, run_id)
    await move(engine, run_id, "interrupted", actor=ActorKind.SERVER, reason="worker_lost", message="not heard of")
    await move(engine, run_id, "queued", actor=ActorKind.SERVER)
    log = await all_pages(api, f"/api/v1/runs/{run_id}/transitions", limit=3)
    assert [(entry["source"], entry["target"], entry["actor"]) for entry in log] == [
        (None, "queued", "user"),
        ("queued", "initialised", "worker"),
        ("initialised", "interrupted", "server"),
        ("interrupted", "queued", "server"),
    ]
    assert (log[2]["reason"], log[2]["message"], log[2]["attempt_id"]) == ("worker_lost", "not heard of", attempt)
    assert [entry["at"] for entry in log] == sorted(entry["at"] for entry in log)


async def test_every_attempt_is_kept(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    (run_id,) = await run_ids(api, await submit(api))
    made = []
    for _ in range(3):
        made.append(await claim(engine, run_id))
        await move(engine, run_id, "interrupted", reason="worker_lost", message="not heard of")
        await move(engine, run_id, "queued", actor=ActorKind.SERVER)
    attempts = await all_pages(api, f"/api/v1/runs/{run_id}/attempts", limit=2)
    assert [(one["id"], one["number"]) for one in attempts] == [(attempt, n + 1) for n, attempt in enumerate(made)]
    assert {(one["outcome"], one["reason"], one["worker_name"]) for one in attempts} == {
        ("interrupted", "worker_lost", "worker-1")
    }
    assert (await api.get(f"/api/v1/attempts/{made[0]}")).json() == attempts[0]


async def test_an_attempt_shows_its_environment_configuration_and_manifest(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    (run_id,) = await run_ids(api, await submit(api))
    attempt = await claim(engine, run_id)
    async with engine.begin() as connection:
        await connection.execute(
            text("""
                UPDATE attempts
                   SET started_at = now(), environment = '{"python": "3.11"}',
                       effective_config = '{"engine": "simulated 1", "parameters": [{"name": "simulated.batch_size",
                                            "requested": 1, "effective": 1, "confirmed": true}]}',
                       manifest = jsonb_build_array(jsonb_build_object('process', 'rank-0', 'stream', 'requests',
                                  'chunks', 1, 'rows', 2, 'bytes', 3, 'sha256', repeat('0', 64)))
                 WHERE id = :id
            """),
            {"id": parse_id(IdKind.ATTEMPT, attempt)},
        )
    view = (await api.get(f"/api/v1/attempts/{attempt}")).json()
    assert view["environment"] == {"python": "3.11"}
    assert view["effective_config"]["parameters"][0]["confirmed"] is True
    assert view["manifest"][0]["stream"] == "requests"
    assert view["devices"] == ["SIM-0"]


async def test_output_comes_attempt_by_attempt_and_process_by_process(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    (run_id,) = await run_ids(api, await submit(api))
    for number in (1, 2):
        attempt = await claim(engine, run_id)
        for process, seq in itertools.product(("rank-0", "rank-1", "sampler"), range(2)):
            await write_log(engine, attempt, process, seq, f"{number} {process} {seq}")
        await move(engine, run_id, "failed", reason="inference")
        await move(engine, run_id, "queued", actor=ActorKind.SERVER)
    everything = [
        f"{number} {process} {seq}"
        for number, process, seq in itertools.product((1, 2), ("rank-0", "rank-1", "sampler"), range(2))
    ]
    assert [one["text"] for one in await all_pages(api, f"/api/v1/runs/{run_id}/logs", limit=5)] == everything
    of_one = await all_pages(api, f"/api/v1/runs/{run_id}/logs", limit=3, process="rank-1")
    assert [one["text"] for one in of_one] == [words for words in everything if "rank-1" in words]


@pytest.mark.parametrize("path", ["", "/transitions", "/attempts", "/logs", "/events"])
async def test_an_unknown_run_is_a_404_with_a_sentence(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.get(f"/api/v1/runs/run_{'0' * 32}{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "there is no run run_000" in answer.json()["detail"]


async def test_the_cancel_of_an_unknown_run_is_a_404(api: httpx.AsyncClient) -> None:
    assert (await api.post(f"/api/v1/runs/run_{'0' * 32}:cancel")).status_code == 404


async def test_an_unknown_attempt_is_a_404_with_a_sentence(api: httpx.AsyncClient) -> None:
    answer = await api.get(f"/api/v1/attempts/att_{'0' * 32}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "parameters", [{"state": "nope"}, {"campaign_id": "cmp_1"}, {"limit": 501}], ids=["state", "campaign", "limit"]
)
async def test_a_list_refuses_what_it_does_not_understand(api: httpx.AsyncClient, parameters: dict[str, Any]) -> None:
    answer = await api.get("/api/v1/runs", params=parameters)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation")
