"""The peak of a process's memory since a moment, and what is said where the system does not tell it."""

from __future__ import annotations

from pathlib import Path

from lem_worker.rank.peak_memory import PeakMemory

MUCH = 128 * 2**20


def test_what_was_freed_before_does_not_show_and_what_came_since_does() -> None:
    bytearray(2 * MUCH)
    peak = PeakMemory()
    before = peak.read()
    assert before is not None
    bytearray(MUCH)
    after = peak.read()
    assert after is not None
    assert 0.8 * MUCH < after - before < 1.2 * MUCH
    assert peak.reason is None


def test_without_the_kernel_s_help_there_is_a_reason_and_no_figure(tmp_path: Path) -> None:
    peak = PeakMemory(tmp_path / "no such process")
    assert peak.read() is None
    assert peak.reason == ("the kernel refuses to reset the peak of resident memory (No such file or directory)")
    (tmp_path / "status").write_text("Name:\trank\n")
    silent = PeakMemory(tmp_path)
    assert (silent.read(), silent.reason) == (None, "/proc/self/status has no peak of resident memory (VmHWM)")
