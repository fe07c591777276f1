"""Starts the processes of an attempt, each in a group of its own, and sees to it that none outlives its purpose."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from lem_worker.process.protocol import (
    CONTROL_IN,
    CONTROL_OUT,
    ControlMessage,
    FromProcess,
    decode_from_process,
    encode,
)

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SURELY_DEAD_S = 10.0
LONGEST_LINE = 4 * 2**20
ATTEMPT_VARIABLE = "LEM_ATTEMPT"
"""In the environment of everything that an attempt starts, so that what is left of it can be found."""


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; called by the child itself, first thing.

    A parent that ended before the call is noticed by the changed parent id.
    """
    parent = os.environ.get("LEM_PARENT")
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != int(parent):
        sys.exit("the process that started this one is gone")


class ProcessExit(NamedTuple):
    """How a process ended."""

    code: int

    def __str__(self) -> str:
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-self.code).name}"
            return f"was killed by signal {-self.code}"
        return f"ended with exit code {self.code}"


class SupervisedProcess(Protocol):
    """A process that can be heard, told something, waited for and ended."""

    name: str
    pid: int

    async def receive(self) -> FromProcess | None:
        """The next message; None when the process closed its end."""

    def send(self, message: ControlMessage) -> None:
        """Send a message."""

    async def wait(self) -> ProcessExit:
        """Wait for its end."""

    async def kill(self, grace_s: float) -> None:
        """End it and what it started."""


class Child:
    """A supervised process with its two control pipes; its output goes to a file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, out: int) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._out = out
        self._born = _birth(process.pid)

    @classmethod
    async def start(
        cls,
        name: str,
        module: str,
        job_file: Path,
        *,
        log_file: Path,
        attempt_id: str,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start `python -m module job_file` as the leader of a new session."""
        child_in, daemon_out = os.pipe()
        daemon_in, child_out = os.pipe()
        try:
            with log_file.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    module,
                    str(job_file),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(child_in, child_out),
                    env={
                        **os.environ,
                        **(environment or {}),
                        CONTROL_IN: str(child_in),
                        CONTROL_OUT: str(child_out),
                        ATTEMPT_VARIABLE: attempt_id,
                        "LEM_PARENT": str(os.getpid()),
                        "PYTHONUNBUFFERED": "1",
                        # Engines name their processes through setproctitle, which writes over the environment that
                        # the kernel shows, and with it over the attempt's variable, unless told not to.
                        "SPT_NOENV": "1",
                    },
                )
        except BaseException:
            os.close(daemon_in)
            os.close(daemon_out)
            raise
        finally:
            os.close(child_in)
            os.close(child_out)
        reader = asyncio.StreamReader(limit=LONGEST_LINE)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(daemon_in, "rb")
        )
        return cls(name, process, reader, daemon_out)

    async def receive(self) -> FromProcess | None:
        """The next message; None when the process closed its pipe."""
        line = await self._reader.readline()
        return decode_from_process(line) if line.endswith(b"\n") else None

    def send(self, message: ControlMessage) -> None:
        """Send a message; a process that is gone doesn't get it."""
        if self._out >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._out, encode(message))

    async def wait(self) -> ProcessExit:
        """Wait for its end."""
        return ProcessExit(await self._process.wait())

    async def kill(self, grace_s: float) -> None:
        """End the whole group: SIGTERM, `grace_s` later SIGKILL, and return when no member lives."""
        # A process id can't be given away while its group has members; so a leader that was born at another time leads
        # somebody else's group, and ours is gone.
        if self._process.returncode is None or _birth(self.pid) in (None, self._born):
            await kill_group(self.pid, grace_s=grace_s)
        await self._process.wait()
        self.close()

    def close(self) -> None:
        """Close the daemon's end of the pipe."""
        if self._out >= 0:
            os.close(self._out)
            self._out = -1


async def kill_group(group: int, *, grace_s: float) -> None:
    """End every process of a group: SIGTERM, SIGKILL after the grace, until none is alive (zombies aside)."""
    _signal_group(group, signal.SIGTERM)
    if await _ends_within(lambda: group_members(group), grace_s):
        return
    await _until_dead(lambda: group_members(group))


def group_members(group: int) -> list[psutil.Process]:
    """Living processes of a group."""
    return _living(lambda pid: os.getpgid(pid) == group)


async def kill_leftovers(attempts: Iterable[str], *, grace_s: float = 1.0) -> int:
    """End whatever is left of the named attempts; says how many processes that were.

    Found by the attempt's variable in their environment: an engine's child that left its group has it too, and a
    process id that the system gave to somebody else has not.
    """
    wanted = set(attempts)
    if not wanted:
        return 0

    def left() -> list[psutil.Process]:
        return _living(lambda pid: _attempt_of(pid) in wanted)

    found = left()
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    if await _ends_within(left, grace_s):
        return len(found)
    await _until_dead(left)
    return len(found)


def _attempt_of(pid: int) -> str | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    prefix = f"{ATTEMPT_VARIABLE}=".encode()
    return next((one[len(prefix) :].decode(errors="replace") for one in variables if one.startswith(prefix)), None)


def _living(wanted: Callable[[int], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if wanted(process.pid) and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


async def _ends_within(left: Callable[[], list[psutil.Process]], seconds: float) -> bool:
    deadline = asyncio.get_running_loop().time() + seconds
    while left():
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(0.02)
    return True


async def _until_dead(left: Callable[[], list[psutil.Process]]) -> None:
    loop = asyncio.get_running_loop()
    say_at = loop.time() + _SURELY_DEAD_S
    while remaining := left():
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if loop.time() >= say_at:
            say_at += _SURELY_DEAD_S
            pids = ", ".join(str(process.pid) for process in remaining)
            logger.error(
                "SIGKILL does not end process %s, a driver holds it; nothing is claimed until it is gone", pids
            )
        await asyncio.sleep(0.02)


def _birth(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
