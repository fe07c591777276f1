"""Two applications on one database, each with its own pool, hub and maintenance: together they are one server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import run_ids, submit
from factories.worker import FakeWorker, plain_evidence
from lem_domain.evidence.streams import SAMPLER
from lem_domain.ids import IdKind, parse_id
from lem_domain.wire.campaigns import CampaignView
from lem_server.access.service import OWNER_TOKEN_FILE
from lem_server.app import create_app
from lem_server.attempts.service import end_expired
from lem_server.context import AppContext
from lem_server.database import listener
from lem_server.database.listener import APPLICATION_NAME, Hub
from lem_server.events import stream
from lem_server.events.queries import Followed
from lem_server.events.stream import BEGINNING, follow
from lem_server.leases.service import mark_suspects
from lem_server.settings import LeaseTerms, Settings

pytestmark = pytest.mark.anyio

LONG_S = 600.0
NEVER_S = 10_000.0


@dataclass
class Waits:
    """The long polls of a server that found nothing at first."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    rang: list[bool] = field(default_factory=list)
    """Of each wait that ended, whether a notification ended it."""


@dataclass
class Replica:
    """One of the applications and a client of it."""

    app: FastAPI
    api: httpx.AsyncClient
    listener_pid: int

    @property
    def context(self) -> AppContext:
        """What its requests use."""
        found: AppContext = self.app.state.context
        return found

    @property
    def hub(self) -> Hub:
        """What wakes those who wait here."""
        return self.context.hub

    def watch_waits(self, monkeypatch: pytest.MonkeyPatch) -> Waits:
        """Watch the long polls of this server from now on."""
        seen = Waits()
        wait_for_queue = self.hub.wait_for_queue

        async def noting(ticket: int, timeout_s: float) -> bool:
            seen.begun.set()
            rang = await wait_for_queue(ticket, timeout_s)
            seen.rang.append(rang)
            return rang

        monkeypatch.setattr(self.hub, "wait_for_queue", noting)
        return seen


def through(worker: FakeWorker, replica: Replica) -> FakeWorker:
    """The same boot of the same worker, over another server."""
    return replace(worker, api=replica.api)


async def listeners(engine: AsyncEngine) -> set[int]:
    """Processes of the database that serve a listening connection."""
    async with engine.connect() as connection:
        await connection.execute(text("SET LOCAL ROLE NONE"))
        found = await connection.execute(
            text("SELECT pid FROM pg_stat_activity WHERE application_name = :name AND datname = current_database()"),
            {"name": APPLICATION_NAME},
        )
        return set(found.scalars())


@pytest.fixture
def terms() -> LeaseTerms:
    """Lease terms of both; override this fixture for others."""
    return LeaseTerms(ttl_s=60, grace_s=300, heartbeat_interval_s=15)


@contextlib.asynccontextmanager
async def running(
    database_url: URL, engine: AsyncEngine, folder: Path, terms: LeaseTerms, token: str | None = None
) -> AsyncIterator[Replica]:
    settings = Settings(
        data_dir=folder,
        trusted_hosts=("testserver",),
        lease_ttl_s=terms.ttl_s,
        lease_grace_s=terms.grace_s,
        beat_interval_s=terms.heartbeat_interval_s,
    )
    app = create_app(settings, database_url)
    before = await listeners(engine)
    async with app.router.lifespan_context(app):
        await app.state.context.hub.listener.connected.wait()
        [pid] = await listeners(engine) - before
        token = token or (folder / OWNER_TOKEN_FILE).read_text().strip()
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers) as api:
            yield Replica(app, api, pid)


@pytest.fixture
async def one(database_url: URL, engine: AsyncEngine, tmp_path: Path, terms: LeaseTerms) -> AsyncIterator[Replica]:
    """The first server."""
    async with running(database_url, engine, tmp_path / "one", terms) as replica:
        yield replica


@pytest.fixture
async def other(
    one: Replica, database_url: URL, engine: AsyncEngine, tmp_path: Path, terms: LeaseTerms
) -> AsyncIterator[Replica]:
    """The second, which takes the token that the first one made."""
    token = one.api.headers["Authorization"].removeprefix("Bearer ")
    async with running(database_url, engine, tmp_path / "other", terms, token) as replica:
        yield replica


