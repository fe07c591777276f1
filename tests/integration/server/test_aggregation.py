"""A run's result from its stored evidence: what arithmetic says, the same bytes every time, none of spoilt bytes."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import run_ids, submit
from factories.worker import FakeWorker, plain_evidence
from lem_domain.config.hashing import canonical_json
from lem_domain.evidence.streams import SAMPLER
from lem_domain.ids import IdKind, parse_id
from lem_domain.results.run import RunResult
from lem_server.aggregation import process_pool
from lem_server.aggregation import result as computation
from lem_server.aggregation.identity import aggregate_key
from lem_server.aggregation.process_pool import AggregationPool, AggregationTask

pytestmark = pytest.mark.anyio

SECONDS, WATTS, TOKENS = 4, 50.0, 16


@pytest.fixture
async def worker(api: httpx.AsyncClient) -> FakeWorker:
    """A worker, and a run that it may claim."""
    await submit(api)
    return await FakeWorker(api).ready()


@pytest.fixture
async def run(worker: FakeWorker) -> str:
    """A completed run: 16 tokens in 4 s on one device at 50 W."""
    return (await worker.whole_attempt(plain_evidence(seconds=SECONDS, watts=WATTS, chunk_rows=10))).run_id


async def aggregate(api: httpx.AsyncClient, run: str, **parameters: bool | str) -> httpx.Response:
    return await api.post(f"/api/v1/runs/{run}:aggregate", params=parameters)


async def state_of(api: httpx.AsyncClient, run: str) -> tuple[str, str | None]:
    view = (await api.get(f"/api/v1/runs/{run}")).json()
    return view["state"], view["reason"]


def refusal(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, answer.json()["code"]


async def spoil_one_byte(engine: AsyncEngine, run: str) -> None:
    """Flip a byte of a power chunk, as only the database's owner can who turns the protection off."""
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL ROLE NONE"))
        await connection.execute(text("ALTER TABLE chunks DISABLE TRIGGER immutable"))
        done = await connection.execute(
            text("""
                UPDATE chunks SET body = set_byte(body, 500, get_byte(body, 500) # 1)
                 WHERE process = :process AND stream = 'power' AND seq = 1
                   AND attempt_id = (SELECT current_attempt FROM runs WHERE id = :run)
            """),
            {"process": SAMPLER, "run": parse_id(IdKind.RUN, run)},
        )
        assert done.rowcount == 1
        await connection.execute(text("ALTER TABLE chunks ENABLE TRIGGER immutable"))


async def aggregates_of(engine: AsyncEngine, run: str) -> int:
    async with engine.connect() as connection:
        counted = await connection.execute(
            text("SELECT count(DISTINCT key) FROM aggregates WHERE run_id = :id"), {"id": parse_id(IdKind.RUN, run)}
        )
        return int(counted.scalar_one())


async def test_the_energy_per_output_token_is_what_arithmetic_says(api: httpx.AsyncClient, run: str) -> None:
    answer = await aggregate(api, run)
    assert answer.status_code == 200, answer.text
    result = RunResult.model_validate_json(answer.content)
    assert result.run_id == run
    assert result.window.duration_s == SECONDS
    assert (result.work.requests, result.work.generated_tokens) == (1, TOKENS)
    assert result.energy.total.joules == pytest.approx(WATTS * SECONDS)
    assert result.efficiency.energy_per_output_token_j.value == pytest.approx(WATTS * SECONDS / TOKENS)
    assert result.speed.output_rate_tok_s.value == pytest.approx(TOKENS / SECONDS)
    assert await state_of(api, run) == ("aggregated", None)


async def test_the_same_evidence_gives_the_same_bytes(api: httpx.AsyncClient, engine: AsyncEngine, run: str) -> None:
    first, second = await aggregate(api, run), await aggregate(api, run)
    stored = await api.get(f"/api/v1/runs/{run}/aggregate")
    assert first.content == second.content == stored.content
    assert await aggregates_of(engine, run) == 1
    log = (await api.get(f"/api/v1/runs/{run}/transitions")).json()["items"]
    assert [(one["target"], one["actor"]) for one in log[-2:]] == [("completed", "worker"), ("aggregated", "server")]


async def test_results_by_every_method_are_stored_side_by_side(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str
) -> None:
    old = await aggregate(api, run, method="m1")
    assert old.json()["method"] == "m1"
    stored = f"/api/v1/runs/{run}/aggregate"
    # The only one that there is, until there is one by the default method.
    assert (await api.get(stored)).content == old.content
    assert refusal(await api.get(stored, params={"method": "m2"})) == (404, "not_found")
    new = await aggregate(api, run)
    assert new.json()["method"] == "m2"
    assert await aggregates_of(engine, run) == 2
    for method, expected in (("m1", old), ("m2", new), (None, new)):
        assert (await api.get(stored, params={"method": method} if method else {})).content == expected.content
    # A newer result by an older method isn't what is shown.
    assert (await aggregate(api, run, method="m1")).content == old.content
    assert (await api.get(stored)).content == new.content


async def test_an_unknown_method_is_refused(api: httpx.AsyncClient, run: str) -> None:
    assert refusal(await aggregate(api, run, method="m0")) == (422, "validation")


