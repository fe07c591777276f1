"""Processes that `lemctl up` starts: what they wrote, how they are waited for, how they end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from lem_client.cli.processes import NotReadyInTime, ProcessEnded, StopSignal, Subprocess, wait_until

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


def start(folder: Path, code: str) -> Subprocess:
    return Subprocess("the child", [sys.executable, "-c", code], folder / "child.log")


def wait_for(process: Subprocess, text: str) -> None:
    with StopSignal() as stop:
        wait_until(lambda: text in process.output(), processes=[process], stop=stop, limit_s=60, what="it")


def test_a_process_that_ends_early_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    child = start(tmp_path, "import sys; print(*range(40), sep='\\n'); sys.exit(3)")
    with StopSignal() as stop, pytest.raises(ProcessEnded, match=r"the child .* 3"):
        wait_until(lambda: False, processes=[child], stop=stop, limit_s=60, what="it")
    assert child.last_lines() == [str(number) for number in range(25, 40)]


def test_what_an_earlier_start_wrote_is_kept_and_not_taken_for_this_ones(tmp_path: Path) -> None:
    wait_for(start(tmp_path, "print('first')"), "first")
    second = start(tmp_path, "print('second')")
    wait_for(second, "second")
    assert second.output() == "second\n"
    assert (tmp_path / "child.log").read_text() == "first\nsecond\n"


def test_a_process_that_will_not_end_is_killed(tmp_path: Path) -> None:
    child = start(tmp_path, STUBBORN)
    wait_for(child, "up")
    child.stop(patience_s=0.1)
    assert child.code == -signal.SIGKILL


def test_waiting_has_a_limit(tmp_path: Path) -> None:
    child = start(tmp_path, STUBBORN)
    try:
        with StopSignal() as stop, pytest.raises(NotReadyInTime, match="the child"):
            wait_until(lambda: False, processes=[child], stop=stop, limit_s=0, what="the child")
    finally:
        child.stop(patience_s=0)


def test_a_signal_ends_the_waiting_in_an_orderly_way() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not wait_until(lambda: False, processes=[], stop=stop, limit_s=60, what="it")
    assert signal.getsignal(signal.SIGTERM) is before
