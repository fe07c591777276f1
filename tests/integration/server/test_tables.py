"""Tables of a campaign over HTTP: their values, what is refused, what breaks off, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any
from uuid import UUID

import anyio
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import factories.worker
from factories.evidence import EPOCH_NS, Evidence, simulated
from factories.runs import complete, move, result_json, run_ids, store_aggregate, submit
from factories.tables import Rows, read_table
from factories.worker import FakeWorker, plain_evidence
from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import StreamName
from lem_domain.ids import IdKind, parse_id
from lem_domain.states import ActorKind
from lem_domain.tables import OPEN_RUNS_HEADER, TableFormat, TableName
from lem_server.evidence import reading
from lem_server.exports import table_export
from lem_server.http.problems import ProblemError

pytestmark = pytest.mark.anyio


async def rows(api: httpx.AsyncClient, campaign: str, table: str, **parameters: str) -> Rows:
    answer = await api.get(f"/api/v1/campaigns/{campaign}/tables/{table}", params={"format": "arrow", **parameters})
    assert answer.status_code == 200, answer.text
    return read_table("arrow", answer.content, {})


def long_evidence() -> Evidence:
    """Many chunks, each of a few rows."""
    made = Evidence(devices=(simulated(),), chunk_rows=500)
    made.request(0, 0.0, [0.001 * (index + 1) for index in range(20_000)])
    made.power([0.1 * index for index in range(10)], watts=lambda _: 50.0)
    return made


async def test_requests_have_their_latencies(
    api: httpx.AsyncClient, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"monotonic_ns": EPOCH_NS, "utc": "2026-03-01T09:30:00.000000000Z", "uncertainty_ns": 1}
    monkeypatch.setitem(factories.worker.ENVIRONMENT, "clock", clock)
    campaign = (await submit(api))["id"]
    made = plain_evidence()
    made.request(1, 0.5, [1.0, 1.5, 2.5], scheduled=0.75, cached=4)
    made.request(2, 1.0, error="no memory")
    attempt = await (await FakeWorker(api).ready()).whole_attempt(made)
    before = {row["request_id"]: row for row in await rows(api, campaign, "requests")}
    assert (before[1]["arrival_ns"], before[1]["verdict"], before[1]["ttft_s"]) == (None, None, 0.5)
    await store_aggregate(engine, attempt.run_id, attempt.attempt_id, result_json())
    found = {row["request_id"]: row for row in await rows(api, campaign, "requests")}
    one, failed = found[1], found[2]
    assert (one["status"], one["finish_reason"], one["verdict"]) == ("finished", "length", "valid")
    assert (one["arrival_ns"], one["first_token_ns"], one["last_token_ns"]) == (500_000_000, 10**9, 2_500_000_000)
    assert (one["queue_s"], one["ttft_s"], one["itl_mean_s"], one["e2e_s"]) == (0.25, 0.5, 0.75, 2.0)
    assert (one["cached_prompt_tokens"], one["arrival_clock_ns"]) == (4, EPOCH_NS + 500_000_000)
    assert one["arrival_utc"] - 1_772_357_400 * 10**9 == 500_000_000
    assert (failed["status"], failed["error"], failed["e2e_s"]) == ("failed", "no memory", None)


async def test_the_values_of_the_other_tables(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    campaign = (await submit(api, execution={"cycles": 2}))["id"]
    worker = await FakeWorker(api).ready()
    made = plain_evidence(watts=-2.5)
    made.host_power("package", [1.0], joules=lambda _: 30.5, method="counter")
    first = await worker.whole_attempt(made)
    await store_aggregate(engine, first.run_id, first.attempt_id, result_json())
    failing = await worker.started()
    await worker.send(failing.attempt_id, plain_evidence(seconds=1))
    await worker.end(failing.attempt_id)

    power = await rows(api, campaign, "power")
    assert {(row["run_id"], row["run_state"]) for row in power} == {
        (first.run_id, "aggregated"),
        (failing.run_id, "failed"),
    }
    assert (power[0]["device_uuid"], power[0]["device_name"]) == (worker.uuids[0], "Simulated device")
    assert (power[0]["power_w"], power[0]["time_ns"], power[0]["time_utc"]) == (-2.5, -(10**9), None)
    [host] = await rows(api, campaign, "host_power")
    assert (host["domain"], host["energy_counter_j"], host["power_w"], host["process"]) == (
        "package",
        30.5,
        None,
        "sampler",
    )
    assert [row["index"] for row in await rows(api, campaign, "tokens")] == [*range(16), *range(4)]

    done, failed = await rows(api, campaign, "runs")
    stored = (await api.get(f"/api/v1/runs/{first.run_id}/aggregate")).json()
    assert done["energy.total_j"] == stored["energy"]["total"]["joules"]
    assert done["energy.total_bound_j"] == stored["energy"]["total"]["bound_j"]
    relative = done["energy.total_bound_j"] / done["energy.total_j"]
    per_token = done["efficiency.energy_per_output_token_j"]
    assert done["efficiency.energy_per_output_token_bound_j"] == pytest.approx(relative * per_token)
    assert done["speed.ttft_ms.p99"] == stored["speed"]["ttft_ms"]["p99"]
    assert (done["energy.dram_j"], bool(done["energy.dram_reason"])) == (None, True)
    assert (failed["energy.total_j"], failed["failure_reason"]) == (None, "inference")
    [energy] = [row for row in await rows(api, campaign, "experiments") if row["metric"] == "energy.total"]
    assert (energy["n"], energy["cycles"], energy["mean"]) == (1, 2, done["energy.total_j"])
    assert (energy["interval_low"], energy["interval_reason"]) == (None, "too_few_cycles")
    assert await rows(api, campaign, "runs", method="m1") != [done, failed]


async def test_experiments_have_the_interval_of_their_mean(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    campaign = (await submit(api, execution={"cycles": 3}))["id"]
    for run, watts in zip(await run_ids(api, {"id": campaign}), (99.0, 100.0, 101.0), strict=True):
        await store_aggregate(engine, run, await complete(engine, run), result_json(watts))
    [power] = [row for row in await rows(api, campaign, "experiments") if row["metric"] == "energy.mean_power_w"]
    half = 4.302652729911275 * 1.0 / 3**0.5  # Student's t with 2 degrees of freedom
    assert (power["interval_low"], power["interval_high"]) == (
        pytest.approx(100 - half, rel=1e-3),
        pytest.approx(100 + half, rel=1e-3),
    )
    assert (power["n"], power["interval_method"], power["interval_reason"]) == (3, "student_t", None)


async def test_a_campaign_that_runs_has_the_rows_so_far(api: httpx.AsyncClient) -> None:
    campaign = (await submit(api, execution={"cycles": 2}))["id"]
    worker = await FakeWorker(api).ready()
    live = await worker.started()
    chunk = next(one for one in plain_evidence().chunks() if one.stream is StreamName.TOKENS)
    assert (await worker.put_chunk(live.attempt_id, chunk)).status_code == 201
    answer = await api.get(f"/api/v1/campaigns/{campaign}/tables/tokens", params={"format": "json"})
    assert answer.headers[OPEN_RUNS_HEADER] == answer.json()["open_runs"] == "2"
    assert {row["run_state"] for row in answer.json()["rows"]} == {"running"}
    assert [row["run_state"] for row in await rows(api, campaign, "runs")] == ["running", "queued"]


async def test_a_run_that_is_queued_again_has_no_rows(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    campaign = await submit(api)
    worker = await FakeWorker(api).ready()
    failing = await worker.started()
    await worker.send(failing.attempt_id, plain_evidence())
    await worker.end(failing.attempt_id)
    assert len(await rows(api, campaign["id"], "tokens")) == 16
    await move(engine, failing.run_id, "queued", actor=ActorKind.USER)
    assert await rows(api, campaign["id"], "tokens") == []
    [run] = await rows(api, campaign["id"], "runs")
    assert (run["run_state"], run["attempt_id"], run["failure_reason"]) == ("queued", None, None)


async def test_swept_values_of_mixed_types_are_text(api: httpx.AsyncClient) -> None:
    sweep: dict[str, list[Any]] = {
        "output.max_tokens": [1, 8],
        "prompts.chat_template": [True, False],
        "window.min_duration_s": [1, 2.5],
        "traffic.slo": [None, {"ttft_ms": 200}],
    }
    campaign = (await submit(api, sweep=sweep))["id"]
    found = await rows(api, campaign, "runs")
    for key, values in sweep.items():
        shown = {'{"ttft_ms":200}', None} if key == "traffic.slo" else set(values)
        assert {row[f"sweep.{key}"] for row in found} == shown


async def test_what_does_not_exist_is_refused(api: httpx.AsyncClient) -> None:
    campaign = (await submit(api))["id"]
    for path, pointer in (("tables/prices", "/path/table"), ("tables/runs?format=xlsx", "/query/format")):
        answer = await api.get(f"/api/v1/campaigns/{campaign}/{path}")
        assert answer.status_code == 422
        assert [one["pointer"] for one in answer.json()["errors"]] == [pointer]
    answer = await api.get(f"/api/v1/campaigns/cmp_{'0' * 32}/tables/runs")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def _damage(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("RESET ROLE"))
        await connection.execute(text("SET LOCAL session_replication_role = replica"))
        await connection.execute(text(statement))


async def test_evidence_that_is_missing_or_damaged_at_the_begin_is_a_problem(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    campaign = (await submit(api))["id"]
    await (await FakeWorker(api).ready()).whole_attempt(plain_evidence(chunk_rows=5))
    path = f"/api/v1/campaigns/{campaign}/tables/tokens"
    assert (await api.get(path)).status_code == 200
    await _damage(engine, "UPDATE chunks SET body = set_byte(body, 0, 0) WHERE stream = 'tokens' AND seq = 1")
    answer = await api.get(path)
    assert (answer.status_code, answer.json()["code"]) == (409, "evidence_corrupt")
    await _damage(engine, "DELETE FROM chunks WHERE stream = 'tokens' AND seq = 1")
    answer = await api.get(path)
    assert (answer.status_code, answer.json()["code"]) == (409, "evidence_missing")
    # The other tables need none of it.
    assert len(await rows(api, campaign, "requests")) == 1


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ("UPDATE chunks SET body = set_byte(body, 0, 0)", ProblemCode.EVIDENCE_CORRUPT),
        ("UPDATE chunks SET rows = rows + 1", ProblemCode.EVIDENCE_INVALID),
    ],
)
async def test_evidence_that_is_damaged_later_ends_the_document_without_its_end(
    api: httpx.AsyncClient, engine: AsyncEngine, damage: str, code: ProblemCode
) -> None:
    campaign = parse_id(IdKind.CAMPAIGN, (await submit(api))["id"])
    await (await FakeWorker(api).ready()).whole_attempt(long_evidence())
    await _damage(engine, f"{damage} WHERE stream = 'tokens' AND seq = 39")
    for form in (TableFormat.CSV, TableFormat.JSON):
        received = b""
        with pytest.raises(ProblemError) as caught:
            async for piece in await _pieces(engine, campaign, form):
                received += piece
        assert caught.value.code is code
        assert received
        assert not received.endswith(b"]}\n")


async def _pieces(engine: AsyncEngine, campaign: UUID, form: TableFormat) -> Any:
    prepared = await table_export.prepare(engine, campaign, TableName.TOKENS, None)
    return table_export.pieces(engine, prepared, form)


async def test_a_slow_client_is_waited_for_and_a_client_that_leaves_ends_the_work(
    app: FastAPI, api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = (await submit(api))["id"]
    await (await FakeWorker(api).ready()).whole_attempt(long_evidence())
    bodies, taken, left, began = [], [], asyncio.Event(), asyncio.Event()
    original = reading.next_body

    async def counted(*arguments: Any) -> Any:
        bodies.append(arguments)
        return await original(*arguments)

    async def receive() -> MutableMapping[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            taken.append(message)
            began.set()
            await asyncio.Event().wait()  # it takes one piece and then none

    monkeypatch.setattr(reading, "next_body", counted)
    request = api.build_request("GET", f"/api/v1/campaigns/{campaign}/tables/tokens", params={"format": "jsonl"})
    scope: MutableMapping[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},  # uvicorn's
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": request.url.path,
        "raw_path": request.url.raw_path,
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }
    async with anyio.create_task_group() as group:
        group.start_soon(app, scope, receive, send)
        await began.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert 0 < len(bodies) < 10  # of 40
        assert app.state.context.engine.pool.checkedout() == 0
        left.set()
    assert len(bodies) < 10
    assert len(taken) == 1
    assert app.state.context.engine.pool.checkedout() == 0


async def test_the_worker_clock_may_be_anything(api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for clock in (
        None,
        [],
        "x",
        {},
        {"utc": 5, "monotonic_ns": 1},
        {"utc": "2026-03-01T09:30:00.1Z", "monotonic_ns": 2**80},
    ):
        monkeypatch.setitem(factories.worker.ENVIRONMENT, "clock", clock)
        campaign = (await submit(api))["id"]
        await (await FakeWorker(api).ready()).whole_attempt()
        assert {row["time_utc"] for row in await rows(api, campaign, "tokens")} == {None}
        assert len(await run_ids(api, {"id": campaign})) == 1