async def older_row(engine: AsyncEngine, run: str) -> bytes:
    """Turn the run's stored result into that of another version, with another text, under its key."""
    async with engine.begin() as connection:
        row = (
            await connection.execute(
                text("SELECT key, CAST(result AS text) AS body FROM aggregates WHERE run_id = :id"),
                {"id": parse_id(IdKind.RUN, run)},
            )
        ).one()
        older = json.loads(row.body)
        older["computed_by"] = "LEM 0.0.1"
        older["findings"] = [{"code": "short_window", "severity": "info", "message": "In other words.", "numbers": {}}]
        body = canonical_json(older)
        key = aggregate_key(RunResult.model_validate_json(body))
        await connection.execute(text("SET LOCAL ROLE NONE"))
        await connection.execute(
            text("UPDATE aggregates SET key = :new, result = CAST(:body AS json) WHERE key = :key"),
            {"key": row.key, "new": bytes.fromhex(key), "body": body.decode()},
        )
    return body


async def test_what_an_older_server_said_otherwise_is_computed_again_next_to_it(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str
) -> None:
    first = (await aggregate(api, run)).content
    older = await older_row(engine, run)
    results = f"/api/v1/campaigns/{(await api.get(f'/api/v1/runs/{run}')).json()['campaign_id']}/results"
    assert "In other words." in (await api.get(results)).text
    assert (await api.get(f"/api/v1/runs/{run}/aggregate")).content == older != first
    again = await aggregate(api, run)
    assert (again.status_code, again.content) == (200, first)
    assert (await api.get(f"/api/v1/runs/{run}/aggregate")).content == first
    assert await aggregates_of(engine, run) == 2
    assert "In other words." not in (await api.get(results)).text


