"""The daemon's end of the beat process, and its trust in the leases that the beats renew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from pydantic import BaseModel

from lem_domain.wire.runs import Progress
from lem_worker.heartbeat.sender import (
    BeatStart,
    Drain,
    FromBeat,
    Hold,
    Release,
    Renewed,
    Superseded,
    Verdict,
    from_beat,
    trusted_until,
)

logger = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0


class Expired(NamedTuple):
    """Nobody says that an attempt is lost, but no beat was answered for as long as its lease could be trusted."""

    attempt_id: str


News = Verdict | Drain | Superseded | Expired


class BeatProcess:
    """Starts the beat process, tells it what is held, and hands on what it says. A dead one is started again, and one
    that only ever dies lets the trust in the leases run out."""

    def __init__(self, start: BeatStart, on_news: Callable[[News], None]) -> None:
        self._start = start
        self._on_news = on_news
        self._process: asyncio.subprocess.Process | None = None
        self._held: dict[str, Progress | None] = {}
        self._deadlines: dict[str, asyncio.TimerHandle] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start it."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name="lem-beat")

    def hold(self, attempt_id: str, lease_s: float) -> None:
        """An attempt was claimed."""
        self._held[attempt_id] = None
        self._trust(attempt_id, trusted_until(asyncio.get_running_loop().time(), lease_s))
        self._write(Hold(attempt_id=attempt_id))

    def progress(self, attempt_id: str, progress: Progress) -> None:
        """How far an attempt is."""
        if attempt_id in self._held:
            self._held[attempt_id] = progress
            self._write(Hold(attempt_id=attempt_id, progress=progress))

    def release(self, attempt_id: str) -> None:
        """An attempt is over."""
        self._held.pop(attempt_id, None)
        self._distrust(attempt_id)
        self._write(Release(attempt_id=attempt_id))

    async def close(self) -> None:
        """End it."""
        for attempt_id in [*self._deadlines]:
            self._distrust(attempt_id)
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
            "-m",
            "lem_worker.heartbeat.sender",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LEM_PARENT": str(os.getpid())},
        )
        self._write(self._start)
        for attempt_id, progress in self._held.items():
            self._write(Hold(attempt_id=attempt_id, progress=progress))

    async def _keep(self) -> None:
        while True:
            if self._process is not None:
                logger.error("%s; starting it again", await self._follow(self._process))
            await asyncio.sleep(RESTART_PAUSE_S)
            try:
                await self._spawn()
            except OSError as error:
                self._process = None
                logger.error("the beat process can't be started (%s)", error.strerror)

    async def _follow(self, process: asyncio.subprocess.Process) -> str:
        """Hand on what it says until it ends; says how it ended."""
        if process.stdout is not None:
            try:
                while line := await process.stdout.readline():
                    self._take(from_beat.validate_json(line))
            except ValueError as error:
                process.kill()
                await process.wait()
                return f"the beat process said something unintelligible ({error})"
        return f"the beat process ended with code {await process.wait()}"

    def _take(self, line: FromBeat) -> None:
        if not isinstance(line, Renewed):
            self._on_news(line)
        elif line.attempt_id in self._held:
            self._trust(line.attempt_id, line.until)

    def _trust(self, attempt_id: str, until: float) -> None:
        """The event loop's clock is CLOCK_MONOTONIC, as the beat process's is."""
        self._distrust(attempt_id)
        loop = asyncio.get_running_loop()
        self._deadlines[attempt_id] = loop.call_at(until, self._on_news, Expired(attempt_id))

    def _distrust(self, attempt_id: str) -> None:
        deadline = self._deadlines.pop(attempt_id, None)
        if deadline is not None:
            deadline.cancel()

    def _write(self, line: BaseModel) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(line.model_dump_json().encode() + b"\n")