async def fetch(engine: AsyncEngine, query: str) -> list[Any]:
    async with engine.connect() as connection:
        return list((await connection.execute(text(query))).all())


# --- claims -----------------------------------------------------------------------------------------------------------


async def test_each_run_is_claimed_once_whichever_server_is_asked(one: Replica, other: Replica) -> None:
    campaign = await submit(one.api, execution={"cycles": 9})
    workers = [await FakeWorker(replica.api).ready() for _ in range(6) for replica in (one, other)]
    answers = await asyncio.gather(*(worker.claim() for worker in workers))
    claimed = [answer.json()["run_id"] for answer in answers if answer.status_code == 200]
    assert sorted(claimed) == sorted(await run_ids(other.api, campaign))
    assert [answer.status_code for answer in answers].count(204) == 3


async def test_a_claim_sent_to_both_servers_at_once_makes_one_attempt(
    one: Replica, other: Replica, engine: AsyncEngine
) -> None:
    await submit(one.api, execution={"cycles": 8})
    worker = await FakeWorker(one.api, devices=4).ready()
    claim_id = uuid4()
    answers = await asyncio.gather(
        *(through(worker, replica).claim(claim_id=claim_id) for _ in range(4) for replica in (one, other))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert await fetch(engine, "SELECT count(*) FROM attempts") == [(1,)]


async def test_a_device_is_leased_once_over_both_servers(one: Replica, other: Replica, engine: AsyncEngine) -> None:
    await submit(one.api, execution={"cycles": 8})
    first = await FakeWorker(one.api).ready()
    twin = await FakeWorker(other.api, uuids=first.uuids).ready()
    answers = await asyncio.gather(*(worker.claim() for _ in range(3) for worker in (first, twin)))
    assert sorted(answer.status_code for answer in answers) == [200, *[204] * 5]
    assert await fetch(engine, "SELECT count(*) FROM device_leases") == [(1,)]


async def test_a_submission_at_one_wakes_a_long_poll_at_the_other(
    one: Replica, other: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "QUEUE_POLL_S", NEVER_S)
    worker = await FakeWorker(other.api).ready()
    waits = other.watch_waits(monkeypatch)
    claim = asyncio.create_task(worker.claim(wait_s=30))
    await waits.begun.wait()
    campaign = await submit(one.api)
    answer = await claim
    assert waits.rang == [True], "it was woken, and did not look by itself"
    assert (answer.status_code, answer.json()["campaign_id"]) == (200, campaign["id"])


async def test_a_cancel_at_one_reaches_the_worker_through_the_other(one: Replica, other: Replica) -> None:
    campaign = await submit(one.api)
    worker = await FakeWorker(other.api).ready()
    attempt = (await worker.started()).attempt_id
    assert (await one.api.post(f"/api/v1/campaigns/{campaign['id']}:cancel")).status_code == 200
    [verdict] = (await worker.beat(attempt)).json()["attempts"]
    assert verdict["verdict"] == "cancel"


async def test_a_token_that_one_revokes_is_refused_by_the_other_at_once(one: Replica, other: Replica) -> None:
    made = (await one.api.post("/api/v1/tokens", json={"name": "short lived"})).json()
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert (await other.api.get("/api/v1/campaigns", headers=headers)).status_code == 200
    assert (await one.api.delete(f"/api/v1/tokens/{made['id']}")).status_code == 204
    assert (await other.api.get("/api/v1/campaigns", headers=headers)).status_code == 401


# --- an attempt over both ---------------------------------------------------------------------------------------------


async def test_an_attempt_begun_through_one_is_completed_through_the_other(one: Replica, other: Replica) -> None:
    await submit(one.api)
    at_one = await FakeWorker(one.api).ready()
    at_other = through(at_one, other)
    attempt = (assignment := await at_one.claimed()).attempt_id
    assert (await at_other.start(attempt)).status_code == 200
    evidence = plain_evidence(chunk_rows=7)
    chunks = evidence.chunks()
    assert len(chunks) > 6
    for number, chunk in enumerate(chunks):
        sender = (at_one, at_other)[number % 2]
        assert (await sender.put_chunk(attempt, chunk)).status_code == 201
    repeated = [(await worker.put_chunk(attempt, chunks[0])).status_code for worker in (at_one, at_other)]
    assert repeated == [200, 200]
    for process, sender in zip(evidence.processes, (at_other, at_one), strict=True):
        answer = await sender.put_completion(attempt, process, chunks, evidence.summaries[process])
        assert answer.status_code == 201, answer.text
    answers = [await worker.complete(attempt, chunks, ("rank-0", SAMPLER)) for worker in (at_other, at_one)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content
    results = await asyncio.gather(
        *(replica.api.post(f"/api/v1/runs/{assignment.run_id}:aggregate") for replica in (one, other))
    )
    assert {answer.status_code for answer in results} == {200}, [answer.text for answer in results]
    assert len({answer.content for answer in results}) == 1
    run = (await one.api.get(f"/api/v1/runs/{assignment.run_id}")).json()
    assert (run["state"], run["attempts"]) == ("aggregated", 1)


async def test_the_same_submission_to_both_at_once_is_one_campaign(
    one: Replica, other: Replica, engine: AsyncEngine
) -> None:
    body = {"name": "twice", "experiment": {"backend": "simulated", "model": "m"}}
    answers = await asyncio.gather(
        *(
            replica.api.post("/api/v1/campaigns", json=body, headers={"Idempotency-Key": "one"})
            for replica in (one, other)
        )
    )
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    assert await fetch(engine, "SELECT count(*) FROM campaigns") == [(1,)]


# --- maintenance ------------------------------------------------------------------------------------------------------

_ENDED = """
    SELECT r.losses_left,
           (SELECT count(*) FROM run_transitions t WHERE t.run_id = r.id AND t.target = 'interrupted'),
           (SELECT count(*) FROM lease_events e WHERE e.run_id = r.id AND e.kind = 'suspect')
      FROM runs r ORDER BY r.id
"""


class Ended(NamedTuple):
    """What became of a run."""

    losses_left: int
    interruptions: int
    suspicions: int


def check_ended_once(found: list[Ended], count: int) -> None:
    """Each of so many runs lost one attempt, once. One that ended before anybody saw it late was never suspect."""
    assert [(run.losses_left, run.interruptions) for run in found] == [(2, 1)] * count
    assert max(run.suspicions for run in found) <= 1


async def lost_runs(replica: Replica, count: int) -> None:
    """Runs whose workers are not heard of again."""
    await submit(replica.api, execution={"cycles": count})
    workers = [await FakeWorker(replica.api).ready() for _ in range(count)]
    await asyncio.gather(*(worker.claimed() for worker in workers))


async def ended(engine: AsyncEngine) -> list[Ended]:
    return [Ended(*row) for row in await fetch(engine, _ENDED)]


async def until_ended(engine: AsyncEngine, count: int) -> list[Ended]:
    async with asyncio.timeout(LONG_S):
        while True:
            found = await ended(engine)
            if sum(run.interruptions > 0 for run in found) >= count:
                return found
            await asyncio.sleep(0.02)


class TestShortLeases:
    """Leases that last a moment, so that the maintenance of both servers finds them."""

    @pytest.fixture
    def terms(self) -> LeaseTerms:
        """About a second."""
        return LeaseTerms(ttl_s=1, grace_s=0.2, heartbeat_interval_s=0.1)

    async def test_maintenance_in_both_ends_each_expired_lease_once(
        self, one: Replica, other: Replica, engine: AsyncEngine
    ) -> None:
        await lost_runs(one, 8)
        check_ended_once(await until_ended(engine, 8), 8)
        assert await fetch(engine, "SELECT count(*) FROM attempts WHERE outcome = 'interrupted'") == [(8,)]
        assert await fetch(engine, "SELECT count(*) FROM leases") == [(0,)]

    async def test_the_one_that_stays_ends_the_leases_that_the_other_gave(
        self, one: Replica, database_url: URL, engine: AsyncEngine, tmp_path: Path, terms: LeaseTerms
    ) -> None:
        token = one.api.headers["Authorization"].removeprefix("Bearer ")
        async with running(database_url, engine, tmp_path / "leaving", terms, token) as leaving:
            await lost_runs(leaving, 2)
        check_ended_once(await until_ended(engine, 2), 2)


async def test_many_looks_at_once_end_each_lease_once(one: Replica, other: Replica, engine: AsyncEngine) -> None:
    await lost_runs(one, 6)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE leases SET until = now() - interval '1 hour'"))
    engines = [replica.context.engine for replica in (one, other)]
    terms = one.context.settings.lease_terms
    await asyncio.gather(
        *(look for one_of in engines * 3 for look in (mark_suspects(one_of), end_expired(one_of, terms)))
    )
    await asyncio.gather(*(mark_suspects(one_of) for one_of in engines))
    check_ended_once(await ended(engine), 6)


# --- events -----------------------------------------------------------------------------------------------------------


async def test_a_stream_of_one_sees_what_happens_at_the_other(
    one: Replica, other: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "POLL_S", NEVER_S)
    campaign = await submit(one.api)
    followed = Followed(parse_id(IdKind.CAMPAIGN, campaign["id"]))
    events = follow(other.context.engine, other.hub, other.context.settings.lease_terms, followed, BEGINNING)

    async def until(word: str) -> None:
        async with asyncio.timeout(LONG_S):
            while word not in ((await anext(events)).raw_data or ""):
                pass

    await until('"target":"queued"')
    worker = await FakeWorker(one.api).ready()
    attempt = (await worker.claimed()).attempt_id
    await until('"target":"initialised"')
    assert (await worker.start(attempt)).status_code == 200
    await until('"target":"running"')
    assert (await worker.end(attempt)).status_code == 200
    await until('"target":"failed"')
    await until('"settled":true')
    async with asyncio.timeout(LONG_S):
        assert [event async for event in events] == []


# --- a listener that is lost ------------------------------------------------------------------------------------------


async def test_while_the_listener_of_one_is_lost_its_long_polls_look_every_few_seconds_and_then_it_comes_back(
    one: Replica, other: Replica, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hears = other.hub.listener
    away = True
    listen = hears._listen

    async def refused_while_away() -> None:
        if away:
            raise ConnectionError("no connection for now")
        await listen()

    pauses: list[float] = []
    wait = other.hub._queue.wait

    async def noting(ticket: int, timeout_s: float) -> bool:
        pauses.append(timeout_s)
        return await wait(ticket, timeout_s)

    monkeypatch.setattr(listener, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(listener, "LAST_RETRY_S", 0.05)
    monkeypatch.setattr(hears, "_listen", refused_while_away)
    await end_process(engine, other.listener_pid)
    async with asyncio.timeout(LONG_S):
        while hears.connected.is_set():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    assert await listeners(engine) == {one.listener_pid}

    monkeypatch.setattr(other.hub._queue, "wait", noting)
    worker = await FakeWorker(other.api, devices=2).ready()
    waits = other.watch_waits(monkeypatch)
    claim = asyncio.create_task(worker.claim(wait_s=30))
    await waits.begun.wait()
    await submit(one.api)
    assert (await claim).status_code == 200
    assert waits.rang and not any(waits.rang), "nobody told it"
    assert not hears.connected.is_set()
    assert pauses and max(pauses) <= 6.0, "it looked again after so many seconds at the latest"

    away = False
    async with asyncio.timeout(LONG_S):
        await other.hub.listener.connected.wait()
    assert len(await listeners(engine)) == 2
    monkeypatch.setattr(listener, "QUEUE_POLL_S", NEVER_S)
    waits.begun.clear()
    waits.rang.clear()
    claim = asyncio.create_task(worker.claim(wait_s=30))
    await waits.begun.wait()
    await submit(one.api)
    assert (await claim).status_code == 200
    assert waits.rang == [True], "a notification woke it again"


async def end_process(engine: AsyncEngine, pid: int) -> None:
    """Close a connection from the database's side."""
    async with engine.connect() as connection:
        await connection.execute(text("SET LOCAL ROLE NONE"))
        assert (await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})).scalar_one()


async def test_what_both_say_of_a_campaign_is_the_same(one: Replica, other: Replica) -> None:
    campaign = await submit(one.api, execution={"cycles": 3})
    await (await FakeWorker(other.api).ready()).whole_attempt()
    for path in (f"/campaigns/{campaign['id']}", "/runs", "/workers", f"/campaigns/{campaign['id']}/results"):
        answers = [await replica.api.get(f"/api/v1{path}") for replica in (one, other)]
        assert answers[0].status_code == 200
        assert answers[0].content == answers[1].content, path
    assert CampaignView.model_validate((await other.api.get(f"/api/v1/campaigns/{campaign['id']}")).json())
