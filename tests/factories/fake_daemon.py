"""`python -m factories.fake_daemon`: the real daemon over fake ranks, as a process that a test may kill."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from factories.fake_server import FakeServer
from lem_worker.daemon.daemon import Daemon
from lem_worker.daemon.process_start import ProcessModules
from lem_worker.daemon.settings import WorkerSettings
from lem_worker.process.children import kill_leftovers

FAKES = ProcessModules(rank="factories.fake_rank", sampler="factories.fake_sampler")


def spooled(state: Path) -> list[str]:
    """The attempts in a worker's spool."""
    return [path.name for path in (state / "spool").iterdir()]


async def nothing_lives_of(attempt: str) -> bool:
    """Whether no process bears the attempt's name; what does is killed."""
    return await kill_leftovers([attempt]) == 0


async def until(met: Callable[[], bool], *, within_s: float = 60) -> None:
    """Wait for what other processes bring about."""
    async with asyncio.timeout(within_s):
        while not met():  # noqa: ASYNC110 - nothing here is told of it
            await asyncio.sleep(0.02)


async def start_worker(server: FakeServer, state: Path, **settings: str) -> asyncio.subprocess.Process:
    """A worker in a process of its own, which ends when there is nothing to do."""
    environment = {
        "LEM_WORKER_BACKEND": "simulated",
        "LEM_SERVER": server.url,
        "LEM_WORKER_STATE_DIR": str(state),
        "LEM_WORKER_UNTIL_IDLE": "true",
        "LEM_WORKER_KILL_GRACE_S": "0.1",
        **settings,
    }
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "factories.fake_daemon",
        env={**os.environ, **environment},
        stderr=asyncio.subprocess.DEVNULL,
    )


async def killed_worker(server: FakeServer, state: Path, met: Callable[[], bool]) -> None:
    """A worker in a process of its own that is killed when it is so far."""
    process = await start_worker(server, state)
    try:
        await until(met)
    finally:
        process.kill()
        await process.wait()


async def main() -> None:
    """Until it ends; the settings come from the environment."""
    modules = FAKES
    if os.environ.get("LEM_TEST_SAMPLER") == "real":
        modules = FAKES._replace(sampler=ProcessModules().sampler)
    await Daemon(WorkerSettings(), modules=modules).run()  # type: ignore[call-arg]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
