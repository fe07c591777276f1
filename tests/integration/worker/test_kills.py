"""SIGKILL of each process of a worker at each boundary of a run: nothing is lost, left over or left unsaid."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.responses import Response

from factories.fake_daemon import nothing_lives_of, spooled, start_worker, until
from factories.fake_server import FakeServer, processes_of
from lem_domain.evidence.streams import SAMPLER
from lem_domain.states import FailureReason

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker_environment")]

SHORT: dict[str, Any] = {
    "output": {"max_tokens": 4},
    "window": {"min_duration_s": 0, "min_requests": 4},
    "warmup": {"min_requests": 2, "window_size": 2, "max_requests": 3},
}
QUICK = {
    "rank": ("load", "measure"),
    "sampler": ("sealing",),
    "beat": ("completing",),
    "daemon": ("measure",),
}
"""The others are in the slow suite."""
POINTS = ("load", "warmup", "before start", "measure", "sealing", "completing")
AT_THE_SERVER = {"before start": ":start", "completing": ":complete"}
MODULES = {"rank": "factories.fake_rank", "sampler": "lem_worker.sampler.main", "beat": "lem_worker.heartbeat.sender"}


def pids(module: str, worker: int) -> list[int]:
    """Processes of that module that a worker started."""
    found = []
    for child in psutil.Process(worker).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile; psutil.ZombieProcess is one of these
            if module in child.cmdline():
                found.append(child.pid)
    return found


@pytest.mark.parametrize(
    ("victim", "point"),
    [
        pytest.param(victim, point, marks=() if point in QUICK[victim] else pytest.mark.slow)
        for victim in ("rank", "sampler", "beat", "daemon")
        for point in POINTS
        if victim in ("beat", "daemon") or point != "completing"  # no rank and no sampler lives then
    ],
)
async def test_a_kill_of_any_process_at_any_point(
    server: FakeServer, state: Path, tmp_path: Path, victim: str, point: str
) -> None:
    reached = tmp_path / "reached"
    attempt = server.enqueue(**SHORT)
    if point in AT_THE_SERVER:
        server.fail(AT_THE_SERVER[point], lambda: Response(status_code=503))
    gates = {"LEM_TEST_RANK": "gated", "LEM_TEST_GATE": point, "LEM_TEST_REACHED": str(reached)}
    worker = await start_worker(server, state, LEM_TEST_SAMPLER="real", **gates)
    try:
        await until(lambda: reached.exists() or (point in AT_THE_SERVER and bool(server.paths(AT_THE_SERVER[point]))))
        if victim == "daemon":
            worker.kill()
            await worker.wait()
            await until(lambda: processes_of(attempt) == [])
            server.heal()
            worker = await start_worker(server, state)
        else:
            [killed] = pids(MODULES[victim], worker.pid)
            os.kill(killed, signal.SIGKILL)
            if victim == "beat":
                await until(lambda: bool({*pids(MODULES["beat"], worker.pid)} - {killed}))
            server.heal()
            reached.unlink(missing_ok=True)
        assert await worker.wait() == 0
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
    match victim:
        case "rank":
            end = server.ended[attempt]
            loading = point == "load"
            assert end.reason is (FailureReason.BACKEND_INITIALISATION if loading else FailureReason.INFERENCE)
            assert "rank-0 was killed by SIGKILL" in end.message
            assert server.completed == {}
        case "sampler":
            assert attempt in server.completed
            assert server.markers[attempt, SAMPLER].summary == {"failed": "the sampler was killed by SIGKILL"}
        case "beat":
            assert attempt in server.completed
            assert server.ended == {}
        case "daemon":
            assert len({one.boot_id for one in server.registered}) == 2
            assert server.ended == {}
            assert list(server.completed) == ([attempt] if point == "completing" else [])
    for completed in server.completed:
        acknowledged = {(process, stream) for owner, process, stream, _ in server.chunks if owner == completed}
        assert acknowledged == {(one.process, one.stream.value) for one in server.completed[completed].manifest}
    assert len(server.paths(":sign_off")) == 1
    assert await nothing_lives_of(attempt)
    assert spooled(state) == []
