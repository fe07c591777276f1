"""The daemon's end of the beat process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable

from pydantic import BaseModel

from lem_domain.wire.runs import Progress
from lem_worker.beat import BeatStart, FromBeat, Hold, Release, from_beat

logger = logging.getLogger(__name__)

_RESTART_PAUSE_S = 1.0
_RESTART_TRUST_S = 20.0
"""How long a lease is taken to last that a beat process held when it ended: nobody knows when it was renewed last, so
the new process has time for a first beat and no more."""


class BeatProcess:
    """Starts the beat process, tells it what is held, and hands on what it says. A dead one is started again."""

    def __init__(self, start: BeatStart, on_news: Callable[[FromBeat], None]) -> None:
        self._start = start
        self._on_news = on_news
        self._process: asyncio.subprocess.Process | None = None
        self._held: dict[str, Progress | None] = {}
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start it."""
        self._keeper = asyncio.create_task(self._keep(await self._spawn()), name="lem-beat")

    def hold(self, attempt_id: str, lease_s: float) -> None:
        """An attempt was claimed."""
        self._held[attempt_id] = None
        self._write(Hold(attempt_id=attempt_id, lease_s=lease_s))

    def progress(self, attempt_id: str, progress: Progress) -> None:
        """How far an attempt is."""
        if attempt_id in self._held:
            self._held[attempt_id] = progress
            self._write(Hold(attempt_id=attempt_id, progress=progress))

    def release(self, attempt_id: str) -> None:
        """An attempt is over."""
        self._held.pop(attempt_id, None)
        self._write(Release(attempt_id=attempt_id))

    async def close(self) -> None:
        """End it."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    async def _spawn(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "lem_worker.beat",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LEM_PARENT": str(os.getpid())},
        )
        self._process = process
        self._write(self._start)
        return process

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        while True:
            if process.stdout is not None:
                while line := await process.stdout.readline():
                    self._on_news(from_beat.validate_json(line))
            code = await process.wait()
            logger.error("the beat process ended with code %d; starting it again", code)
            await asyncio.sleep(_RESTART_PAUSE_S)
            process = await self._spawn()
            for attempt_id, progress in self._held.items():
                self._write(Hold(attempt_id=attempt_id, lease_s=_RESTART_TRUST_S, progress=progress))

    def _write(self, line: BaseModel) -> None:
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(line.model_dump_json().encode() + b"\n")
