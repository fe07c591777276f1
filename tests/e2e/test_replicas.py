"""Two server processes on one PostgreSQL: one is killed in the middle of something, and no outcome changes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from factories.clusters import Cluster, ServerProcess
from factories.evidence import MadeChunk
from factories.runs import campaign_body, submit
from factories.worker import FakeWorker, plain_evidence, sha256_header
from lem_client import Client
from lem_domain.config.campaign import CampaignSpec
from lem_domain.evidence.streams import CHUNK_MEDIA_TYPE, SAMPLER, digest_of_digests
from lem_domain.ids import IdKind, parse_id
from lem_domain.states import RunState

pytestmark = pytest.mark.anyio

LONG_S = 600.0
DEVICE = ("SIM-0",)
"""Of runs that are compared with each other."""


@pytest.fixture
def lease_terms() -> dict[str, str]:
    """Settings of both servers' leases; none unless overridden."""
    return {}


@pytest.fixture
def cluster(lease_terms: dict[str, str]) -> Iterator[Cluster]:
    """Two servers, `one` and `two`, on one PostgreSQL."""
    made = Cluster(**lease_terms)
    try:
        made.start("one", "two")
        yield made
    finally:
        made.stop()


@pytest.fixture
def one(cluster: Cluster) -> ServerProcess:
    """The server that is killed."""
    return cluster.servers["one"]


@pytest.fixture
def two(cluster: Cluster) -> ServerProcess:
    """The server that stays."""
    return cluster.servers["two"]


@contextlib.asynccontextmanager
async def client_of(server: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {server.token_file.read_text().strip()}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=LONG_S, trust_env=False) as client:
        yield client


@pytest.fixture
async def at_one(one: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the one that is killed."""
    async with client_of(one) as client:
        yield client


@pytest.fixture
async def at_two(two: ServerProcess) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the one that stays."""
    async with client_of(two) as client:
        yield client


async def killed_while(
    server: ServerProcess, connection: asyncpg.Connection, lock: str, request: Coroutine[Any, Any, httpx.Response]
) -> None:
    """Send a request, kill its server while the request's transaction waits for a lock, and let go of the lock."""
    async with connection.transaction():
        await connection.fetch(lock)
        sent = asyncio.create_task(request)
        async with asyncio.timeout(LONG_S):
            while not await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            ):
                assert not sent.done(), (await sent).text
                # Inside a transaction the view is a snapshot unless it is cleared.
                await connection.execute("SELECT pg_stat_clear_snapshot()")
        server.kill()
        with pytest.raises(httpx.TransportError):
            await sent


async def check_evidence(api: httpx.AsyncClient, attempt: str, chunks: list[MadeChunk]) -> None:
    """What is stored is what was sent, byte for byte, and nothing besides."""
    streams = (await api.get(f"/api/v1/attempts/{attempt}/streams")).json()["items"]
    stored = {
        (one["process"], one["stream"], chunk["seq"]): chunk["sha256"] for one in streams for chunk in one["chunks"]
    }
    sent = {(chunk.process, chunk.stream.value, chunk.seq): hashlib.sha256(chunk.body).hexdigest() for chunk in chunks}
    assert stored == sent
    for chunk in chunks:
        place = f"processes/{chunk.process}/streams/{chunk.stream.value}/chunks/{chunk.seq}"
        assert (await api.get(f"/api/v1/attempts/{attempt}/{place}")).content == chunk.body


async def aggregate(api: httpx.AsyncClient, run: str) -> bytes:
    answer = await api.post(f"/api/v1/runs/{run}:aggregate")
    assert answer.status_code == 200, answer.text
    return answer.content


async def undisturbed(api: httpx.AsyncClient) -> dict[str, Any]:
    """The aggregate of the same evidence, of a run during which nothing happened."""
    await submit(api, name="undisturbed", priority=9)
    assignment = await (await FakeWorker(api, uuids=DEVICE).ready()).whole_attempt(plain_evidence(chunk_rows=7))
    result: dict[str, Any] = httpx.Response(200, content=await aggregate(api, assignment.run_id)).json()
    return without_ids(result)