async def test_a_release_adds_its_own_result(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RunResult.model_validate_json((await aggregate(api, run)).content)

    async def in_this_process(_pool: AggregationPool, task: AggregationTask, *, large: bool) -> process_pool.Aggregate:
        return await asyncio.to_thread(process_pool.aggregate_stored_run, task)

    monkeypatch.setattr(computation, "computed_by", lambda: "LEM 99")
    monkeypatch.setattr(AggregationPool, "aggregate", in_this_process)
    second = RunResult.model_validate_json((await aggregate(api, run)).content)
    assert second == first.model_copy(update={"computed_by": "LEM 99"})
    assert await aggregates_of(engine, run) == 2


async def test_what_the_same_version_stored_must_be_what_it_computes(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str
) -> None:
    await aggregate(api, run)
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL ROLE NONE"))
        await connection.execute(
            text("UPDATE aggregates SET result = CAST(replace(CAST(result AS text), '50.0', '51.0') AS json)")
        )
    assert refusal(await aggregate(api, run)) == (409, "aggregate_not_reproducible")


async def test_two_that_aggregate_at_once_agree(api: httpx.AsyncClient, engine: AsyncEngine, run: str) -> None:
    first, second = await asyncio.gather(aggregate(api, run), aggregate(api, run))
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.content == second.content
    assert await aggregates_of(engine, run) == 1


async def test_a_crowd_of_aggregations_is_computed_a_few_at_a_time(
    api: httpx.AsyncClient, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may take hundreds of megabytes, so their number is what bounds the server's memory."""
    submit, together = process_pool.submit, asyncio.Barrier(process_pool.AT_ONCE)
    at_work = most = 0

    async def watched(executor: ProcessPoolExecutor, *call: Any) -> process_pool.Aggregate:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        async with asyncio.timeout(300):
            await together.wait()  # until as many as there is room for are at work
        try:
            return await submit(executor, *call)
        finally:
            at_work -= 1

    monkeypatch.setattr(process_pool, "submit", watched)
    answers = await asyncio.gather(*(aggregate(api, run) for _ in range(4 * process_pool.AT_ONCE)))
    assert {answer.status_code for answer in answers} == {200}
    assert most == process_pool.AT_ONCE


async def test_what_the_user_asked_for_is_part_of_the_key(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str
) -> None:
    strict = RunResult.model_validate_json((await aggregate(api, run)).content)
    partial = RunResult.model_validate_json((await aggregate(api, run, allow_partial=True)).content)
    assert (strict.parameters, partial.parameters) == ({"allow_partial": False}, {"allow_partial": True})
    assert strict.evidence_sha256 == partial.evidence_sha256
    assert strict.energy == partial.energy
    assert await aggregates_of(engine, run) == 2


async def test_the_protocol_cannot_change_a_stored_chunk(engine: AsyncEngine, run: str) -> None:
    for role, refused in (("lem_app", "42501"), ("NONE", "LE003")):
        async with engine.connect() as connection:
            await connection.execute(text(f"SET LOCAL ROLE {role}"))
            with pytest.raises(DBAPIError) as error:
                await connection.execute(text("UPDATE chunks SET body = set_byte(body, 0, 0)"))
            assert getattr(error.value.orig, "sqlstate", None) == refused


async def test_a_run_of_spoilt_evidence_has_failed(api: httpx.AsyncClient, engine: AsyncEngine, run: str) -> None:
    await spoil_one_byte(engine, run)
    answer = await aggregate(api, run)
    assert refusal(answer) == (409, "evidence_corrupt")
    assert "chunk 1 of power of sampler" in answer.json()["detail"]
    assert await state_of(api, run) == ("failed", "invalid_evidence")
    assert refusal(await api.get(f"/api/v1/runs/{run}/aggregate")) == (404, "not_found")
    assert refusal(await aggregate(api, run)) == (409, "conflict")


async def test_an_aggregated_run_keeps_its_result_when_its_evidence_is_spoilt_later(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str
) -> None:
    result = (await aggregate(api, run)).content
    await spoil_one_byte(engine, run)
    assert refusal(await aggregate(api, run)) == (409, "evidence_corrupt")
    assert await state_of(api, run) == ("aggregated", None)
    assert (await api.get(f"/api/v1/runs/{run}/aggregate")).content == result


async def test_a_spoilt_chunk_is_not_given_out(api: httpx.AsyncClient, engine: AsyncEngine, run: str) -> None:
    attempt = (await api.get(f"/api/v1/runs/{run}")).json()["current_attempt"]
    await spoil_one_byte(engine, run)
    place = f"/api/v1/attempts/{attempt}/processes/{SAMPLER}/streams/power/chunks"
    assert (await api.get(f"{place}/0")).status_code == 200
    assert refusal(await api.get(f"{place}/1")) == (409, "evidence_corrupt")


async def test_a_run_that_is_not_completed_has_nothing_to_aggregate(api: httpx.AsyncClient, worker: FakeWorker) -> None:
    (run,) = [one["id"] for one in (await api.get("/api/v1/runs")).json()["items"]]
    assert refusal(await aggregate(api, run)) == (409, "conflict")
    attempt = (await worker.started()).attempt_id
    assert refusal(await aggregate(api, run)) == (409, "conflict")
    assert refusal(await api.get(f"/api/v1/runs/{run}/aggregate")) == (404, "not_found")
    await worker.end(attempt)
    assert refusal(await aggregate(api, run)) == (409, "conflict")
    assert await state_of(api, run) == ("failed", "inference")


async def test_an_unknown_run_has_no_result(api: httpx.AsyncClient) -> None:
    unknown = "run_" + "0" * 32
    assert refusal(await aggregate(api, unknown)) == (404, "not_found")
    assert refusal(await api.get(f"/api/v1/runs/{unknown}/aggregate")) == (404, "not_found")


async def test_incomplete_evidence_gives_a_result_only_where_it_was_asked_for(api: httpx.AsyncClient) -> None:
    first, second = await run_ids(api, await submit(api, execution={"cycles": 2}))
    worker = await FakeWorker(api).ready()
    evidence = plain_evidence()
    evidence.processes = (SAMPLER,)
    for run in (first, second):
        assert (await worker.whole_attempt(evidence)).run_id == run
    partial = await aggregate(api, first, allow_partial=True)
    assert RunResult.model_validate_json(partial.content).verdict == "invalid"
    assert refusal(await aggregate(api, second)) == (409, "evidence_missing")
    assert await state_of(api, second) == ("failed", "invalid_evidence")
    assert refusal(await aggregate(api, second)) == (409, "conflict")
    partial = await aggregate(api, second, allow_partial=True)
    assert RunResult.model_validate_json(partial.content).verdict == "invalid"
    assert (await api.get(f"/api/v1/runs/{second}/aggregate")).content == partial.content
    assert await state_of(api, second) == ("failed", "invalid_evidence")


async def test_a_calibration_afterwards_is_computed_from_the_same_evidence(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str
) -> None:
    """An old run is metered later: readings of 50 W were 40 W."""
    stored = f"/api/v1/runs/{run}/aggregate"
    plain = await aggregate(api, run)
    entry = {"device": "Simulated device", "gain": 1.25, "gain_bound": 0.01, "source": "meter"}

    async def calibrated(*entries: dict[str, object], **parameters: str) -> httpx.Response:
        return await api.post(f"/api/v1/runs/{run}:aggregate", json={"calibration": entries}, params=parameters)

    own = await calibrated(entry)
    result = RunResult.model_validate_json(own.content)
    assert result.energy.total.joules == pytest.approx(WATTS * SECONDS / 1.25)
    assert result.evidence_sha256 == plain.json()["evidence_sha256"]
    assert (await api.get(stored)).content == own.content == (await calibrated(entry)).content
    assert await aggregates_of(engine, run) == 2
    assert (await aggregate(api, run)).content == plain.content == (await api.get(stored)).content
    assert await aggregates_of(engine, run) == 2, "what is stored is the newest again"
    assert (await calibrated()).json()["energy"]["total"] == plain.json()["energy"]["total"]
    assert refusal(await calibrated({**entry, "device": "GPU-9"})) == (422, "validation")
    assert refusal(await calibrated({**entry, "gain": 3})) == (422, "validation")
    assert refusal(await calibrated(entry, entry)) == (422, "validation")
    assert refusal(await calibrated(entry, method="m1")) == (422, "validation")
