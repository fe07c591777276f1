"""`POST /campaigns/{id}:aggregate`: every completed run once, problems per run, progress as events, safe to repeat."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import run_ids, submit
from factories.worker import FakeWorker, plain_evidence
from lem_domain.evidence.streams import SAMPLER
from lem_domain.ids import IdKind, parse_id
from lem_domain.wire.campaigns import AggregatedCampaign
from lem_server.aggregation import campaigns
from lem_server.aggregation.inputs import AggregationParameters
from lem_server.aggregation.process_pool import Aggregate, AggregationPool, AggregationTask, aggregate_stored_run
from lem_server.context import AppContext
from lem_server.events.queries import Followed
from lem_server.events.stream import BEGINNING, follow

pytestmark = pytest.mark.anyio


@pytest.fixture
def context(app: FastAPI) -> AppContext:
    found: AppContext = app.state.context
    return found


@pytest.fixture
async def campaign(api: httpx.AsyncClient) -> str:
    """A campaign of three completed runs; the second has no evidence of its rank."""
    made = await submit(api, execution={"cycles": 3})
    worker = await FakeWorker(api).ready()
    for number in range(3):
        evidence = plain_evidence()
        if number == 1:
            evidence.processes = (SAMPLER,)
        await worker.whole_attempt(evidence)
    return str(made["id"])


@pytest.fixture
def aggregated_runs(monkeypatch: pytest.MonkeyPatch) -> list[UUID]:
    """The runs that were aggregated, in order; without a subprocess."""
    order: list[UUID] = []

    async def in_this_process(_pool: AggregationPool, task: AggregationTask, *, large: bool) -> Aggregate:
        order.append(task.run.run_id)
        return await asyncio.to_thread(aggregate_stored_run, task)

    monkeypatch.setattr(AggregationPool, "aggregate", in_this_process)
    return order


async def aggregate(api: httpx.AsyncClient, campaign: str, **parameters: bool | str) -> AggregatedCampaign:
    answer = await api.post(f"/api/v1/campaigns/{campaign}:aggregate", params=parameters)
    assert answer.status_code == 200, answer.text
    return AggregatedCampaign.model_validate_json(answer.content)


async def states(api: httpx.AsyncClient, campaign: str) -> list[str]:
    runs = (await api.get("/api/v1/runs", params={"campaign_id": campaign})).json()["items"]
    return [one["state"] for one in sorted(runs, key=lambda one: one["cycle"])]


async def test_every_completed_run_is_aggregated_and_problems_are_listed_per_run(
    api: httpx.AsyncClient, campaign: str
) -> None:
    runs = await run_ids(api, {"id": campaign})
    outcome = await aggregate(api, campaign)
    assert (outcome.aggregated, outcome.failed) == (2, 1)
    (problem,) = outcome.problems
    assert (problem.run_id, problem.cycle, problem.code.value) == (runs[1], 2, "evidence_missing")
    assert await states(api, campaign) == ["aggregated", "failed", "aggregated"]
    for run in (runs[0], runs[2]):
        assert (await api.get(f"/api/v1/runs/{run}/aggregate")).status_code == 200


async def test_a_repeated_request_does_nothing(
    api: httpx.AsyncClient, campaign: str, aggregated_runs: list[UUID]
) -> None:
    first, second = await asyncio.gather(aggregate(api, campaign), aggregate(api, campaign))
    assert sorted([(first.aggregated, first.failed), (second.aggregated, second.failed)]) == [(0, 0), (2, 1)]
    assert (await aggregate(api, campaign)).model_dump() == {"aggregated": 0, "failed": 0, "problems": ()}
    assert len(aggregated_runs) == 3


async def test_runs_that_have_results_by_another_method_are_aggregated_too(
    api: httpx.AsyncClient, campaign: str
) -> None:
    assert (await aggregate(api, campaign, method="m1")).aggregated == 2
    address = f"/api/v1/campaigns/{campaign}/results"

    async def shown(**parameters: str) -> tuple[str | None, list[str | None]]:
        (experiment,) = (await api.get(address, params=parameters)).json()["experiments"]
        return experiment["method"], [one["verdict"] for one in experiment["outcomes"]]

    assert await shown() == ("m1", ["questionable", None, "questionable"])
    assert await shown(method="m2") == (None, [None, None, None])
    assert (await aggregate(api, campaign)).aggregated == 2
    assert (await aggregate(api, campaign)).aggregated == 0
    assert await shown() == ("m2", ["questionable", None, "questionable"])
    assert await shown(method="m1") == ("m1", ["questionable", None, "questionable"])


async def test_partial_evidence_of_failed_runs_is_aggregated_on_request(
    api: httpx.AsyncClient, campaign: str, aggregated_runs: list[UUID]
) -> None:
    runs = await run_ids(api, {"id": campaign})
    await aggregate(api, campaign)
    partial = await aggregate(api, campaign, allow_partial=True)
    assert (partial.aggregated, partial.failed) == (1, 0)
    assert aggregated_runs[3:] == [parse_id(IdKind.RUN, runs[1])]
    assert (await api.get(f"/api/v1/runs/{runs[1]}/aggregate")).json()["verdict"] == "invalid"
    assert (await aggregate(api, campaign, allow_partial=True)).aggregated == 0
    assert await states(api, campaign) == ["aggregated", "failed", "aggregated"]


async def test_an_unexpected_error_is_that_run_s_problem_alone(
    api: httpx.AsyncClient, campaign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = await run_ids(api, {"id": campaign})

    async def breaks(_pool: AggregationPool, task: AggregationTask, *, large: bool) -> Aggregate:
        if task.run.run_id == parse_id(IdKind.RUN, runs[0]):
            raise RuntimeError("the process died")
        return await asyncio.to_thread(aggregate_stored_run, task)

    with monkeypatch.context() as patched:
        patched.setattr(AggregationPool, "aggregate", breaks)
        outcome = await aggregate(api, campaign)
    assert (outcome.aggregated, outcome.failed) == (1, 2)
    assert [(one.run_id, one.code.value) for one in outcome.problems] == [
        (runs[0], "internal"),
        (runs[1], "evidence_missing"),
    ]
    assert (await aggregate(api, campaign)).aggregated == 1, "it is still completed, and may be repeated"


async def test_an_interrupted_request_continues_where_it_stopped(
    api: httpx.AsyncClient, campaign: str, context: AppContext, aggregated_runs: list[UUID]
) -> None:
    context.hub.stopping = True
    answer = await api.post(f"/api/v1/campaigns/{campaign}:aggregate")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    context.hub.stopping = False
    assert aggregated_runs == []
    campaign_id = parse_id(IdKind.CAMPAIGN, campaign)
    task = asyncio.create_task(context.aggregations.aggregate(campaign_id, AggregationParameters()))
    signal = context.hub.campaign(campaign_id)
    while (await states(api, campaign))[0] != "aggregated":
        await signal.wait(signal.ticket(), 0.1)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert context.aggregations.progress(campaign_id) is None
    await aggregate(api, campaign)
    assert await states(api, campaign) == ["aggregated", "failed", "aggregated"]
    assert aggregated_runs.count(aggregated_runs[0]) == 1


async def test_an_answer_lists_a_bounded_number_of_problems(
    api: httpx.AsyncClient, campaign: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaigns, "LISTED_PROBLEMS", 1)
    monkeypatch.setattr(campaigns, "PAGE", 1)
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL ROLE NONE"))
        await connection.execute(text("ALTER TABLE chunks DISABLE TRIGGER immutable"))
        await connection.execute(text("UPDATE chunks SET body = set_byte(body, 0, get_byte(body, 0) # 1)"))
        await connection.execute(text("ALTER TABLE chunks ENABLE TRIGGER immutable"))
    outcome = await aggregate(api, campaign)
    assert (outcome.aggregated, outcome.failed, len(outcome.problems)) == (0, 3, 1)


async def test_the_stream_of_events_shows_the_progress_and_ends_with_it(
    api: httpx.AsyncClient, campaign: str, context: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def waits(_pool: AggregationPool, task: AggregationTask, *, large: bool) -> Aggregate:
        started.set()
        await go_on.wait()
        return await asyncio.to_thread(aggregate_stored_run, task)

    monkeypatch.setattr(AggregationPool, "aggregate", waits)
    request = asyncio.create_task(aggregate(api, campaign))
    await started.wait()
    seen: list[tuple[str, dict[str, Any]]] = []
    async with asyncio.timeout(300):
        async for kind, data in events(context, campaign):
            seen.append((kind, data))
            if kind == "aggregation":
                go_on.set()
    await request
    progress = [data for kind, data in seen if kind == "aggregation"]
    assert progress[0] == {"type": "aggregation", "total": 3, "done": 0, "failed": 0}
    assert [one["done"] for one in progress] == sorted({one["done"] for one in progress})
    assert seen[-1][0] == "campaign"
    assert seen[-1][1]["campaign"]["runs"]["aggregated"] == 2
    assert [kind async for kind, _ in events(context, campaign)][-1] != "aggregation"


async def events(context: AppContext, campaign: str) -> AsyncIterator[tuple[str, dict[str, object]]]:
    """Kind and data of the campaign's events until the stream ends."""
    followed = Followed(parse_id(IdKind.CAMPAIGN, campaign))
    terms, progress = context.settings.lease_terms, context.aggregations.progress
    async for event in follow(context.engine, context.hub, terms, followed, BEGINNING, progress):
        yield str(event.event), json.loads(str(event.raw_data))


