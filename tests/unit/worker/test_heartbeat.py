"""The daemon's trust in a lease: it ends in time, whatever becomes of the process that beats."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from lem_worker.daemon import heartbeat_process as heartbeat
from lem_worker.daemon.heartbeat_process import HeartbeatEvent, HeartbeatProcess, LeaseExpired
from lem_worker.heartbeat.messages import HeartbeatStart

pytestmark = pytest.mark.anyio

ATTEMPT = f"att_{uuid4().hex}"
START = HeartbeatStart(server="http://lem", token="t", worker_id=f"wrk_{uuid4().hex}", boot_id=uuid4(), interval_s=0.01)

PRELUDE = """#!{python}
import json, pathlib, sys, time
born = pathlib.Path({born!r})
born.open("a").write("born\\n")
def lines():
    for line in sys.stdin:
        yield json.loads(line)
def renew(attempt, seconds):
    print(json.dumps({{"type": "renewed", "attempt_id": attempt, "until": time.monotonic() + seconds}}), flush=True)
"""
SCRIPTS = {
    "dies": "",
    "hangs": "time.sleep(600)",
    "beats": "for line in lines():\n    while line['type'] == 'hold': renew(line['attempt_id'], 9); time.sleep(0.01)",
    "babbles": "print('hello', flush=True); time.sleep(600)",
    "dies once": "if len(born.read_text().split()) > 1:\n    for line in lines():\n        "
    "while line['type'] == 'hold': renew(line['attempt_id'], 9); time.sleep(0.01)",
}


class Watched:
    """A beat process that is a script, and what it brings."""

    def __init__(self, folder: Path, script: str) -> None:
        self.born = folder / "born"
        self.program = folder / "beat"
        self.program.write_text(PRELUDE.format(python=sys.executable, born=str(self.born)) + SCRIPTS[script])
        self.program.chmod(0o755)
        self.news: asyncio.Queue[HeartbeatEvent] = asyncio.Queue()
        self.process = HeartbeatProcess(START, self.news.put_nowait)

    @property
    def starts(self) -> int:
        return len(self.born.read_text().split()) if self.born.exists() else 0

    async def next(self) -> HeartbeatEvent:
        async with asyncio.timeout(300):
            return await self.news.get()


@pytest.fixture
async def watched(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Watched]:
    made = Watched(tmp_path, request.param)
    monkeypatch.setattr(heartbeat, "RESTART_PAUSE_S", 0.01)
    monkeypatch.setattr(heartbeat.sys, "executable", str(made.program))
    await made.process.open()
    yield made
    await made.process.close()


@pytest.mark.parametrize("watched", ["dies", "hangs", "babbles"], indirect=True)
async def test_trust_ends_before_the_lease_when_no_heartbeat_is_ever_answered(watched: Watched) -> None:
    began = asyncio.get_running_loop().time()
    watched.process.hold(ATTEMPT, lease_s=2)
    assert await watched.next() == LeaseExpired(ATTEMPT)
    assert asyncio.get_running_loop().time() - began >= 1.49


@pytest.mark.parametrize("watched", ["dies"], indirect=True)
async def test_a_process_that_dies_is_started_again_and_again_without_renewing_the_trust(watched: Watched) -> None:
    watched.process.hold(ATTEMPT, lease_s=4)
    assert await watched.next() == LeaseExpired(ATTEMPT)
    assert watched.starts >= 3


@pytest.mark.parametrize("watched", ["beats", "dies once"], indirect=True)
async def test_answered_heartbeats_keep_the_trust(watched: Watched) -> None:
    watched.process.hold(ATTEMPT, lease_s=60)
    seen = set()
    async with asyncio.timeout(300):
        while len(seen) < 4:
            seen.add(watched.process._deadlines[ATTEMPT].when())
            await asyncio.sleep(0.005)
    assert watched.news.empty()


@pytest.mark.parametrize("watched", ["hangs"], indirect=True)
async def test_what_was_released_does_not_expire(watched: Watched) -> None:
    other = f"att_{uuid4().hex}"
    watched.process.hold(ATTEMPT, lease_s=0.2)
    watched.process.release(ATTEMPT)
    watched.process.hold(other, lease_s=0.4)
    assert await watched.next() == LeaseExpired(other)
    assert watched.news.empty()


@pytest.mark.parametrize("watched", ["dies"], indirect=True)
async def test_a_machine_that_starts_no_process_any_more_lets_the_trust_run_out(watched: Watched) -> None:
    watched.program.unlink()
    watched.process.hold(ATTEMPT, lease_s=1)
    assert await watched.next() == LeaseExpired(ATTEMPT)
