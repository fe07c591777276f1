"""The lease protocol: who gets which run, who may still write to it, what becomes of runs that lost their worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.evidence import MadeChunk
from factories.runs import run_ids, submit
from factories.worker import FakeWorker, plain_evidence
from lem_domain.evidence.streams import SAMPLER
from lem_domain.ids import IdKind, parse_id
from lem_server.attempts.service import end_expired
from lem_server.database import listener
from lem_server.http.problems import ProblemError
from lem_server.leases.fence import FencedAttempt, lock_lease, require_boot, require_lease
from lem_server.settings import LeaseTerms

pytestmark = pytest.mark.anyio

TERMS = LeaseTerms(ttl_s=60, grace_s=300, heartbeat_interval_s=15)
PROGRESS = {"phase": "measure", "requests_done": 3}


async def run_of(api: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    view: dict[str, Any] = (await api.get(f"/api/v1/runs/{run_id}")).json()
    return view


async def state_of(api: httpx.AsyncClient, run_id: str) -> tuple[str, str | None]:
    run = await run_of(api, run_id)
    return run["state"], run["reason"]


async def transitions(api: httpx.AsyncClient, run_id: str) -> list[tuple[str, str, str | None]]:
    log = (await api.get(f"/api/v1/runs/{run_id}/transitions")).json()["items"]
    return [(one["target"], one["actor"], one["reason"]) for one in log]


async def one_run(api: httpx.AsyncClient, **keys: Any) -> str:
    (run,) = await run_ids(api, await submit(api, **keys))
    return run


async def budgets(engine: AsyncEngine, run_id: str) -> tuple[int, int]:
    """(retries left, losses left)."""
    async with engine.connect() as connection:
        row = await connection.execute(
            text("SELECT retries_left, losses_left FROM runs WHERE id = :id"), {"id": parse_id(IdKind.RUN, run_id)}
        )
        retries, losses = row.one()
        return retries, losses


async def age(engine: AsyncEngine, attempt: str, seconds: float) -> None:
    """The attempt's lease ended so long ago."""
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE leases SET until = now() - make_interval(secs => :seconds) WHERE attempt_id = :id"),
            {"seconds": seconds, "id": parse_id(IdKind.ATTEMPT, attempt)},
        )


async def held_of(engine: AsyncEngine, attempt: str) -> dict[str, Any]:
    """Everything that an attempt's endpoints could change."""
    sql = """
        SELECT r.state, r.version, r.reason, a.started_at, a.ended_at, a.outcome, a.manifest::text, a.environment::text,
               (SELECT count(*) FROM leases l WHERE l.attempt_id = a.id) AS leases,
               (SELECT count(*) FROM device_leases d WHERE d.attempt_id = a.id) AS device_leases,
               (SELECT count(*) FROM chunks c WHERE c.attempt_id = a.id) AS chunks,
               (SELECT count(*) FROM logs g WHERE g.attempt_id = a.id) AS logs,
               (SELECT count(*) FROM process_results p WHERE p.attempt_id = a.id) AS completions,
               (SELECT count(*) FROM run_transitions t WHERE t.run_id = r.id) AS transitions
          FROM attempts a JOIN runs r ON r.id = a.run_id WHERE a.id = :id
    """
    async with engine.connect() as connection:
        row = (await connection.execute(text(sql), {"id": parse_id(IdKind.ATTEMPT, attempt)})).one()
        return dict(row._mapping)


