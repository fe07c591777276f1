"""The daemon's side of the heartbeat process, and its trust in the leases that heartbeats renew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from lem_domain.wire.runs import Progress
from lem_worker.heartbeat.messages import (
    AttemptHeld,
    AttemptReleased,
    BootSuperseded,
    DrainRequested,
    FromHeartbeat,
    HeartbeatStart,
    LeaseRenewed,
    LeaseVerdict,
    from_heartbeat,
    trusted_until,
)
from lem_worker.process.protocol import ControlMessage, encode

logger = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0
"""Short against the lease (60 s by default), so that a restart costs none; prevents a busy loop of restarts."""


class LeaseExpired(NamedTuple):
    """No heartbeat was answered before the trusted part of an attempt's lease ended."""

    attempt_id: str


HeartbeatEvent = LeaseVerdict | DrainRequested | BootSuperseded | LeaseExpired


class HeartbeatProcess:
    """Starts the heartbeat process, sends it the held attempts, and passes its messages on.

    A process that died is restarted. If it dies every time, the leases expire.
    """

    def __init__(self, start: HeartbeatStart, on_event: Callable[[HeartbeatEvent], None]) -> None:
        self._start = start
        self._on_event = on_event
        self._process: asyncio.subprocess.Process | None = None
        self._attempts: dict[str, Progress | None] = {}
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the process."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep_alive(), name="lem-heartbeat")

    def hold(self, attempt_id: str, lease_s: float) -> None:
        """Begin to renew the lease of a claimed attempt."""
        self._attempts[attempt_id] = None
        self._trust(attempt_id, trusted_until(asyncio.get_running_loop().time(), lease_s))
        self._write(AttemptHeld(attempt_id=attempt_id))

    def progress(self, attempt_id: str, progress: Progress) -> None:
        """Report the progress of an attempt."""
        if attempt_id in self._attempts:
            self._attempts[attempt_id] = progress
            self._write(AttemptHeld(attempt_id=attempt_id, progress=progress))

    def release(self, attempt_id: str) -> None:
        """Stop renewing the lease of an attempt that is over."""
        self._attempts.pop(attempt_id, None)
        self._forget_deadline(attempt_id)
        self._write(AttemptReleased(attempt_id=attempt_id))

    async def close(self) -> None:
        """End the process."""
        for attempt_id in [*self._deadlines]:
            self._forget_deadline(attempt_id)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "lem_worker.heartbeat.sender"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # A Ctrl-C in the terminal must not end the heartbeats while the daemon hands the run back.
            start_new_session=True,
            env={**os.environ, "LEM_PARENT": str(os.getpid())},
        )
        self._write(self._start)
        for attempt_id, progress in self._attempts.items():
            self._write(AttemptHeld(attempt_id=attempt_id, progress=progress))

    async def _keep_alive(self) -> None:
        while True:
            if self._process is not None:
                logger.error("%s; restarting it", await self._follow(self._process))
            await asyncio.sleep(RESTART_PAUSE_S)
            try:
                await self._spawn()
            except OSError as error:
                self._process = None
                logger.error("the heartbeat process can't be started (%s)", error.strerror)

    async def _follow(self, process: asyncio.subprocess.Process) -> str:
        """Pass messages on until the process ends; returns how it ended."""
        if process.stdout is not None:
            try:
                while line := await process.stdout.readline():
                    self._take(from_heartbeat.validate_json(line))
            except ValueError as error:
                process.kill()
                await process.wait()
                return f"the heartbeat process sent an invalid message ({error})"
        return f"the heartbeat process ended with code {await process.wait()}"

    def _take(self, line: FromHeartbeat) -> None:
        if not isinstance(line, LeaseRenewed):
            self._on_event(line)
        elif line.attempt_id in self._attempts:
            self._trust(line.attempt_id, line.until)

    def _trust(self, attempt_id: str, until: float) -> None:
        """Restart the deadline; the event loops of both processes use CLOCK_MONOTONIC, so `until` needs no change."""
        self._forget_deadline(attempt_id)
        loop = asyncio.get_running_loop()
        self._deadlines[attempt_id] = loop.call_at(until, self._on_event, LeaseExpired(attempt_id))

    def _forget_deadline(self, attempt_id: str) -> None:
        deadline = self._deadlines.pop(attempt_id, None)
        if deadline is not None:
            deadline.cancel()

    def _write(self, line: ControlMessage) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(encode(line))
