"""Start and end of the processes of an attempt; each leads its own session, and none outlives the attempt."""

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
    encode,
    from_process,
)

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SIGKILL_WARNING_S = 10.0
"""SIGKILL ends a process at once, except in an uninterruptible system call of a driver."""

_POLL_S = 0.02
LONGEST_LINE = 4 * 2**20
"""Bytes of a control message; effective configurations and summaries may exceed asyncio's default of 64 KiB."""

ATTEMPT_VARIABLE = "LEM_ATTEMPT"
"""In the environment of every process of an attempt, so that the daemon finds those that left their group."""


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; each child calls it first.

    The kernel sends nothing if the parent ended before the call; a changed parent id reveals that.
    """
    parent = os.environ.get("LEM_PARENT")
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != int(parent):
        sys.exit("the process that started this one has ended")


def child_environment(attempt_id: str) -> dict[str, str]:
    """The daemon's environment with the variables that every process of an attempt needs."""
    return {
        **os.environ,
        ATTEMPT_VARIABLE: attempt_id,
        "LEM_PARENT": str(os.getpid()),
        # Without it the last lines of a process that is killed stay in its buffer.
        "PYTHONUNBUFFERED": "1",
        # Engines rename their processes with setproctitle. By default it overwrites the environment that
        # /proc/PID/environ shows, and with it ATTEMPT_VARIABLE.
        "SPT_NOENV": "1",
    }


class ProcessExit(NamedTuple):
    """The exit code of a process, negative for a signal, with a description for messages."""

    code: int

    def __str__(self) -> str:
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-self.code).name}"
            return f"was killed by signal {-self.code}"
        return f"ended with exit code {self.code}"


class SupervisedProcess(Protocol):
    """A process of an attempt, as its supervisor uses it."""

    name: str

    async def receive(self) -> FromProcess | None:
        """Return the next message; None when the process closed its end."""

    def send(self, message: ControlMessage) -> None:
        """Send a message."""

    async def wait(self) -> ProcessExit:
        """Wait until the process has ended."""

    async def kill(self, grace_s: float) -> None:
        """End the process and its descendants."""


class Child:
    """A child process with two control pipes; its output is appended to a log file."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, out: int) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._out = out
        self._created = _creation_time(process.pid)

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
                    *("-m", module, str(job_file)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # A group that can be killed as a whole, and that no Ctrl-C of the terminal reaches.
                    start_new_session=True,
                    pass_fds=(child_in, child_out),
                    env={
                        **child_environment(attempt_id),
                        **(environment or {}),
                        CONTROL_IN: str(child_in),
                        CONTROL_OUT: str(child_out),
                    },
                )
        except BaseException:
            os.close(daemon_in)
            os.close(daemon_out)
            raise
        finally:
            # The daemon must not hold the child's ends: it would never see the end of the pipe.
            os.close(child_in)
            os.close(child_out)
        reader = asyncio.StreamReader(limit=LONGEST_LINE)
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(daemon_in, "rb")
        )
        return cls(name, process, reader, daemon_out)

    async def receive(self) -> FromProcess | None:
        """Return the next message; None when the process closed its pipe."""
        line = await self._reader.readline()
        # A line without its end is what a killed process left of a message.
        return from_process.validate_json(line) if line.endswith(b"\n") else None

    def send(self, message: ControlMessage) -> None:
        """Send a message; one to a process that has ended is dropped."""
        if self._out >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._out, encode(message))

    async def wait(self) -> ProcessExit:
        """Wait until the process has ended."""
        return ProcessExit(await self._process.wait())

    async def kill(self, grace_s: float) -> None:
        """End the group: SIGTERM, `grace_s` seconds later SIGKILL; returns when no member is alive."""
        # The kernel does not reuse a process id while its group has members. A process with this id that was created
        # at another time therefore leads a foreign group, and this one has no members.
        if self._process.returncode is None or _creation_time(self.pid) in (None, self._created):
            await kill_group(self.pid, grace_s=grace_s)
        await self._process.wait()
        self.close()

    def close(self) -> None:
        """Close the daemon's end of the pipe."""
        if self._out >= 0:
            os.close(self._out)
            self._out = -1


async def kill_group(group: int, *, grace_s: float) -> None:
    """End every process of a group: SIGTERM, after the grace SIGKILL, until only zombies are left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
    if not await _end_within(lambda: group_members(group), grace_s):
        await _kill_until_dead(lambda: group_members(group))


def group_members(group: int) -> list[psutil.Process]:
    """Living processes of a group."""
    return _living(lambda pid: os.getpgid(pid) == group)


async def kill_leftovers(attempts: Iterable[str], *, grace_s: float = 1.0) -> int:
    """End all processes of the given attempts and return how many there were.

    They are found by `ATTEMPT_VARIABLE` in their environment, which a child that left its group still has and a foreign
    process with a reused id has not.
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
    if not await _end_within(left, grace_s):
        await _kill_until_dead(left)
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


async def _end_within(left: Callable[[], list[psutil.Process]], seconds: float) -> bool:
    deadline = asyncio.get_running_loop().time() + seconds
    while left():
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


async def _kill_until_dead(left: Callable[[], list[psutil.Process]]) -> None:
    """Send SIGKILL until no process is left, without a time limit: a live process may still hold GPU memory."""
    loop = asyncio.get_running_loop()
    killed_at = loop.time()
    warn_at = killed_at + _SIGKILL_WARNING_S
    while remaining := left():
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if loop.time() >= warn_at:
            warn_at += _SIGKILL_WARNING_S
            pids = ", ".join(str(process.pid) for process in remaining)
            logger.error(
                "SIGKILL has not ended process %s for %.0f s, so it is probably blocked in a driver; the worker claims "
                "nothing until it ends. Reset the device or restart the host.",
                pids,
                loop.time() - killed_at,
            )
        await asyncio.sleep(_POLL_S)


def _creation_time(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None
