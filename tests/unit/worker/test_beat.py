"""Heartbeats: what is told to the server, what to the daemon, and that trust ends in time whatever hangs."""

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
from lem_domain.wire.workers import Heartbeat
from lem_worker import beat
from lem_worker.beat import Beats, BeatStart, Drain, Expired, FromBeat, Hold, Release, Superseded, Verdict
from lem_worker.server_api import ServerApi

pytestmark = pytest.mark.anyio

ATTEMPT = f"att_{uuid4().hex}"
START = BeatStart(server="http://lem", token="t", worker_id=f"wrk_{uuid4().hex}", boot_id=uuid4(), interval_s=0.01)
Answer = Callable[[Heartbeat], Awaitable[httpx.Response]]


class Running:
    """Beats against scripted answers."""

    def __init__(self) -> None:
        self.sent: list[Heartbeat] = []
        self.told: asyncio.Queue[FromBeat] = asyncio.Queue()
        self.answer: Answer = ok
        api = ServerApi(
            START.server,
            START.token,
            worker_id=START.worker_id,
            boot_id=START.boot_id,
            transport=httpx.MockTransport(self._handle),
        )
        self.beats = Beats(START, api, self.told.put_nowait)
        self.task = asyncio.create_task(self.beats.run())

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        beat = Heartbeat.model_validate_json(request.content)
        self.sent.append(beat)
        return await self.answer(beat)

    async def next(self) -> FromBeat:
        return await asyncio.wait_for(self.told.get(), 10)


def answered(beat: Heartbeat, verdict: str, *, lease_s: float | None = 60, drain: bool = False) -> httpx.Response:
    verdicts = [{"attempt_id": one.attempt_id, "verdict": verdict, "lease_s": lease_s} for one in beat.attempts]
    return httpx.Response(200, json={"attempts": verdicts, "next_beat_s": 0.01, "drain": drain})


async def ok(beat: Heartbeat) -> httpx.Response:
    return answered(beat, "ok")


async def never(_: Heartbeat) -> httpx.Response:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    made = Running()
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)


@pytest.mark.parametrize("verdict", ["cancel", "lost"])
async def test_a_verdict_is_handed_on(running: Running, verdict: str) -> None:
    async def answer(beat: Heartbeat) -> httpx.Response:
        return answered(beat, verdict, lease_s=None)

    running.answer = answer
    running.beats.take(Hold(attempt_id=ATTEMPT, lease_s=60))
    told = await running.next()
    assert isinstance(told, Verdict)
    assert (told.attempt_id, told.verdict.value) == (ATTEMPT, verdict)


async def test_trust_ends_before_the_lease_though_the_beat_hangs(running: Running) -> None:
    running.answer = never
    began = asyncio.get_running_loop().time()
    running.beats.take(Hold(attempt_id=ATTEMPT, lease_s=0.4))
    assert await running.next() == Expired(attempt_id=ATTEMPT)
    assert asyncio.get_running_loop().time() - began >= 0.29
    assert len([beat for beat in running.sent if beat.attempts]) == 1  # and it hangs still


async def test_trust_is_counted_from_before_the_beat_was_sent(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that took longer than the lease is no proof that it is still held."""
    now = asyncio.get_running_loop().time
    monkeypatch.setattr(beat, "_now", lambda: now() - 100)

    async def slow(sent: Heartbeat) -> httpx.Response:
        monkeypatch.setattr(beat, "_now", now)  # 100 s have passed
        return answered(sent, "ok", lease_s=60)

    running.answer = slow
    running.beats.take(Hold(attempt_id=ATTEMPT, lease_s=1000))
    assert await running.next() == Expired(attempt_id=ATTEMPT)


async def test_answered_beats_keep_the_trust(running: Running) -> None:
    async def short(beat: Heartbeat) -> httpx.Response:
        return answered(beat, "ok", lease_s=5)

    running.answer = short
    running.beats.take(Hold(attempt_id=ATTEMPT, lease_s=0.4))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(running.told.get(), 0.6)
    assert len(running.sent) > 5


async def test_what_was_released_is_not_spoken_of(running: Running) -> None:
    running.answer = never
    running.beats.take(Hold(attempt_id=ATTEMPT, lease_s=0.1))
    running.beats.take(Release(attempt_id=ATTEMPT))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(running.told.get(), 0.2)


async def test_progress_travels_with_the_beat(running: Running) -> None:
    progress = Progress(phase="measure", fraction=0.25)
    seen = asyncio.Event()

    async def answer(beat: Heartbeat) -> httpx.Response:
        if [one.progress for one in beat.attempts] == [progress]:
            seen.set()
        return answered(beat, "ok")

    running.answer = answer
    running.beats.take(Hold(attempt_id=ATTEMPT, lease_s=60))
    running.beats.take(Hold(attempt_id=ATTEMPT, progress=progress))
    await asyncio.wait_for(seen.wait(), 10)


async def test_a_server_that_fails_is_asked_again(running: Running) -> None:
    answers = [httpx.Response(503), httpx.Response(200, text="<html>a proxy</html>")]

    async def answer(beat: Heartbeat) -> httpx.Response:
        return answers.pop(0) if answers else answered(beat, "ok", drain=True)

    running.answer = answer
    assert await running.next() == Drain()


async def test_another_boot_of_the_worker_is_told(running: Running) -> None:
    problem = {"type": "/", "title": "t", "status": 409, "code": "boot_superseded", "detail": "a newer one is."}

    async def answer(_: Heartbeat) -> httpx.Response:
        return httpx.Response(409, json=problem)

    running.answer = answer
    assert await running.next() == Superseded()


def test_the_process_ends_with_the_pipe_to_its_daemon() -> None:
    environment = {**os.environ, "LEM_PARENT": str(os.getpid())}
    with subprocess.Popen(
        [sys.executable, "-m", "lem_worker.beat"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        process.communicate(START.model_dump_json().encode() + b"\n", timeout=30)
        assert process.returncode == 0
