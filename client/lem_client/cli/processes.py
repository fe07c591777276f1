"""Starts server and workers as processes of their own, each with its log, and stops them in order."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lem_domain.errors import LemError

POLL_S = 0.1
LAST_LINES = 15


class ProcessEnded(LemError):
    """A process that should run has ended."""

    def __init__(self, process: Process) -> None:
        super().__init__(
            f"{process.name} ended with code {process.code}; its last lines are above, the rest is in {process.log}."
        )
        self.process = process


class TooSlow(LemError):
    """A process isn't ready in time."""


class Process:
    """One started process."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._log_begin = output.tell()
            # A session of its own: Ctrl-C reaches lemctl alone, which then stops everything in order.
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._child.poll()

    def output(self) -> str:
        """What it wrote since it was started."""
        with self.log.open("rb") as file:
            file.seek(self._log_begin)
            return file.read().decode("utf-8", errors="replace")

    def last_lines(self) -> list[str]:
        """The end of what it wrote."""
        return self.output().splitlines()[-LAST_LINES:]

    def stop(self, patience_s: float, *, by: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, and end its whole session when it does not."""
        if self.code is None:
            self._child.send_signal(by)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(patience_s)
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()


class StopSignal:
    """Remembers that Ctrl-C, SIGTERM or a hang-up came, so that stopping is done in one place."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> StopSignal:
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.came = True


def wait_until(
    is_so: Callable[[], bool], *, processes: Sequence[Process], stop: StopSignal, limit_s: float, what: str
) -> bool:
    """Wait until something is so; False when a stop was asked for.

    Raises:
        ProcessEnded: one of the processes ended instead.
        TooSlow: it is not so within the limit.
    """
    deadline = time.monotonic() + limit_s
    while not stop.came:
        # Asked before the processes are looked at: one that did its work and ended is no failure of this step.
        if is_so():
            return True
        for process in processes:
            if process.code is not None:
                raise ProcessEnded(process)
        if time.monotonic() > deadline:
            raise TooSlow(f"{what} is not ready after {limit_s:g} s; look into {processes[-1].log}.")
        time.sleep(POLL_S)
    return False


def script(name: str) -> str:
    """The console script of this installation.

    Raises:
        LemError: there is none.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise LemError(f"the command {name} is not installed; reinstall with `pip install llm-energy-measurement`.")
    return found
