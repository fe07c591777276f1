"""`python -m factories.fake_daemon`: the real daemon over fake ranks, as a process that a test may kill."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from lem_worker.attempt import Modules
from lem_worker.daemon import Daemon
from lem_worker.processes import kill_leftovers
from lem_worker.settings import WorkerSettings

FAKES = Modules(rank="factories.fake_rank", sampler="factories.fake_sampler")


def spooled(state: Path) -> list[str]:
    """The attempts in a worker's spool."""
    return [path.name for path in (state / "spool").iterdir()]


async def nothing_lives_of(attempt: str) -> bool:
    """Whether no process bears the attempt's name; what does is killed."""
    return await kill_leftovers([attempt]) == 0


async def main() -> None:
    """Until it ends; the settings come from the environment."""
    await Daemon(WorkerSettings(), modules=FAKES).run()  # type: ignore[call-arg]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
