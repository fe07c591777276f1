"""Heartbeats: what is told to the server, and what to the daemon."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import httpx
import pytest

from lem_domain.wire.runs import Progress
from lem_domain.wire.workers import Heartbeat, HeartbeatVerdict
from lem_worker.heartbeat import sender as beat
from lem_worker.heartbeat.messages import (
    AttemptHeld,
    AttemptReleased,
    BootSuperseded,
    DrainRequested,
    FromHeartbeat,
    HeartbeatStart,
    LeaseRenewed,
    LeaseVerdict,
    trusted_until,
)
from lem_worker.heartbeat.sender import HeartbeatLoop
from lem_worker.server_api import ServerApi

pytestmark = pytest.mark.anyio

ATTEMPT = f"att_{uuid4().hex}"
START = HeartbeatStart(server="http://lem", token="t", worker_id=f"wrk_{uuid4().hex}", boot_id=uuid4(), interval_s=0.01)
Answer = Callable[[Heartbeat], Awaitable[httpx.Response]]


class Running:
    """Beats against scripted answers."""

    def __init__(self) -> None:
        self.sent: list[Heartbeat] = []
        self.told: asyncio.Queue[FromHeartbeat] = asyncio.Queue()
        self.answer: Answer = ok
        api = ServerApi(
            START.server,
            START.token,
            worker_id=START.worker_id,
            boot_id=START.boot_id,
            transport=httpx.MockTransport(self._handle),
        )
        self.beats = HeartbeatLoop(START, api, self.told.put_nowait)
        self.task = asyncio.create_task(self.beats.run())

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        beat = Heartbeat.model_validate_json(request.content)
        self.sent.append(beat)
        return await self.answer(beat)

    async def next(self) -> FromHeartbeat:
        return await asyncio.wait_for(self.told.get(), 10)


def answered(beat: Heartbeat, verdict: str, *, lease_s: float | None = 60, drain: bool = False) -> httpx.Response:
    verdicts = [{"attempt_id": one.attempt_id, "verdict": verdict, "lease_s": lease_s} for one in beat.attempts]
    return httpx.Response(200, json={"attempts": verdicts, "next_beat_s": 0.01, "drain": drain})


async def ok(beat: Heartbeat) -> httpx.Response:
    return answered(beat, "ok")


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    made = Running()
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)


@pytest.mark.parametrize("verdict", ["cancel", "pause", "lost"])
async def test_a_verdict_is_handed_on(running: Running, verdict: str) -> None:
    async def answer(beat: Heartbeat) -> httpx.Response:
        return answered(beat, verdict, lease_s=None)

    running.answer = answer
    running.beats.take(AttemptHeld(attempt_id=ATTEMPT))
    told = await running.next()
    assert told == LeaseVerdict(attempt_id=ATTEMPT, verdict=HeartbeatVerdict(verdict))


async def test_trust_is_counted_from_before_the_heartbeat_was_sent(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that took longer than the lease is no proof that it is still held."""
    now = asyncio.get_running_loop().time
    sent_at = now() - 100
    monkeypatch.setattr(beat, "_now", lambda: sent_at)

    async def slow(sent: Heartbeat) -> httpx.Response:
        monkeypatch.setattr(beat, "_now", now)  # 100 s have passed
        return answered(sent, "ok", lease_s=60)

    running.answer = slow
    running.beats.take(AttemptHeld(attempt_id=ATTEMPT))
    assert await running.next() == LeaseRenewed(attempt_id=ATTEMPT, until=sent_at + 60 - 10)


@pytest.mark.parametrize(("lease_s", "trusted_s"), [(60, 50), (20, 15), (1, 0.75)])
def test_a_lease_is_trusted_a_little_less_long_than_it_lasts(lease_s: float, trusted_s: float) -> None:
    assert trusted_until(1000, lease_s) == 1000 + trusted_s


async def test_every_answered_heartbeat_renews_the_trust(running: Running) -> None:
    running.beats.take(AttemptHeld(attempt_id=ATTEMPT))
    first, second = await running.next(), await running.next()
    assert isinstance(first, LeaseRenewed) and isinstance(second, LeaseRenewed)
    assert first.until < second.until


async def test_what_was_released_is_not_spoken_of(running: Running) -> None:
    gate, asked = asyncio.Event(), asyncio.Event()

    async def late(sent: Heartbeat) -> httpx.Response:
        if sent.attempts:
            asked.set()
            await gate.wait()
        return answered(sent, "cancel", drain=bool(sent.attempts))

    running.answer = late
    running.beats.take(AttemptHeld(attempt_id=ATTEMPT))
    await asked.wait()
    running.beats.take(AttemptReleased(attempt_id=ATTEMPT))
    gate.set()
    assert await running.next() == DrainRequested()


async def test_progress_travels_with_the_heartbeat(running: Running) -> None:
    progress = Progress(phase="measure", fraction=0.25)
    seen = asyncio.Event()

    async def answer(beat: Heartbeat) -> httpx.Response:
        if [one.progress for one in beat.attempts] == [progress]:
            seen.set()
        return answered(beat, "ok")

    running.answer = answer
    running.beats.take(AttemptHeld(attempt_id=ATTEMPT))
    running.beats.take(AttemptHeld(attempt_id=ATTEMPT, progress=progress))
    await asyncio.wait_for(seen.wait(), 10)


async def test_a_server_that_fails_is_asked_again(running: Running) -> None:
    answers = [httpx.Response(503), httpx.Response(200, text="<html>a proxy</html>")]

    async def answer(beat: Heartbeat) -> httpx.Response:
        return answers.pop(0) if answers else answered(beat, "ok", drain=True)

    running.answer = answer
    assert await running.next() == DrainRequested()


async def test_another_boot_of_the_worker_is_reported(running: Running) -> None:
    problem = {"type": "/", "title": "t", "status": 409, "code": "boot_superseded", "detail": "a newer one is."}

    async def answer(_: Heartbeat) -> httpx.Response:
        return httpx.Response(409, json=problem)

    running.answer = answer
    assert await running.next() == BootSuperseded()


def test_the_process_ends_with_the_pipe_to_its_daemon() -> None:
    environment = {**os.environ, "LEM_PARENT": str(os.getpid())}
    with subprocess.Popen(
        [sys.executable, "-m", "lem_worker.heartbeat.sender"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        process.communicate(START.model_dump_json().encode() + b"\n", timeout=300)
        assert process.returncode == 0
