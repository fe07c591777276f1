"""`python -m factories.fake_daemon`: the real daemon with fake ranks and sampler, as a process that a test may kill."""

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
    """Names of the attempts in a worker's spool."""
    return [path.name for path in (state / "spool").iterdir()]


async def nothing_lives_of(attempt: str) -> bool:
    """Whether no process of the attempt is alive; living ones are killed."""
    return await kill_leftovers([attempt]) == 0


async def until(met: Callable[[], bool], *, within_s: float = 600) -> None:
    """Poll until a condition holds that other processes establish."""
    async with asyncio.timeout(within_s):
        while not met():  # noqa: ASYNC110 - no event reports it
            await asyncio.sleep(0.02)


async def start_worker(server: FakeServer, state: Path, **settings: str) -> asyncio.subprocess.Process:
    """Start a worker as a subprocess that ends when no run is waiting."""
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
    """Run a worker as a subprocess and kill it when the condition holds."""
    process = await start_worker(server, state)
    try:
        await until(met)
    finally:
        process.kill()
        await process.wait()


async def main() -> None:
    """Run the daemon with settings from the environment."""
    modules = FAKES
    if os.environ.get("LEM_TEST_SAMPLER") == "real":
        modules = FAKES._replace(sampler=ProcessModules().sampler)
    await Daemon(WorkerSettings(), modules=modules).run()  # type: ignore[call-arg]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