def without_ids(result: dict[str, Any]) -> dict[str, Any]:
    """The ids are among the inputs, so their digest goes with them."""
    return {name: value for name, value in result.items() if name not in ("run_id", "attempt_id", "inputs_sha256")}


async def run_of(api: httpx.AsyncClient, run: str) -> tuple[str, int]:
    view = (await api.get(f"/api/v1/runs/{run}")).json()
    return view["state"], view["attempts"]


# --- killed in the middle of a request --------------------------------------------------------------------------------


async def test_the_owners_token_of_either_server_is_good_at_both(
    one: ServerProcess, two: ServerProcess, at_one: httpx.AsyncClient, at_two: httpx.AsyncClient
) -> None:
    for server in (one, two):
        headers = {"Authorization": f"Bearer {server.token_file.read_text().strip()}"}
        for client in (at_one, at_two):
            assert (await client.get("/api/v1/tokens", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "moment", [pytest.param("half of the body is sent", marks=pytest.mark.slow), "the transaction is open"]
)
async def test_a_server_killed_in_the_middle_of_an_upload(
    cluster: Cluster, one: ServerProcess, at_one: httpx.AsyncClient, at_two: httpx.AsyncClient, moment: str
) -> None:
    expected = await undisturbed(at_two)
    await submit(at_one)
    first = await FakeWorker(at_one, uuids=DEVICE).ready()
    second = replace(first, api=at_two)
    assignment = await first.started()
    attempt = assignment.attempt_id
    evidence = plain_evidence(chunk_rows=7)
    chunks = evidence.chunks()
    middle = len(chunks) // 2
    for number, chunk in enumerate(chunks[:middle]):
        assert (await (first, second)[number % 2].put_chunk(attempt, chunk)).status_code == 201
    if moment == "the transaction is open":
        async with cluster.database() as connection:
            lock = "SELECT 1 FROM leases FOR UPDATE"
            await killed_while(one, connection, lock, first.put_chunk(attempt, chunks[middle]))
    else:
        await killed_during_body(one, first, attempt, chunks[middle])
    for chunk in chunks[middle:]:
        answer = await second.put_chunk(attempt, chunk)
        assert answer.status_code == 201, answer.text
    for process in evidence.processes:
        answer = await second.put_completion(attempt, process, chunks, evidence.summaries[process])
        assert answer.status_code == 201, answer.text
    assert (await second.complete(attempt, chunks, ("rank-0", SAMPLER))).status_code == 200
    assert await run_of(at_two, assignment.run_id) == ("completed", 1)
    await check_evidence(at_two, attempt, chunks)
    body = await aggregate(at_two, assignment.run_id)
    assert without_ids(httpx.Response(200, content=body).json()) == expected
    one.start()
    assert await aggregate(at_one, assignment.run_id) == body


async def killed_during_body(server: ServerProcess, worker: FakeWorker, attempt: str, chunk: MadeChunk) -> None:
    """Half of a chunk's bytes are with the server when it is killed."""
    half_sent, killed = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield chunk.body[: len(chunk.body) // 2]
        half_sent.set()
        await killed.wait()
        yield chunk.body[len(chunk.body) // 2 :]

    sending = asyncio.create_task(
        worker.api.put(
            f"/api/v1/attempts/{attempt}/processes/{chunk.process}/streams/{chunk.stream.value}/chunks/{chunk.seq}",
            content=body(),
            headers={
                **worker.headers,
                "Content-Type": CHUNK_MEDIA_TYPE,
                "Content-Digest": sha256_header(chunk.body),
                "Content-Length": str(len(chunk.body)),
            },
        )
    )
    await half_sent.wait()
    server.kill()
    killed.set()
    with pytest.raises(httpx.TransportError):
        answer = await sending
        pytest.fail(f"a server that was killed answered {answer.status_code}: {answer.text}")


async def test_a_server_killed_while_it_verifies_a_manifest(
    cluster: Cluster, one: ServerProcess, at_one: httpx.AsyncClient, at_two: httpx.AsyncClient
) -> None:
    await submit(at_one)
    first = await FakeWorker(at_one).ready()
    assignment = await first.started()
    evidence = plain_evidence()
    chunks = await first.send(assignment.attempt_id, evidence)
    async with cluster.database() as connection:
        await killed_while(
            one, connection, "SELECT 1 FROM runs FOR UPDATE", first.complete(assignment.attempt_id, chunks)
        )
    assert await run_of(at_two, assignment.run_id) == ("running", 1)
    assert (await replace(first, api=at_two).complete(assignment.attempt_id, chunks)).status_code == 200
    assert await run_of(at_two, assignment.run_id) == ("completed", 1)


@pytest.mark.slow
async def test_a_server_killed_while_a_worker_waits_for_work(
    one: ServerProcess, at_one: httpx.AsyncClient, at_two: httpx.AsyncClient
) -> None:
    first = await FakeWorker(at_one).ready()
    second = replace(first, api=at_two)
    claim_id = uuid4()
    waiting = asyncio.create_task(first.claim(claim_id=claim_id, wait_s=30))
    # A second claim through the same server is answered, so the first is being served.
    assert (await first.claim()).status_code == 204
    assert not waiting.done()
    one.kill()
    with pytest.raises(httpx.TransportError):
        await waiting
    again = asyncio.create_task(second.claim(claim_id=claim_id, wait_s=30))
    await submit(at_two)
    answer = await again
    assert answer.status_code == 200, answer.text
    assert (await second.claim(claim_id=claim_id)).content == answer.content
    assert await run_of(at_two, answer.json()["run_id"]) == ("initialised", 1)


@pytest.mark.slow
async def test_a_server_killed_while_it_gives_a_run_away(
    cluster: Cluster, one: ServerProcess, at_one: httpx.AsyncClient, at_two: httpx.AsyncClient
) -> None:
    await submit(at_two)
    first = await FakeWorker(at_one).ready()
    claim_id = uuid4()
    async with cluster.database() as connection:
        # Its last statement but one: attempt and lease are written by then, and must not stay.
        lock = "LOCK TABLE device_leases IN EXCLUSIVE MODE"
        await killed_while(one, connection, lock, first.claim(claim_id=claim_id))
        answer = await replace(first, api=at_two).claim(claim_id=claim_id)
        assert answer.status_code == 200, answer.text
        for table in ("attempts", "leases", "device_leases"):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 1, table
    assert await run_of(at_two, answer.json()["run_id"]) == ("initialised", 1)


@pytest.mark.slow
async def test_a_server_killed_while_it_stores_a_campaign(
    cluster: Cluster, one: ServerProcess, at_one: httpx.AsyncClient, at_two: httpx.AsyncClient
) -> None:
    # Keys are a principal's own, so it is the same token at both.
    at_two.headers["Authorization"] = at_one.headers["Authorization"]
    headers = {"Idempotency-Key": "one"}
    body = campaign_body(execution={"cycles": 5})
    async with cluster.database() as connection:
        request = at_one.post("/api/v1/campaigns", json=body, headers=headers)
        await killed_while(one, connection, "LOCK TABLE runs IN EXCLUSIVE MODE", request)
        answer = await at_two.post("/api/v1/campaigns", json=body, headers=headers)
        assert answer.status_code == 201, answer.text
        counts = [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in ("campaigns", "runs")]
    assert counts == [1, 5]


async def test_a_server_killed_while_it_aggregates(
    cluster: Cluster, one: ServerProcess, at_one: httpx.AsyncClient, at_two: httpx.AsyncClient
) -> None:
    expected = await undisturbed(at_two)
    await submit(at_one)
    assignment = await (await FakeWorker(at_one, uuids=DEVICE).ready()).whole_attempt(plain_evidence(chunk_rows=7))
    run = parse_id(IdKind.RUN, assignment.run_id)
    async with cluster.database() as connection:
        request = at_one.post(f"/api/v1/runs/{assignment.run_id}:aggregate")
        await killed_while(one, connection, f"SELECT 1 FROM runs WHERE id = '{run}' FOR UPDATE", request)
        assert await run_of(at_two, assignment.run_id) == ("completed", 1)
        body = await aggregate(at_two, assignment.run_id)
        assert await connection.fetchval("SELECT count(*) FROM aggregates WHERE run_id = $1", run) == 1
    assert without_ids(httpx.Response(200, content=body).json()) == expected
    one.start()
    assert await aggregate(at_one, assignment.run_id) == body
    assert await run_of(at_one, assignment.run_id) == ("aggregated", 1)


# --- a worker that is lost together with its server -------------------------------------------------------------------


class TestShortLeases:
    """Leases that end within seconds."""

    @pytest.fixture
    def lease_terms(self) -> dict[str, str]:
        """A lease and its grace of two seconds each."""
        return {"LEM_LEASE_TTL_S": "2", "LEM_LEASE_GRACE_S": "2", "LEM_BEAT_INTERVAL_S": "0.5"}

    async def test_the_server_that_stays_gives_the_run_to_another_worker_once(
        self, one: ServerProcess, at_one: httpx.AsyncClient, at_two: httpx.AsyncClient
    ) -> None:
        await submit(at_one)
        lost = await (await FakeWorker(at_one).ready()).started()
        one.kill()
        heir = await FakeWorker(at_two).ready()
        answer = await heir.claim(wait_s=30)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["run_id"], answer.json()["number"]) == (lost.run_id, 2)
        told = (await at_two.get(f"/api/v1/runs/{lost.run_id}/transitions")).json()["items"]
        assert [one["target"] for one in told] == [
            "queued",
            "initialised",
            "running",
            "interrupted",
            "queued",
            "initialised",
        ]
        assert told[3]["reason"] == "worker_lost"


# --- real workers -----------------------------------------------------------------------------------------------------

RUNS = 5


def spec() -> CampaignSpec:
    return CampaignSpec.model_validate(
        {
            "name": "both servers die",
            "experiment": {
                "backend": "simulated",
                "model": "m",
                "prompts": {"sample_size": 4},
                "output": {"max_tokens": 8},
                "baseline": {"enabled": False},
                "window": {"min_duration_s": 3},
                "warmup": {"max_requests": 5, "power_slope": None},
            },
            "execution": {"cycles": RUNS, "placement": "any"},
        }
    )


def wait_until(client: Client, campaign: str, cluster: Cluster, *, live: bool = False, completed: int = 0) -> None:
    """Until so many runs are completed and, if asked for, another is being measured (unless none is left for that)."""
    deadline = time.monotonic() + LONG_S
    while True:
        states = [run.state for run in client.runs(campaign_id=campaign)]
        done = states.count(RunState.COMPLETED)
        if done >= completed and (not live or RunState.RUNNING in states or done == RUNS):
            return
        assert time.monotonic() < deadline, (states, cluster.logs())
        time.sleep(0.05)


@pytest.mark.slow
def test_real_workers_over_a_balancer_do_not_mind_that_one_server_after_the_other_is_killed(cluster: Cluster) -> None:
    one, two = cluster.servers.values()
    address = cluster.balancer()
    for name in ("worker-a", "worker-b"):
        cluster.start_worker(address, name)
    with one.client() as at_one, two.client() as at_two:
        campaign = at_one.submit(spec()).id
        wait_until(at_two, campaign, cluster, live=True)
        one.kill()
        wait_until(at_two, campaign, cluster, completed=1)
        one.start()
        wait_until(at_one, campaign, cluster, live=True, completed=1)
        two.kill()
        wait_until(at_one, campaign, cluster, completed=RUNS)
        two.start()
        for run in at_one.runs(campaign_id=campaign):
            assert (run.state, run.attempts) == (RunState.COMPLETED, 1), cluster.logs()
            assert [entry.target.value for entry in at_two.transitions(run.id)] == [
                "queued",
                "initialised",
                "running",
                "completed",
            ]
            check_stored(at_one, at_two, run.id)
            assert at_one.aggregate(run.id) == at_two.aggregate(run.id) == at_two.result(run.id)


def check_stored(at_one: Client, at_two: Client, run_id: str) -> None:
    """Both servers hold the same evidence, and it is what the manifest says, to the digest."""
    [attempt] = at_one.attempts(run_id)
    streams = list(at_one.streams(attempt.id))
    assert streams == list(at_two.streams(attempt.id))
    for stream in streams:
        assert [chunk.seq for chunk in stream.chunks] == list(range(len(stream.chunks)))
    stored = {(one.process, one.stream, digest_of_digests(chunk.sha256 for chunk in one.chunks)) for one in streams}
    assert stored == {(one.process, one.stream, one.sha256) for one in attempt.manifest or ()}
