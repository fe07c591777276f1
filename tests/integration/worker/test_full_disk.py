"""A real disk that is full: the run ends with a reason, and the worker goes on when there is space again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from factories.fake_daemon import nothing_lives_of, until
from factories.fake_server import FakeServer
from lem_domain.states import FailureReason
from lem_worker.daemon import daemon
from lem_worker.process import spool
from lem_worker.process.spool import SpoolError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("worker_environment")]

Work = Callable[..., Coroutine[Any, Any, None]]


class SmallDisk:
    """A file system of 4 MiB that can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            for size in (65_536, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass
        with pytest.raises(OSError, match=f"Errno {errno.ENOSPC}"), (self._filler.parent / "more").open("wb") as more:
            more.write(b"more")

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


async def test_a_disk_that_fills_up_while_a_run_is_measured_ends_it_and_the_next_one_waits_for_space(
    server: FakeServer,
    work: Work,
    disk: SmallDisk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(daemon, "SPACE_POLL_S", 0.05)
    reached = tmp_path / "reached"
    for name, value in (("RANK", "gated"), ("GATE", "sealing"), ("REACHED", str(reached))):
        monkeypatch.setenv(f"LEM_TEST_{name}", value)
    first, second = server.enqueue(), server.enqueue()
    with caplog.at_level(logging.INFO, "lem_worker.daemon.daemon"):
        running = asyncio.create_task(work(state_dir=disk.state, until_idle=False, max_runs=2))
        await until(reached.exists)
        disk.fill()
        reached.unlink()
        await until(lambda: first in server.ended and "claiming nothing" in caplog.text)
        assert server.ended[first].outcome == "failed"
        assert server.ended[first].reason is FailureReason.BACKEND_UNAVAILABLE
        assert "No space left on device" in server.ended[first].message
        assert "free space on that disk" in server.ended[first].message
        claims = len(server.claims)
        assert second not in server.started
        disk.free()
        monkeypatch.setenv("LEM_TEST_RANK", "measure")
        await running
    assert claims == 1
    assert second in server.completed
    assert caplog.text.count("claiming nothing: the spool can't write") == 1
    assert "the spool can be written again" in caplog.text
    assert await nothing_lives_of(first)


async def test_a_disk_that_is_full_right_after_the_claim_ends_the_run_with_the_reason(
    server: FakeServer, work: Work, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "require_space", lambda _: disk.fill())
    attempt = server.enqueue()
    await work(state_dir=disk.state, max_runs=1)
    assert server.ended[attempt].reason is FailureReason.BACKEND_UNAVAILABLE
    assert "assignment.json (No space left on device); free space on that disk" in server.ended[attempt].message


async def test_a_worker_that_starts_on_a_full_disk_says_what_to_do(
    server: FakeServer, work: Work, disk: SmallDisk
) -> None:
    disk.fill()
    arguments = ["run", "--backend", "simulated", "--server", server.url, "--state-dir", str(disk.state)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"from lem_worker.main import main; main({arguments!r})"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, complained = await process.communicate()
    assert process.returncode == 1
    told = complained.decode().splitlines()[-1]
    assert told.startswith("lem-worker: the spool can't write")
    assert told.endswith("worker.json (No space left on device); free space on that disk.")
    disk.free()
    server.enqueue()
    await work(state_dir=disk.state)
    assert len(server.completed) == 1


async def test_a_worker_that_is_to_end_when_idle_does_not_wait_for_space(
    server: FakeServer, work: Work, disk: SmallDisk
) -> None:
    await work(state_dir=disk.state)
    server.enqueue()
    disk.fill()
    with pytest.raises(SpoolError, match=r"No space left on device\); free space on that disk\."):
        await work(state_dir=disk.state)
    assert len(server.queue) == 1
    assert len(server.paths(":sign_off")) == 2
