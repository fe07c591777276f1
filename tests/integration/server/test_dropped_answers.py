"""Any request may be sent any number of times: each is answered, its answer gets lost, and it is sent again.

`CASES` has every endpoint that changes something; one that is not in it fails the first test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import campaign_body, run_ids, submit
from factories.worker import FakeWorker, plain_evidence
from lem_domain.bundle import MEDIA_TYPE
from lem_domain.evidence.streams import SAMPLER
from lem_domain.ids import IdKind, format_id
from lem_domain.prompt_sets import prompts_digest
from lem_domain.wire.access import TokenKind
from lem_domain.wire.workers import Assignment
from lem_server.access.tokens import digest
from lem_server.app import create_app
from lem_server.settings import Settings

pytestmark = pytest.mark.anyio

MUTATING = ("POST", "PUT", "DELETE", "PATCH")
MOVING: Mapping[str, frozenset[str]] = {
    "api_tokens": frozenset({"last_used_at"}),
    "workers": frozenset({"last_seen_at", "asked_at"}),
    "leases": frozenset({"until", "beat_at"}),
}
"""What every request may move: that somebody was heard of, and how long a beat's lease lasts. Nothing else."""

Dump = dict[str, list[dict[str, Any]]]


class DropsAnswers(httpx.AsyncBaseTransport):
    """Lets the application finish, keeps its answer, and tells the client that the connection broke."""

    def __init__(self, app: FastAPI) -> None:
        self._inner = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.dropped: httpx.Response | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request, to nobody."""
        answer = await self._inner.handle_async_request(request)
        await answer.aread()
        self.dropped = answer
        raise httpx.ReadError("the answer was dropped", request=request)


@dataclass
class World:
    """What a case may use to get to the point where its request makes sense."""

    api: httpx.AsyncClient
    engine: AsyncEngine
    campaigns: int = 0

    def request(self, method: str, path: str, **keys: Any) -> httpx.Request:
        """A request of the owner's."""
        return self.api.build_request(method, f"/api/v1{path}", **keys)

    async def worker(self, **submitted: Any) -> FakeWorker:
        """A worker, and a campaign that it takes its runs from first, as many at once as it has devices."""
        self.campaigns += 1
        await submit(self.api, priority=self.campaigns, **submitted)
        return await FakeWorker(self.api, devices=4).ready()

    async def noted(self, worker: FakeWorker, send: Callable[[FakeWorker], Awaitable[httpx.Response]]) -> httpx.Request:
        """The request that a worker would send."""
        seen: list[httpx.Request] = []

        def note(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return httpx.Response(200)

        transport = httpx.MockTransport(note)
        async with httpx.AsyncClient(
            transport=transport, base_url=self.api.base_url, headers=self.api.headers
        ) as client:
            await send(replace(worker, api=client))
        [request] = seen
        return request

    async def forget_campaigns(self) -> None:
        """As if none had ever been submitted here."""
        async with self.engine.begin() as connection:
            await connection.execute(text("SET LOCAL ROLE NONE"))
            await connection.execute(text("SET LOCAL session_replication_role = 'replica'"))  # the log is append-only
            await connection.execute(text("TRUNCATE campaigns, chunks, logs, process_results CASCADE"))

    async def ended(self, worker: FakeWorker) -> Assignment:
        """A run whose one attempt failed for good."""
        assignment = await worker.started()
        answer = await worker.end(assignment.attempt_id)
        assert answer.status_code == 200, answer.text
        return assignment


@dataclass(frozen=True)
class Case:
    """A request, and what may differ when it is sent again."""

    prepare: Callable[[World], Awaitable[httpx.Request]]
    again: int | None = None
    """The status of the second answer, where it is another."""
    differs: tuple[str, ...] = ()
    """Members of the answer that are others the second time."""
    moves: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Columns that change besides `MOVING`."""
    changes: bool = True
    """Whether the first request leaves anything in the tables."""


# --- what is sent -----------------------------------------------------------------------------------------------------


async def make_token(world: World) -> httpx.Request:
    body = {"name": "somebody", "expires_in_days": 7}
    return world.request("POST", "/tokens", json=body, headers={"Idempotency-Key": str(uuid4())})


async def revoke_token(world: World) -> httpx.Request:
    made = await world.api.post("/api/v1/tokens", json={"name": "somebody"})
    return world.request("DELETE", f"/tokens/{made.json()['id']}")


async def plan(world: World) -> httpx.Request:
    return world.request("POST", "/campaigns:plan", json=campaign_body())


async def submit_campaign(world: World) -> httpx.Request:
    body = campaign_body(execution={"cycles": 2})
    return world.request("POST", "/campaigns", json=body, headers={"Idempotency-Key": str(uuid4())})


def campaign_verb(verb: str, **body: Any) -> Callable[[World], Awaitable[httpx.Request]]:
    """A campaign with a live run and two that wait."""

    async def prepare(world: World) -> httpx.Request:
        worker = await world.worker(execution={"cycles": 3, "placement": "same_device"})
        campaign = (await worker.started()).campaign_id
        if verb == "resume":
            answer = await world.api.post(f"/api/v1/campaigns/{campaign}:pause", json={"live_runs": "stop"})
            assert answer.status_code == 200, answer.text
        return world.request("POST", f"/campaigns/{campaign}:{verb}", json=body or None)

    return prepare


async def import_bundle(world: World) -> httpx.Request:
    campaign = (await (await world.worker()).whole_attempt()).campaign_id
    exported = await world.api.get(f"/api/v1/campaigns/{campaign}/bundle")
    assert exported.status_code == 200, exported.text
    await world.forget_campaigns()
    return world.request("POST", "/campaigns:import", content=exported.content, headers={"Content-Type": MEDIA_TYPE})


async def retry_failed(world: World) -> httpx.Request:
    worker = await world.worker(execution={"cycles": 2})
    await world.ended(worker)
    campaign = (await world.ended(worker)).campaign_id
    return world.request("POST", f"/campaigns/{campaign}:retry_failed", headers={"Idempotency-Key": str(uuid4())})


def retry_run(*, key: bool) -> Callable[[World], Awaitable[httpx.Request]]:
    async def prepare(world: World) -> httpx.Request:
        run = (await world.ended(await world.worker())).run_id
        headers = {"Idempotency-Key": str(uuid4())} if key else {}
        return world.request("POST", f"/runs/{run}:retry", headers=headers)

    return prepare


async def cancel_queued_run(world: World) -> httpx.Request:
    [run] = await run_ids(world.api, await submit(world.api))
    return world.request("POST", f"/runs/{run}:cancel")


async def cancel_live_run(world: World) -> httpx.Request:
    return world.request("POST", f"/runs/{(await (await world.worker()).started()).run_id}:cancel")


async def aggregate(world: World) -> httpx.Request:
    return world.request("POST", f"/runs/{(await (await world.worker()).whole_attempt()).run_id}:aggregate")


async def aggregate_campaign(world: World) -> httpx.Request:
    run = (await (await world.worker()).whole_attempt()).run_id
    campaign = (await world.api.get(f"/api/v1/runs/{run}")).json()["campaign_id"]
    return world.request("POST", f"/campaigns/{campaign}:aggregate")


async def compare(world: World) -> httpx.Request:
    return world.request("POST", "/comparisons", json={"reference": await two_experiments(world)})


async def gate(world: World) -> httpx.Request:
    limits = [{"metric": "energy_per_output_token_j", "max_regression": 0.03}]
    return world.request("POST", "/gates", json={"reference": await two_experiments(world), "limits": limits})


async def two_experiments(world: World) -> str:
    body = campaign_body(sweep={"output.max_tokens": [8, 16]})
    found: str = (await world.api.post("/api/v1/campaigns", json=body)).json()["id"]
    return found


async def put_dataset(world: World) -> httpx.Request:
    prompts = [f"Prompt {uuid4()}"]
    return world.request("PUT", f"/datasets/{prompts_digest(prompts)}", json={"name": "my prompts", "prompts": prompts})


async def register(world: World) -> httpx.Request:
    return await world.noted(FakeWorker(world.api), FakeWorker.register)


async def register_next_boot(world: World) -> httpx.Request:
    worker = await world.worker()
    await worker.started()
    return await world.noted(worker.reboot(), FakeWorker.register)


async def drain(world: World) -> httpx.Request:
    return world.request("POST", f"/workers/{(await world.worker()).id}:drain")


async def sign_off_with_a_run(world: World) -> httpx.Request:
    worker = await world.worker()
    await worker.started()
    return await world.noted(worker, FakeWorker.sign_off)


async def claim(world: World) -> httpx.Request:
    return await world.noted(await world.worker(), FakeWorker.claim)


async def claim_nothing(world: World) -> httpx.Request:
    return await world.noted(await FakeWorker(world.api, backend="vllm").ready(), FakeWorker.claim)


async def beat(world: World) -> httpx.Request:
    worker = await world.worker()
    attempt = (await worker.started()).attempt_id
    progress = {"phase": "measure", "requests_done": 3}
    return await world.noted(worker, lambda one: one.beat(attempt, progress=progress))


async def start(world: World) -> httpx.Request:
    worker = await world.worker()
    attempt = (await worker.claimed()).attempt_id
    return await world.noted(worker, lambda one: one.start(attempt))


async def put_chunk(world: World) -> httpx.Request:
    worker = await world.worker()
    attempt = (await worker.started()).attempt_id
    return await world.noted(worker, lambda one: one.put_chunk(attempt, plain_evidence().chunks()[0]))


async def put_log(world: World) -> httpx.Request:
    worker = await world.worker()
    attempt = (await worker.started()).attempt_id
    return await world.noted(worker, lambda one: one.put_log(attempt, "some words"))


async def put_completion(world: World) -> httpx.Request:
    worker = await world.worker()
    attempt = (await worker.started()).attempt_id
    evidence = plain_evidence()
    summary = evidence.summaries["rank-0"]
    return await world.noted(worker, lambda one: one.put_completion(attempt, "rank-0", evidence.chunks(), summary))


async def complete(world: World) -> httpx.Request:
    worker = await world.worker()
    attempt = (await worker.started()).attempt_id
    evidence = plain_evidence()
    chunks = await worker.send(attempt, evidence)
    return await world.noted(worker, lambda one: one.complete(attempt, chunks, ("rank-0", SAMPLER)))


def end(outcome: str, reason: str) -> Callable[[World], Awaitable[httpx.Request]]:
    """A run that is queued again for its next attempt."""

    async def prepare(world: World) -> httpx.Request:
        worker = await world.worker(execution={"retries": 1})
        attempt = (await worker.started()).attempt_id
        return await world.noted(worker, lambda one: one.end(attempt, outcome, reason))

    return prepare


ATTEMPT = "/api/v1/attempts/{attempt_id}"
PROCESS = f"PUT {ATTEMPT}/processes/{{process}}"
_STORED: dict[str, Any] = {"again": 200, "differs": ("new",)}

CASES: dict[str, dict[str, Case]] = {
    "POST /api/v1/tokens": {
        "": Case(make_token, differs=("token",), moves={"api_tokens": frozenset({"sha256"})}),
    },
    "DELETE /api/v1/tokens/{token_id}": {"": Case(revoke_token)},
    "POST /api/v1/campaigns:plan": {"": Case(plan, changes=False)},
    "POST /api/v1/campaigns": {"": Case(submit_campaign)},
    "POST /api/v1/campaigns:import": {"": Case(import_bundle, again=200, differs=("new",))},
    "POST /api/v1/campaigns/{campaign_id}:pause": {
        "live runs finish": Case(campaign_verb("pause")),
        "live runs stop": Case(campaign_verb("pause", live_runs="stop")),
    },
    "POST /api/v1/campaigns/{campaign_id}:resume": {"": Case(campaign_verb("resume"))},
    "POST /api/v1/campaigns/{campaign_id}:place": {
        "as it was": Case(campaign_verb("place", placement=None)),
        "by another rule": Case(campaign_verb("place", placement="same_model")),
    },
    "POST /api/v1/campaigns/{campaign_id}:cancel": {"": Case(campaign_verb("cancel"))},
    # Aggregated runs are not aggregated a second time, so the second answer counts none.
    "POST /api/v1/campaigns/{campaign_id}:aggregate": {"": Case(aggregate_campaign, differs=("aggregated",))},
    "POST /api/v1/campaigns/{campaign_id}:retry_failed": {"": Case(retry_failed)},
    "POST /api/v1/runs/{run_id}:retry": {
        "with a key": Case(retry_run(key=True)),
        "without a key": Case(retry_run(key=False)),
    },
    "POST /api/v1/runs/{run_id}:cancel": {"queued": Case(cancel_queued_run), "live": Case(cancel_live_run)},
    "POST /api/v1/runs/{run_id}:aggregate": {"": Case(aggregate)},
    "POST /api/v1/comparisons": {"": Case(compare, changes=False)},
    "POST /api/v1/gates": {"": Case(gate, changes=False)},
    "PUT /api/v1/datasets/{sha256}": {"": Case(put_dataset, again=200)},
    "POST /api/v1/workers": {"new": Case(register), "next boot": Case(register_next_boot)},
    "POST /api/v1/workers/{worker_id}:drain": {"": Case(drain)},
    "POST /api/v1/workers/{worker_id}:sign_off": {
        "with a run": Case(sign_off_with_a_run),
    },
    "POST /api/v1/workers/{worker_id}/claims": {
        "a run": Case(claim),
        "nothing": Case(claim_nothing, changes=False),
    },
    "POST /api/v1/workers/{worker_id}/heartbeat": {"": Case(beat)},
    f"POST {ATTEMPT}:start": {"": Case(start)},
    f"POST {ATTEMPT}:complete": {"": Case(complete)},
    f"POST {ATTEMPT}:end": {
        "failed": Case(end("failed", "inference")),
        "interrupted": Case(end("interrupted", "worker_shutdown")),
        "cancelled": Case(end("cancelled", "user_cancelled")),
    },
    f"{PROCESS}/streams/{{stream}}/chunks/{{seq}}": {"": Case(put_chunk, **_STORED)},
    f"{PROCESS}/logs/{{seq}}": {"": Case(put_log, **_STORED)},
    f"{PROCESS}/completion": {"": Case(put_completion, **_STORED)},
}

STORES_NOTHING = {"POST /api/v1/runs/{run_id}:calibrate"}
"""Needs the evidence of a meter: tests/integration/server/test_calibration.py shows it."""

EACH = pytest.mark.parametrize(
    ("operation", "case"),
    [
        pytest.param(name, case, id=f"{name} {kind}".strip())
        for name, kinds in CASES.items()
        for kind, case in kinds.items()
    ],
)


# --- what is looked at ------------------------------------------------------------------------------------------------


async def dump(engine: AsyncEngine, moves: Mapping[str, frozenset[str]]) -> Dump:
    """Every row of every table, without the columns that may move."""
    tables = text("""
        SELECT relname FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
    """)
    found: Dump = {}
    async with engine.connect() as connection:
        await connection.execute(text("SET LOCAL ROLE NONE"))
        for table in sorted((await connection.execute(tables)).scalars()):
            rows = await connection.execute(text(f'SELECT to_jsonb(t) FROM "{table}" t ORDER BY to_jsonb(t)::text'))
            left_out = MOVING.get(table, frozenset()) | moves.get(table, frozenset())
            found[table] = [
                {name: value for name, value in row.items() if name not in left_out} for row in rows.scalars()
            ]
    assert len(found) > 15, "the dump sees every table"
    return found


def rows(found: Dump) -> dict[str, int]:
    return {table: len(content) for table, content in found.items()}


def answer_of(answer: httpx.Response, without: tuple[str, ...] = ()) -> tuple[str | None, Any]:
    """Where the thing is and what it is."""
    body: Any = answer.content
    if without:
        body = {name: value for name, value in answer.json().items() if name not in without}
    return answer.headers.get("location"), body


def check_again(case: Case, first: httpx.Response, second: httpx.Response) -> None:
    """The second answer is the first one, apart from what the case says."""
    assert second.status_code == (case.again or first.status_code), second.text
    assert answer_of(second, case.differs) == answer_of(first, case.differs)
    for name in case.differs:
        assert second.json()[name] != first.json()[name], name


def parameters_filled(operation: str) -> re.Pattern[str]:
    """What a request to an operation looks like."""
    return re.compile("[^/:]+".join(re.escape(part) for part in re.split(r"\{[^}]+\}", operation)))


@pytest.fixture
def world(api: httpx.AsyncClient, engine: AsyncEngine) -> World:
    """A server that nobody has asked for anything yet."""
    return World(api, engine)


@contextlib.asynccontextmanager
async def client_without_answers(app: FastAPI) -> AsyncIterator[tuple[httpx.AsyncClient, DropsAnswers]]:
    """A client that never hears back."""
    transport = DropsAnswers(app)
    async with httpx.AsyncClient(transport=transport) as client:
        yield client, transport


# --- every endpoint ---------------------------------------------------------------------------------------------------


def test_every_endpoint_that_changes_something_has_a_case(server_settings: Settings) -> None:
    made = create_app(server_settings, make_url("postgresql+asyncpg://nowhere/lem"))
    mutating = {
        f"{method} {context.path}"
        for context in iter_route_contexts(made.routes)
        if isinstance(context.original_route, APIRoute)
        for method in context.original_route.methods or ()
        if method in MUTATING
    }
    assert len(mutating) >= 23
    assert mutating == set(CASES) | STORES_NOTHING


@EACH
async def test_a_request_whose_answer_got_lost_is_sent_again_with_the_same_effect_and_answer(
    app: FastAPI, world: World, engine: AsyncEngine, operation: str, case: Case
) -> None:
    request = await case.prepare(world)
    assert parameters_filled(operation).fullmatch(f"{request.method} {request.url.path}"), request.url
    before = await dump(engine, case.moves)
    async with client_without_answers(app) as (client, transport):
        with pytest.raises(httpx.ReadError):
            await client.send(request)
    first = transport.dropped
    assert first is not None and first.is_success, first and first.text
    after_first = await dump(engine, case.moves)
    assert (after_first != before) is case.changes
    for _ in range(2):
        check_again(case, first, await world.api.send(request))
        assert await dump(engine, case.moves) == after_first


@EACH
async def test_the_same_request_twice_at_once_does_what_one_does(
    world: World, engine: AsyncEngine, operation: str, case: Case
) -> None:
    async def rows_added(*, copies: int) -> tuple[dict[str, int], httpx.Request, list[httpx.Response]]:
        request = await case.prepare(world)
        before = rows(await dump(engine, case.moves))
        answers = await asyncio.gather(*(world.api.send(request) for _ in range(copies)))
        after = rows(await dump(engine, case.moves))
        return {table: after[table] - before[table] for table in after}, request, answers

    added_by_one, _, [alone] = await rows_added(copies=1)
    added, request, answers = await rows_added(copies=2)
    assert added == added_by_one
    assert {answer.status_code for answer in answers} <= {alone.status_code, case.again or alone.status_code}
    assert len({str(answer_of(answer, case.differs)) for answer in answers}) == 1, [one.text for one in answers]
    settled = await dump(engine, case.moves)
    again = await world.api.send(request)
    assert (again.status_code, answer_of(again, case.differs)) == (
        case.again or alone.status_code,
        answer_of(answers[0], case.differs),
    )
    assert await dump(engine, case.moves) == settled


# --- over a real connection -------------------------------------------------------------------------------------------


class LosesFirstAnswer:
    """A TCP proxy that hands everything to the server and closes the first connection when its answer arrives."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.lost = b""

    async def serve(self) -> asyncio.Server:
        """Listen on a free port."""
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        sending = asyncio.create_task(self._copy(reader, up_writer))
        try:
            if not self.lost:
                self.lost = await up_reader.readuntil(b"\r\n\r\n")
                return
            await self._copy(up_reader, writer)
        finally:
            sending.cancel()
            for one in (up_writer, writer):
                one.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while some := await reader.read(65536):
                writer.write(some)
                await writer.drain()
            writer.write_eof()


@pytest.fixture
async def port(app: FastAPI) -> AsyncIterator[int]:
    """The application behind a real server, on this port."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    yield listening.getsockname()[1]
    server.should_exit = True
    await serving


@pytest.mark.parametrize(
    "operation",
    [
        "POST /api/v1/campaigns",
        "POST /api/v1/workers/{worker_id}/claims",
        f"{PROCESS}/streams/{{stream}}/chunks/{{seq}}",
        f"POST {ATTEMPT}:complete",
    ],
)
async def test_a_connection_that_breaks_before_the_answer_is_as_harmless(
    port: int, world: World, engine: AsyncEngine, operation: str
) -> None:
    case = next(iter(CASES[operation].values()))
    request = await case.prepare(world)
    proxy = LosesFirstAnswer(port)
    async with await proxy.serve() as listening, httpx.AsyncClient(trust_env=False) as client:
        # The same request, but to the proxy's address; the server goes by its Host header, which stays.
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=listening.sockets[0].getsockname()[1])
        with pytest.raises(httpx.RemoteProtocolError):
            await client.send(request)
        assert proxy.lost.startswith(b"HTTP/1.1 20"), proxy.lost
        after_first = await dump(engine, case.moves)
        answers = [await client.send(request) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [case.again or int(proxy.lost.split()[1])] * 2
        assert answers[0].content == answers[1].content
        assert await dump(engine, case.moves) == after_first


# --- tokens, whose secrets are never given twice ----------------------------------------------------------------------


async def valid_tokens(engine: AsyncEngine) -> list[tuple[str, bytes]]:
    async with engine.connect() as connection:
        found = await connection.execute(
            text("SELECT id, sha256 FROM api_tokens WHERE kind <> 'owner' AND revoked_at IS NULL ORDER BY id")
        )
        return [(format_id(IdKind.TOKEN, row.id), row.sha256) for row in found]


async def status_with(api: httpx.AsyncClient, token: str) -> int:
    answer = await api.get("/api/v1/campaigns", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code


async def test_a_token_whose_answer_got_lost_gets_a_new_secret_and_the_lost_one_stops_working(
    app: FastAPI, world: World, engine: AsyncEngine
) -> None:
    request = await make_token(world)
    async with client_without_answers(app) as (client, transport):
        with pytest.raises(httpx.ReadError):
            await client.send(request)
    assert transport.dropped is not None
    lost = transport.dropped.json()
    assert await status_with(world.api, lost["token"]) == 200
    answer = await world.api.send(request)
    assert answer.headers["cache-control"] == "no-store"
    got = answer.json()
    assert got["id"] == lost["id"]
    assert await valid_tokens(engine) == [(got["id"], digest(got["token"]))]
    assert (await status_with(world.api, lost["token"]), await status_with(world.api, got["token"])) == (401, 200)


async def test_the_stored_answer_of_a_token_has_no_secret_and_no_digest_of_one(
    world: World, engine: AsyncEngine
) -> None:
    made = (await world.api.send(await make_token(world))).json()
    async with engine.connect() as connection:
        kept = (await connection.execute(text("SELECT convert_from(body, 'UTF8') FROM idempotency_keys"))).scalar_one()
    assert json.loads(kept) == {name: value for name, value in made.items() if name != "token"}
    assert made["token"] not in kept and digest(made["token"]).hex() not in kept


async def test_many_copies_of_a_token_at_once_leave_one_token_and_one_secret_that_works(
    world: World, engine: AsyncEngine
) -> None:
    request = await make_token(world)
    answers = [answer.json() for answer in await asyncio.gather(*(world.api.send(request) for _ in range(6)))]
    assert len({answer["id"] for answer in answers}) == 1
    [(_, stored)] = await valid_tokens(engine)
    assert [digest(answer["token"]) for answer in answers].count(stored) == 1


async def test_a_token_that_was_revoked_meanwhile_does_not_come_back(world: World, engine: AsyncEngine) -> None:
    request = await make_token(world)
    made = (await world.api.send(request)).json()
    assert (await world.api.delete(f"/api/v1/tokens/{made['id']}")).status_code == 204
    answer = await world.api.send(request)
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert made["id"] in answer.json()["detail"] and "new key" in answer.json()["detail"]
    assert await valid_tokens(engine) == []


async def test_another_token_under_the_same_key_is_refused(world: World, engine: AsyncEngine) -> None:
    headers = {"Idempotency-Key": "one"}
    assert (await world.api.post("/api/v1/tokens", json={"name": "a"}, headers=headers)).status_code == 201
    answer = await world.api.post("/api/v1/tokens", json={"name": "b"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
    assert len(await valid_tokens(engine)) == 1


async def test_tokens_without_a_key_are_recreated_each_time(world: World, engine: AsyncEngine) -> None:
    for kind in (TokenKind.USER, TokenKind.CI):
        assert (await world.api.post("/api/v1/tokens", json={"name": "a", "kind": kind.value})).status_code == 201
    assert len(await valid_tokens(engine)) == 2


def test_the_document_says_which_answer_is_not_the_first_one_again(server_settings: Settings) -> None:
    made = create_app(server_settings, make_url("postgresql+asyncpg://nowhere/lem"))
    operation = made.openapi()["paths"]["/api/v1/tokens"]["post"]
    assert "Idempotency-Key" in operation["description"] and "new secret" in operation["description"]
    assert "Idempotency-Key" in {one["name"] for one in operation["parameters"]}