async def test_an_unknown_campaign_is_not_found(api: httpx.AsyncClient) -> None:
    answer = await api.post(f"/api/v1/campaigns/cmp_{'0' * 32}:aggregate")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_calibrations_apply_to_every_run_that_has_a_result_with_others(
    api: httpx.AsyncClient, campaign: str, aggregated_runs: list[UUID]
) -> None:
    async def calibrated(*entries: dict[str, Any]) -> int:
        answer = await api.post(f"/api/v1/campaigns/{campaign}:aggregate", json={"calibration": entries})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["aggregated"])

    async def shown_j() -> list[float]:
        runs = await run_ids(api, {"id": campaign})
        results = [await api.get(f"/api/v1/runs/{run}/aggregate") for run in (runs[0], runs[2])]
        return [one.json()["energy"]["total"]["joules"] for one in results]

    await aggregate(api, campaign)
    entry = {"device": "Simulated device", "gain": 1.25, "source": "meter"}
    assert await calibrated(entry) == 2 and await calibrated(entry) == 0
    assert await shown_j() == [pytest.approx(160)] * 2
    assert (await aggregate(api, campaign)).aggregated == 0, "without calibrations the newest result stays"
    assert await calibrated({**entry, "gain": 1.6}) == 2
    assert await shown_j() == [pytest.approx(125)] * 2
    assert await calibrated() == 2 and await calibrated(entry) == 2
    assert await shown_j() == [pytest.approx(160)] * 2
