"""The processor time of the host and of the worker, over a folder like /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lem_worker.sampler import cpu_load

TICKS = os.sysconf("SC_CLK_TCK")


def process(root: Path, pid: int, parent: int, seconds: tuple[int, int, int, int], name: str = "python") -> None:
    (root / str(pid)).mkdir()
    times = " ".join(str(second * TICKS) for second in seconds)
    (root / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0 -1 0 0 0 0 0 {times} 20 0 1 0 5\n")


@pytest.fixture(autouse=True)
def _proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_load, "PROC", tmp_path)


def test_the_worker_is_its_daemon_with_everything_below_it(tmp_path: Path) -> None:
    seconds = [100, 20, 30, 9999, 50, 3, 7, 11, 13, 0]  # user nice system idle iowait irq softirq steal guest
    (tmp_path / "stat").write_text(f"cpu  {' '.join(str(one * TICKS) for one in seconds)}\ncpu0 1 2 3\n")
    process(tmp_path, 1, 0, (1000, 0, 0, 0))
    process(tmp_path, 10, 1, (1, 1, 4, 4))  # the daemon, with children that ended
    process(tmp_path, 11, 10, (20, 5, 0, 0), name="a (rank) of 2")
    process(tmp_path, 12, 11, (7, 0, 0, 0))
    process(tmp_path, 20, 1, (500, 0, 0, 0))
    (tmp_path / "30").mkdir()  # it ends while it is read
    found = cpu_load.cpu_load(10)
    assert found is not None
    assert (found.busy_s, found.own_s) == (160.0, 42.0)


def test_without_a_kernel_that_shows_it_there_is_none(tmp_path: Path) -> None:
    assert cpu_load.cpu_load(10) is None
    (tmp_path / "stat").write_text("")
    assert cpu_load.cpu_load(10) is None


def test_of_this_machine_the_own_time_is_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_load, "PROC", Path("/proc"))
    found = cpu_load.cpu_load(os.getpid())
    assert found is not None
    assert 0 < found.own_s <= found.busy_s
