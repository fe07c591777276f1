"""The heartbeat process: `python -m lem_worker.heartbeat.sender`, started by the daemon.

A separate process, so that neither a busy engine nor a busy daemon delays a heartbeat. It imports no heavy
library and ends with the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
from collections.abc import Callable

import httpx

from lem_domain.errors import ProblemCode
from lem_domain.wire.runs import Progress
from lem_domain.wire.workers import AttemptHeartbeat, Heartbeat, HeartbeatVerdict
from lem_worker.heartbeat.messages import (
    AttemptHeld,
    AttemptReleased,
    BootSuperseded,
    DrainRequested,
    FromHeartbeat,
    HeartbeatStart,
    LeaseRenewed,
    LeaseVerdict,
    to_heartbeat,
    trusted_until,
)
from lem_worker.process.children import die_with_parent
from lem_worker.server_api import ServerApi, ServerRefused

logger = logging.getLogger("lem_worker.heartbeat.sender")  # __name__ is "__main__" in the process

PROGRESS_EVERY_S = 2.0
"""New progress is sent at most this often; each heartbeat costs the server a row update."""


class HeartbeatLoop:
    """Sends heartbeats for the held attempts.

    The daemon watches the end of the leases, because it must stop a run even when this process hangs or dies.
    """

    def __init__(self, start: HeartbeatStart, api: ServerApi, emit: Callable[[FromHeartbeat], None]) -> None:
        self._start = start
        self._api = api
        self._emit = emit
        self._attempts: dict[str, Progress | None] = {}
        self._interval_s = start.interval_s
        self._changed = asyncio.Event()
        self._last_sent = 0.0

    def take(self, line: AttemptHeld | AttemptReleased) -> None:
        """Process a message of the daemon."""
        if isinstance(line, AttemptReleased):
            self._attempts.pop(line.attempt_id, None)
            return
        is_new = line.attempt_id not in self._attempts
        self._attempts[line.attempt_id] = line.progress or self._attempts.get(line.attempt_id)
        if is_new:
            # The first heartbeat of a new attempt does not wait for the interval.
            self._changed.set()
        elif line.progress is not None and _now() - self._last_sent >= PROGRESS_EVERY_S:
            self._changed.set()

    async def run(self) -> None:
        """Send heartbeats without end."""
        while True:
            await self._send()
            # Jitter keeps the workers of a large installation from sending at the same moment.
            pause = self._interval_s * random.uniform(0.8, 1.2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            self._changed.clear()

    async def _send(self) -> None:
        sent_at = self._last_sent = _now()
        attempts = tuple(
            AttemptHeartbeat(attempt_id=name, progress=progress) for name, progress in self._attempts.items()
        )
        try:
            answer = await self._api.heartbeat(Heartbeat(boot_id=self._start.boot_id, attempts=attempts))
        except httpx.HTTPError as error:
            logger.warning("a heartbeat got no answer: %s", str(error) or type(error).__name__)
            return
        except ServerRefused as error:
            if error.problem.code is ProblemCode.BOOT_SUPERSEDED:
                self._emit(BootSuperseded())
            logger.warning("a heartbeat was refused: %s", error)
            return
        self._interval_s = answer.next_beat_s
        for one in answer.attempts:
            if one.attempt_id not in self._attempts:
                continue  # released while the heartbeat was under way
            if one.lease_s is not None:
                self._emit(LeaseRenewed(attempt_id=one.attempt_id, until=trusted_until(sent_at, one.lease_s)))
            if one.verdict is not HeartbeatVerdict.OK:
                self._emit(LeaseVerdict(attempt_id=one.attempt_id, verdict=one.verdict))
        if answer.drain:
            self._emit(DrainRequested())


def _now() -> float:
    return asyncio.get_running_loop().time()


def _print(line: FromHeartbeat) -> None:
    sys.stdout.write(line.model_dump_json() + "\n")
    sys.stdout.flush()


async def _main() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    start = to_heartbeat.validate_json(await reader.readline())
    if not isinstance(start, HeartbeatStart):
        sys.exit("the first line must be a start message; only lem-worker starts this module")
    api = ServerApi(start.server, start.token, worker_id=start.worker_id, boot_id=start.boot_id)
    loop = HeartbeatLoop(start, api, _print)
    # The first one to end ends the process: the daemon closed the pipe, or sending failed and the daemon restarts it.
    tasks = {asyncio.create_task(loop.run()), asyncio.create_task(_listen(reader, loop))}
    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()


async def _listen(reader: asyncio.StreamReader, loop: HeartbeatLoop) -> None:
    while line := await reader.readline():
        message = to_heartbeat.validate_json(line)
        if not isinstance(message, HeartbeatStart):
            loop.take(message)


def main() -> None:
    """Send heartbeats until the daemon closes the pipe."""
    die_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    asyncio.run(_main())


if __name__ == "__main__":
    main()
