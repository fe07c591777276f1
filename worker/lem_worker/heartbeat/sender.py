"""The heartbeat process (`python -m lem_worker.heartbeat.sender`): a busy engine cannot delay its heartbeats.

The daemon writes JSON lines to its standard input (what is held, and how far it is) and reads JSON lines from its
standard output (what became of it). It ends with the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import sys
from collections.abc import Callable
from typing import Annotated, Literal
from uuid import UUID

import httpx
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from lem_domain.errors import ProblemCode
from lem_domain.wire.runs import Progress
from lem_domain.wire.workers import AttemptBeat, BeatVerdict, Heartbeat
from lem_worker.process.children import die_with_parent
from lem_worker.server_api import ServerApi, ServerRefused

logger = logging.getLogger("lem_worker.heartbeat.sender")

PROGRESS_EVERY_S = 2.0
"""New progress is told so often, so that whoever watches sees it move; a beat costs the server one row update."""

TRUST_MARGIN_S = 10.0
"""A worker stops trusting its lease so long before it ends by the server's clock."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BeatStart(_Line):
    """First line from the daemon."""

    type: Literal["start"] = "start"
    server: str
    token: str
    worker_id: str
    boot_id: UUID
    interval_s: float


class Hold(_Line):
    """An attempt is held, or has new progress."""

    type: Literal["hold"] = "hold"
    attempt_id: str
    progress: Progress | None = None


class Release(_Line):
    """An attempt is not held any more."""

    type: Literal["release"] = "release"
    attempt_id: str


class Verdict(_Line):
    """To the daemon: what to do with an attempt."""

    type: Literal["verdict"] = "verdict"
    attempt_id: str
    verdict: BeatVerdict


class Renewed(_Line):
    """To the daemon: a beat renewed an attempt's lease."""

    type: Literal["renewed"] = "renewed"
    attempt_id: str
    until: float = Field(description="How long it is trusted, in seconds of CLOCK_MONOTONIC.")


class Drain(_Line):
    """To the daemon: claim nothing more."""

    type: Literal["drain"] = "drain"


class Superseded(_Line):
    """To the daemon: another boot of this worker is registered."""

    type: Literal["superseded"] = "superseded"


ToBeat = Annotated[BeatStart | Hold | Release, Field(discriminator="type")]
FromBeat = Annotated[Verdict | Renewed | Drain | Superseded, Field(discriminator="type")]
to_beat: TypeAdapter[ToBeat] = TypeAdapter(ToBeat)
from_beat: TypeAdapter[FromBeat] = TypeAdapter(FromBeat)


def trusted_until(asked_at: float, lease_s: float) -> float:
    """When to stop trusting a lease: shortly before it ends, counted from before it was asked for."""
    return asked_at + lease_s - min(TRUST_MARGIN_S, lease_s / 4)


class Beats:
    """What is held, and the loop that renews it. How long it is trusted is the daemon's to watch, for whatever becomes
    of this process."""

    def __init__(self, start: BeatStart, api: ServerApi, tell: Callable[[FromBeat], None]) -> None:
        self._start = start
        self._api = api
        self._tell = tell
        self._held: dict[str, Progress | None] = {}
        self._interval_s = start.interval_s
        self._changed = asyncio.Event()
        self._last_beat = 0.0

    def take(self, line: Hold | Release) -> None:
        """What the daemon says."""
        if isinstance(line, Release):
            self._held.pop(line.attempt_id, None)
            return
        is_new = line.attempt_id not in self._held
        self._held[line.attempt_id] = line.progress or self._held.get(line.attempt_id)
        if is_new:
            # A new attempt beats at once, so that its first sign of life does not wait for the interval.
            self._changed.set()
        elif line.progress is not None and _now() - self._last_beat >= PROGRESS_EVERY_S:
            self._changed.set()

    async def run(self) -> None:
        """Beat for ever."""
        while True:
            await self._beat()
            pause = self._interval_s * random.uniform(0.8, 1.2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            self._changed.clear()

    async def _beat(self) -> None:
        began = self._last_beat = _now()
        held = tuple(AttemptBeat(attempt_id=name, progress=progress) for name, progress in self._held.items())
        try:
            answer = await self._api.beat(Heartbeat(boot_id=self._start.boot_id, attempts=held))
        except httpx.HTTPError as error:
            logger.warning("a beat got no answer: %s", str(error) or type(error).__name__)
            return
        except ServerRefused as error:
            if error.problem.code is ProblemCode.BOOT_SUPERSEDED:
                self._tell(Superseded())
            logger.warning("a beat was refused: %s", error)
            return
        self._interval_s = answer.next_beat_s
        for one in answer.attempts:
            if one.attempt_id not in self._held:
                continue  # let go of while the beat was under way
            if one.lease_s is not None:
                self._tell(Renewed(attempt_id=one.attempt_id, until=trusted_until(began, one.lease_s)))
            if one.verdict is not BeatVerdict.OK:
                self._tell(Verdict(attempt_id=one.attempt_id, verdict=one.verdict))
        if answer.drain:
            self._tell(Drain())


def _now() -> float:
    return asyncio.get_running_loop().time()


def _print(line: FromBeat) -> None:
    sys.stdout.write(line.model_dump_json() + "\n")
    sys.stdout.flush()


async def _main() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    start = to_beat.validate_json(await reader.readline())
    if not isinstance(start, BeatStart):
        sys.exit("the first line must be a start; let lem-worker start this module")
    api = ServerApi(start.server, start.token, worker_id=start.worker_id, boot_id=start.boot_id)
    beats = Beats(start, api, _print)
    # Whichever ends first ends the process: the daemon closed the pipe, or beating failed and is to be started anew.
    tasks = {asyncio.create_task(beats.run()), asyncio.create_task(_listen(reader, beats))}
    ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()


async def _listen(reader: asyncio.StreamReader, beats: Beats) -> None:
    while line := await reader.readline():
        message = to_beat.validate_json(line)
        if not isinstance(message, BeatStart):
            beats.take(message)


def main() -> None:
    """Beat until the daemon closes the pipe."""
    die_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    asyncio.run(_main())


if __name__ == "__main__":
    main()