def code_of(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return str(answer.json()["code"])


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("priority", on="server")
async def test_runs_are_claimed_in_order(api: httpx.AsyncClient) -> None:
    later = await run_ids(api, await submit(api, execution={"cycles": 2}))
    sooner = await run_ids(api, await submit(api, priority=5))
    worker = await FakeWorker(api, devices=3).ready()
    claimed = []
    for device in worker.uuids:
        answer = await worker.claim(devices=[device])
        claimed.append(answer.json()["run_id"])
        assert answer.json()["devices"] == [device]
    assert claimed == [*sooner, *later]


async def test_a_claim_leaves_nothing_to_ask(api: httpx.AsyncClient) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    assignment = await worker.claimed()
    assert (assignment.run_id, assignment.number, assignment.cycle) == (run, 1, 1)
    assert assignment.devices == worker.uuids
    assert (assignment.lease_s, assignment.beat_interval_s) == (60, 15)
    shown = await run_of(api, run)
    assert (shown["state"], shown["attempts"], shown["current_attempt"]) == ("initialised", 1, assignment.attempt_id)
    seen = (await api.get(f"/api/v1/workers/{worker.id}")).json()
    assert (seen["current_attempts"], seen["current_runs"]) == ([assignment.attempt_id], [run])


async def test_there_may_be_nothing_to_do(api: httpx.AsyncClient) -> None:
    worker = await FakeWorker(api).ready()
    assert (await worker.claim()).status_code == 204


@pytest.mark.proves("backend", on="server")
async def test_a_worker_gets_runs_of_its_backend_only(api: httpx.AsyncClient) -> None:
    await one_run(api)
    worker = await FakeWorker(api, backend="pytorch").ready()
    assert (await worker.claim()).status_code == 204


async def test_the_same_claim_sent_again_gets_the_same_attempt(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await submit(api, execution={"cycles": 3})
    worker = await FakeWorker(api, devices=2).ready()
    claim_id = uuid4()
    answers = [await worker.claim(claim_id=claim_id) for _ in range(3)]
    assert len({answer.text for answer in answers}) == 1
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM attempts"))).scalar_one() == 1


@pytest.mark.parametrize("devices", [1, 4])
async def test_the_same_claim_sent_many_times_at_once_gets_the_same_attempt(
    api: httpx.AsyncClient, engine: AsyncEngine, devices: int
) -> None:
    await submit(api, execution={"cycles": 8})
    worker = await FakeWorker(api, devices=devices).ready()
    claim_id = uuid4()
    answers = await asyncio.gather(*(worker.claim(claim_id=claim_id) for _ in range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len({answer.text for answer in answers}) == 1
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM attempts"))).scalar_one() == 1


async def test_many_workers_that_claim_at_once_get_each_run_once(api: httpx.AsyncClient) -> None:
    runs = await run_ids(api, await submit(api, execution={"cycles": 6}))
    workers = [await FakeWorker(api).ready() for _ in range(8)]
    claimed: list[str] = []
    while len(claimed) < len(runs):
        answers = await asyncio.gather(*(worker.claim() for worker in workers))
        new = [answer.json()["run_id"] for answer in answers if answer.status_code == 200]
        assert new
        claimed += new
    assert sorted(claimed) == sorted(runs)


async def test_a_claim_whose_lease_has_ended_is_refused_with_the_reason(api: httpx.AsyncClient) -> None:
    await one_run(api)
    worker = await FakeWorker(api).ready()
    claim_id = uuid4()
    attempt = (await worker.claim(claim_id=claim_id)).json()["attempt_id"]
    await worker.end(attempt)
    assert code_of(await worker.claim(claim_id=claim_id)) == "lease_lost"


async def test_a_claim_that_waits_is_woken_by_a_submission(
    api: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await FakeWorker(api).ready()
    # Nobody looks again by himself within this test.
    monkeypatch.setattr(listener, "QUEUE_POLL_S", 3600.0)
    hub = app.state.context.hub
    await hub.listener.connected.wait()
    waiting, wait = asyncio.Event(), hub.wait_for_queue

    async def noted(*arguments: Any) -> Any:
        waiting.set()
        return await wait(*arguments)

    monkeypatch.setattr(hub, "wait_for_queue", noted)
    claim = asyncio.create_task(worker.claim(wait_s=30))
    await waiting.wait()
    run = await one_run(api)
    assert (await asyncio.wait_for(claim, 20)).json()["run_id"] == run


async def test_a_device_is_leased_once_however_many_workers_have_it(api: httpx.AsyncClient) -> None:
    await submit(api, execution={"cycles": 2})
    first = await FakeWorker(api, uuids=("SIM-shared",)).ready()
    second = await FakeWorker(api, uuids=("SIM-shared",)).ready()
    answers = await asyncio.gather(first.claim(), second.claim())
    assert sorted(answer.status_code for answer in answers) == [200, 204]
    holder, other = (first, second) if answers[0].status_code == 200 else (second, first)
    (attempt,) = (answer.json()["attempt_id"] for answer in answers if answer.status_code == 200)
    assert (await other.claim()).status_code == 204
    await holder.end(attempt)
    assert (await other.claim()).status_code == 200


@pytest.mark.proves("devices.count", on="server")
async def test_a_run_gets_as_many_devices_as_it_asks_for(api: httpx.AsyncClient) -> None:
    experiment = {"backend": "simulated", "model": "m", "devices": {"count": 2}}
    await submit(api, experiment=experiment, execution={"cycles": 2})
    small, large = await FakeWorker(api, devices=1).ready(), await FakeWorker(api, devices=3).ready()
    assert (await small.claim()).status_code == 204
    held = (await large.claimed()).devices
    assert len(set(held)) == 2
    assert set(held) < set(large.uuids)
    (left,) = set(large.uuids) - set(held)
    assert (await large.claim(devices=[left])).status_code == 204


async def test_a_worker_gets_only_its_own_devices(api: httpx.AsyncClient) -> None:
    await one_run(api)
    worker = await FakeWorker(api).ready()
    assert (await worker.claim(devices=["SIM-of-another"])).status_code == 204


async def test_a_draining_worker_gets_nothing(api: httpx.AsyncClient) -> None:
    await one_run(api)
    worker = await FakeWorker(api).ready()
    assert (await api.post(f"/api/v1/workers/{worker.id}:drain")).json()["state"] == "draining"
    assert (await worker.claim()).status_code == 204
    assert (await worker.beat()).json()["drain"] is True
    anew = await worker.reboot().ready()
    assert (await anew.claim()).status_code == 200


async def test_another_protocol_is_refused(api: httpx.AsyncClient) -> None:
    await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.claimed()).attempt_id
    worker.protocol = 2
    for answer in (
        await worker.register(),
        await worker.claim(),
        await worker.beat(attempt),
        await worker.start(attempt),
    ):
        assert (answer.status_code, code_of(answer)) == (426, "client_too_old")


async def test_an_unknown_boot_is_asked_to_register(api: httpx.AsyncClient) -> None:
    worker = FakeWorker(api)
    for answer in (await worker.claim(), await worker.beat(), await worker.sign_off()):
        assert (answer.status_code, code_of(answer)) == (409, "boot_superseded")
    await worker.register()
    await worker.reboot().register()
    for answer in (await worker.claim(), await worker.beat(), await worker.sign_off()):
        assert (answer.status_code, code_of(answer)) == (409, "boot_superseded")


# --- the fence --------------------------------------------------------------------------------------------------------

Write = Callable[[FakeWorker, str, list[MadeChunk]], Awaitable[httpx.Response]]

WRITES: dict[str, Write] = {
    "start": lambda worker, attempt, _: worker.start(attempt),
    "chunk": lambda worker, attempt, chunks: worker.put_chunk(attempt, chunks[-1]),
    "log": lambda worker, attempt, _: worker.put_log(attempt, "words"),
    "completion": lambda worker, attempt, chunks: worker.put_completion(attempt, SAMPLER, chunks),
    "complete": lambda worker, attempt, chunks: worker.complete(attempt, chunks),
    "end": lambda worker, attempt, _: worker.end(attempt),
}
writes = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


@writes
@pytest.mark.parametrize("started", [False, True])
async def test_only_the_holder_writes_to_an_attempt(
    api: httpx.AsyncClient, engine: AsyncEngine, write: Write, started: bool
) -> None:
    await one_run(api)
    holder = await FakeWorker(api).ready()
    attempt = (await (holder.started() if started else holder.claimed())).attempt_id
    chunks = plain_evidence().chunks()
    before = await held_of(engine, attempt)
    other_worker = await FakeWorker(api).ready()
    other_boot = holder.reboot()
    for stranger in (other_worker, other_boot):
        assert code_of(await write(stranger, attempt, chunks)) == "lease_lost"
    assert await held_of(engine, attempt) == before


@writes
async def test_a_worker_that_lost_its_lease_writes_nothing_any_more(
    api: httpx.AsyncClient, engine: AsyncEngine, write: Write
) -> None:
    await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    await age(engine, attempt, 301)
    assert await end_expired(engine, TERMS) == 1
    before = await held_of(engine, attempt)
    assert code_of(await write(worker, attempt, plain_evidence().chunks())) == "lease_lost"
    assert await held_of(engine, attempt) == before


@writes
async def test_a_closed_attempt_takes_nothing_more(api: httpx.AsyncClient, engine: AsyncEngine, write: Write) -> None:
    await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    await worker.end(attempt, "cancelled", "user_cancelled")
    before = await held_of(engine, attempt)
    answer = await write(worker, attempt, plain_evidence().chunks())
    assert await held_of(engine, attempt) == before
    assert code_of(answer) == "lease_lost"


async def test_the_end_of_another_workers_attempt_is_not_answered_as_ones_own(api: httpx.AsyncClient) -> None:
    await submit(api, execution={"cycles": 2})
    holder, stranger = await FakeWorker(api).ready(), await FakeWorker(api).ready()
    ended = (await holder.started()).attempt_id
    await holder.end(ended)
    assert code_of(await stranger.end(ended)) == "lease_lost"
    evidence = plain_evidence()
    completed = (await holder.whole_attempt(evidence)).attempt_id
    assert code_of(await stranger.complete(completed, evidence.chunks())) == "lease_lost"


# --- what becomes of a run whose worker is lost -----------------------------------------------------------------------


async def test_a_new_boot_ends_older_leases_at_once(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    await worker.started()
    anew = worker.reboot()
    assert (await anew.register()).status_code == 200
    shown = await run_of(api, run)
    assert (shown["state"], shown["reason"]) == ("queued", None)
    assert await budgets(engine, run) == (0, 2)
    assert (await transitions(api, run))[-2:] == [("interrupted", "server", "worker_lost"), ("queued", "server", None)]
    again = await anew.claimed()
    assert (again.run_id, again.number) == (run, 2)
    assert (await anew.register()).status_code == 200
    assert (await run_of(api, run))["state"] == "initialised", "the same boot announced again ends nothing"


async def test_a_late_announcement_of_an_older_boot_does_not_undo_the_newer_one(api: httpx.AsyncClient) -> None:
    run = await one_run(api)
    old = await FakeWorker(api).ready()
    new = await old.reboot().ready()
    attempt = (await new.claimed()).attempt_id
    refused = await old.register()
    assert (refused.status_code, code_of(refused)) == (409, "boot_superseded")
    assert (await new.beat(attempt)).json()["attempts"][0]["verdict"] == "ok"
    assert (await run_of(api, run))["state"] == "initialised"
    assert (await new.register()).status_code == 200, "its own announcement may be sent again"


async def test_a_run_that_keeps_losing_its_workers_is_quarantined(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    run = await one_run(api, execution={"retries": 2})
    worker = FakeWorker(api)
    for _ in range(4):
        worker = await worker.reboot().ready()
        await worker.claimed()
    worker = await worker.reboot().ready()
    assert await state_of(api, run) == ("failed", "worker_lost")
    assert await budgets(engine, run) == (2, 0)
    assert (await worker.claim()).status_code == 204


async def test_workers_that_shut_down_use_up_the_same_budget_and_the_run_says_what_the_last_one_did(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    """Whoever leaves in good order leaves a run behind all the same; each attempt keeps its own reason."""
    run = await one_run(api, execution={"retries": 2})
    for _ in range(4):
        worker = await FakeWorker(api).ready()
        await worker.claimed()
        assert (await worker.sign_off()).status_code == 204
    assert await state_of(api, run) == ("failed", "worker_lost")
    assert await budgets(engine, run) == (2, 0)
    attempts = (await api.get(f"/api/v1/runs/{run}/attempts")).json()["items"]
    assert [(one["outcome"], one["reason"]) for one in attempts] == [("interrupted", "worker_shutdown")] * 4
    last = (await api.get(f"/api/v1/runs/{run}/transitions")).json()["items"][-1]
    assert "4 attempts" in last["message"]
    assert "lemctl retry" in last["message"]


async def test_a_lease_that_ran_out_is_suspect_until_the_grace_is_over(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    await age(engine, attempt, 200)
    assert await end_expired(engine, TERMS) == 0
    assert (await worker.beat(attempt)).json()["attempts"] == [
        {"attempt_id": attempt, "verdict": "ok", "lease_s": 60.0}
    ]
    assert await end_expired(engine, TERMS._replace(grace_s=0)) == 0
    assert await state_of(api, run) == ("running", None)


async def test_a_lease_that_expired_gives_its_run_and_device_to_another(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    run = await one_run(api)
    lost = await FakeWorker(api, uuids=("SIM-shared",)).ready()
    attempt = (await lost.started()).attempt_id
    await age(engine, attempt, 301)
    assert sorted(await asyncio.gather(*(end_expired(engine, TERMS) for _ in range(4)))) == [0, 0, 0, 1]
    assert await state_of(api, run) == ("queued", None)
    assert await budgets(engine, run) == (0, 2)
    assert (await lost.beat(attempt)).json()["attempts"] == [
        {"attempt_id": attempt, "verdict": "lost", "lease_s": None}
    ]
    other = await FakeWorker(api, uuids=("SIM-shared",)).ready()
    assert (await other.claimed()).number == 2


@pytest.mark.proves("execution.retries", on="server")
async def test_a_failure_costs_a_retry_and_an_interruption_a_loss(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    run = await one_run(api, execution={"retries": 1})
    worker = await FakeWorker(api).ready()
    await worker.end((await worker.started()).attempt_id, "interrupted", "worker_shutdown")
    assert (await state_of(api, run), await budgets(engine, run)) == (("queued", None), (1, 2))
    await worker.end((await worker.started()).attempt_id, "failed", "out_of_memory")
    assert (await state_of(api, run), await budgets(engine, run)) == (("queued", None), (0, 2))
    await worker.end((await worker.claimed()).attempt_id, "failed", "backend_initialisation", "no such model")
    assert (await state_of(api, run), await budgets(engine, run)) == (("failed", "backend_initialisation"), (0, 2))
    assert (await run_of(api, run))["message"] == "no such model"


async def test_a_worker_that_leaves_gives_back_what_it_holds(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.claimed()).attempt_id
    for _ in range(2):
        assert (await worker.sign_off()).status_code == 204
        assert (await api.get(f"/api/v1/workers/{worker.id}")).json()["state"] == "offline"
        assert await state_of(api, run) == ("queued", None)
        assert await budgets(engine, run) == (0, 2)
    assert (await transitions(api, run))[-2:] == [
        ("interrupted", "worker", "worker_shutdown"),
        ("queued", "server", None),
    ]
    assert code_of(await worker.start(attempt)) == "lease_lost"


async def test_a_claim_that_outlives_its_worker_gets_nothing(api: httpx.AsyncClient) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    await worker.sign_off()
    assert code_of(await worker.claim()) == "boot_superseded"
    assert await state_of(api, run) == ("queued", None)
    assert (await api.get(f"/api/v1/workers/{worker.id}")).json()["state"] == "offline"
    await worker.register()
    assert (await worker.claim()).status_code == 200


# --- cancels ----------------------------------------------------------------------------------------------------------


async def test_the_cancel_of_a_live_run_reaches_its_worker_by_the_heartbeat(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    run = await one_run(api, execution={"retries": 3})
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    assert (await worker.beat(attempt, progress=PROGRESS)).json()["attempts"][0]["verdict"] == "ok"
    assert (await run_of(api, run))["progress"]["requests_done"] == 3
    assert (await api.post(f"/api/v1/runs/{run}:cancel")).json()["state"] == "running"
    assert (await worker.beat(attempt)).json()["attempts"][0]["verdict"] == "cancel"
    assert (await worker.put_chunk(attempt, plain_evidence().chunks()[0])).json() == {"new": True, "cancel": True}
    assert (await worker.end(attempt, "cancelled", "user_cancelled")).status_code == 200
    assert await state_of(api, run) == ("cancelled", "user_cancelled")
    assert await budgets(engine, run) == (3, 3)


async def test_a_run_whose_cancel_was_asked_for_does_not_start(api: httpx.AsyncClient) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.claimed()).attempt_id
    await api.post(f"/api/v1/runs/{run}:cancel")
    assert code_of(await worker.start(attempt)) == "conflict"
    assert await state_of(api, run) == ("initialised", None)


@pytest.mark.parametrize("what", ["run", "campaign"])
async def test_a_cancelled_run_is_not_queued_again_after_a_loss(
    api: httpx.AsyncClient, engine: AsyncEngine, what: str
) -> None:
    campaign = await submit(api)
    (run,) = await run_ids(api, campaign)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    await api.post(f"/api/v1/runs/{run}:cancel" if what == "run" else f"/api/v1/campaigns/{campaign['id']}:cancel")
    await age(engine, attempt, 301)
    assert await end_expired(engine, TERMS) == 1
    assert await state_of(api, run) == ("cancelled", "user_cancelled")
    assert (await transitions(api, run))[-1] == ("cancelled", "server", "user_cancelled")
    assert (await worker.claim()).status_code == 204


# --- the same request again -------------------------------------------------------------------------------------------


async def test_a_start_sent_again_has_the_same_answer(api: httpx.AsyncClient) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.claimed()).attempt_id
    answers = [await worker.start(attempt), *await asyncio.gather(*(worker.start(attempt) for _ in range(3)))]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.text for answer in answers}) == 1
    assert [entry[0] for entry in await transitions(api, run)] == ["queued", "initialised", "running"]


async def test_a_completion_sent_again_has_the_same_answer(api: httpx.AsyncClient) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    chunks = await worker.send(attempt, plain_evidence())
    answers = await asyncio.gather(*(worker.complete(attempt, chunks) for _ in range(4)))
    answers.append(await worker.complete(attempt, chunks[::-1]))
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["outcome"] == "completed"
    assert [entry[0] for entry in await transitions(api, run)] == ["queued", "initialised", "running", "completed"]
    assert code_of(await worker.complete(attempt, chunks[:-1])) == "attempt_closed"
    assert code_of(await worker.end(attempt)) == "attempt_closed"


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [("failed", "inference"), ("interrupted", "worker_shutdown"), ("cancelled", "user_cancelled")],
)
async def test_an_end_sent_again_has_the_same_answer(
    api: httpx.AsyncClient, engine: AsyncEngine, outcome: str, reason: str
) -> None:
    run = await one_run(api, execution={"retries": 5})
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    answers = await asyncio.gather(*(worker.end(attempt, outcome, reason) for _ in range(4)))
    left, log = await budgets(engine, run), await transitions(api, run)
    answers.append(await worker.end(attempt, outcome, reason))
    assert [answer.status_code for answer in answers] == [200] * 5
    assert len({answer.text for answer in answers}) == 1
    assert (await budgets(engine, run), await transitions(api, run)) == (left, log)
    assert left == {"failed": (4, 3), "interrupted": (5, 2), "cancelled": (5, 3)}[outcome]


async def test_an_interruption_of_a_cancelled_run_sent_again_has_the_same_answer(api: httpx.AsyncClient) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    await api.post(f"/api/v1/runs/{run}:cancel")
    answers = [await worker.end(attempt, "interrupted", "worker_shutdown") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].text == answers[1].text
    assert answers[0].json()["outcome"] == "cancelled"


# --- the manifest -----------------------------------------------------------------------------------------------------


async def test_what_is_missing_is_named_exactly(api: httpx.AsyncClient) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    chunks = plain_evidence(chunk_rows=10).chunks()
    lost = [chunk for chunk in chunks if chunk.stream.value == "requests" or chunk.seq in (1, 3)]
    for chunk in chunks:
        if chunk not in lost:
            await worker.put_chunk(attempt, chunk)
    for process in ("rank-0", SAMPLER):
        await worker.put_completion(attempt, process, chunks)
    answer = await worker.complete(attempt, chunks)
    assert (answer.status_code, code_of(answer)) == (409, "manifest_incomplete")
    assert sorted(answer.json()["missing"], key=lambda gap: gap["stream"]) == [
        {"process": SAMPLER, "stream": "power", "seqs": [1, 3]},
        {"process": "rank-0", "stream": "requests", "seqs": [0]},
        {"process": "rank-0", "stream": "tokens", "seqs": [1]},
    ]
    assert await state_of(api, run) == ("running", None)
    for chunk in lost:
        await worker.put_chunk(attempt, chunk)
    assert (await worker.complete(attempt, chunks)).status_code == 200
    assert await state_of(api, run) == ("completed", None)


async def test_an_attempt_is_not_complete_before_each_process_is(api: httpx.AsyncClient) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    chunks = plain_evidence().chunks()
    for chunk in chunks:
        await worker.put_chunk(attempt, chunk)
    await worker.put_completion(attempt, "rank-0", chunks)
    answer = await worker.complete(attempt, chunks)
    assert code_of(answer) == "manifest_incomplete"
    assert answer.json()["detail"].startswith(SAMPLER)
    assert await state_of(api, run) == ("running", None)


async def test_a_manifest_that_leaves_something_out_is_refused(api: httpx.AsyncClient) -> None:
    await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    chunks = await worker.send(attempt, plain_evidence())
    assert code_of(await worker.complete(attempt, chunks[:-1])) == "manifest_incomplete"


async def test_a_manifest_of_absurdly_many_chunks_costs_nothing(api: httpx.AsyncClient) -> None:
    await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.started()).attempt_id
    await worker.send(attempt, plain_evidence())
    entry = {"process": SAMPLER, "stream": "power", "chunks": 10**15, "rows": 1, "bytes": 1, "sha256": "0" * 64}
    answer = await api.post(
        f"/api/v1/attempts/{attempt}:complete",
        json={"processes": [SAMPLER], "manifest": [entry]},
        headers=worker.headers,
    )
    assert code_of(answer) == "manifest_incomplete"
    assert answer.json()["missing"][0]["seqs"] == list(range(1, 1001))


async def test_a_run_that_never_started_does_not_complete(api: httpx.AsyncClient) -> None:
    run = await one_run(api)
    worker = await FakeWorker(api).ready()
    attempt = (await worker.claimed()).attempt_id
    chunks = await worker.send(attempt, plain_evidence())
    assert code_of(await worker.complete(attempt, chunks)) == "illegal_transition"
    assert await state_of(api, run) == ("initialised", None)


async def test_the_fence_asks_for_the_attempt_the_worker_and_the_boot(
    api: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    await one_run(api)
    assert (await (await FakeWorker(api).ready()).claim()).status_code == 200
    async with engine.begin() as connection:
        row = (await connection.execute(text("SELECT attempt_id, worker_id, boot_id FROM leases"))).one()
        held = FencedAttempt(*row)
        assert await require_lease(connection, held) is False
        assert await lock_lease(connection, held)
        for name in FencedAttempt._fields:
            other = held._replace(**{name: uuid4()})
            assert not await lock_lease(connection, other)
            with pytest.raises(ProblemError):
                await require_lease(connection, other)


async def test_a_claim_alone_is_remembered_as_asking(api: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await FakeWorker(api).ready()
    async with engine.begin() as connection:
        worker, boot, before = (await connection.execute(text("SELECT id, boot_id, asked_at FROM workers"))).one()
        await require_boot(connection, worker, boot)
        seen = text("SELECT asked_at, temperatures_c FROM workers")
        assert (await connection.execute(seen)).scalar_one() == before
        await require_boot(connection, worker, boot, {"GPU-0": 40.0})
        asked, temperatures = (await connection.execute(seen)).one()
        assert (asked is not None and asked != before, temperatures) == (True, {"GPU-0": 40.0})
        await require_boot(connection, worker, boot)
        assert (await connection.execute(seen)).one() == (asked, {"GPU-0": 40.0})
        with pytest.raises(ProblemError):
            await require_boot(connection, worker, uuid4())
