"""Subprocesses of `lemctl up`: started with a log file, waited for, and stopped in order."""

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
    """A subprocess ended while it should run."""

    def __init__(self, process: Subprocess) -> None:
        super().__init__(
            f"{process.name} ended with code {process.code}; its last lines are above, the rest is in {process.log}."
        )
        self.process = process


class NotReadyInTime(LemError):
    """A subprocess is not ready within its limit."""


class Subprocess:
    """One started process."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._log_begin = output.tell()
            # A new session: the terminal sends Ctrl-C to lemctl only, which then stops all in order.
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._child.poll()

    def output(self) -> str:
        """Its output since its start; earlier starts wrote to the same log."""
        with self.log.open("rb") as file:
            file.seek(self._log_begin)
            return file.read().decode("utf-8", errors="replace")

    def last_lines(self) -> list[str]:
        """The end of its output."""
        return self.output().splitlines()[-LAST_LINES:]

    def stop(self, patience_s: float, *, by: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, and kill the whole session if the process still runs after `patience_s`."""
        if self.code is None:
            self._child.send_signal(by)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(patience_s)
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()


class StopSignal:
    """Records SIGINT, SIGTERM and SIGHUP, so that the main loop stops all in one place."""

    def __init__(self) -> None:
        self.is_received = False

    def __enter__(self) -> StopSignal:
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.is_received = True


def wait_until(
    condition: Callable[[], bool], *, processes: Sequence[Subprocess], stop: StopSignal, limit_s: float, what: str
) -> bool:
    """Wait until a condition holds; return False if a stop signal arrived first.

    Raises:
        ProcessEnded: one of the processes ended.
        NotReadyInTime: the condition does not hold within the limit.
    """
    deadline = time.monotonic() + limit_s
    while not stop.is_received:
        # Before the processes: one that did its work and then ended is not a failure of this step.
        if condition():
            return True
        for process in processes:
            if process.code is not None:
                raise ProcessEnded(process)
        if time.monotonic() > deadline:
            raise NotReadyInTime(f"{what} is not ready after {limit_s:g} s; look into {processes[-1].log}.")
        time.sleep(POLL_S)
    return False


def script(name: str) -> str:
    """Return the path of a console script of this installation.

    Raises:
        LemError: it is not installed.
    """
    own = Path(sys.executable).parent / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        raise LemError(f"the command {name} is not installed; reinstall with `pip install llm-energy-measurement`.")
    return found
