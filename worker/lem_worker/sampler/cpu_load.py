"""Processor time of the host and of LEM's worker, so that the load of other processes can be found.

The energy of a CPU run is that of the whole package, whatever used it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")

_BUSY_FIELDS = (0, 1, 2, 5, 6)
"""user, nice, system, irq and softirq of /proc/stat; guests are in user, and stolen time is another machine's."""


class CpuLoad(NamedTuple):
    """Processor time since the start of the machine, in seconds over all cores."""

    busy_s: float
    own_s: float
    """Of the worker's daemon and all processes below it, those that ended included."""
    cores: int


def cpu_load(daemon: int) -> CpuLoad | None:
    """Read the processor time; None where the kernel does not show it.

    `daemon` is the pid of the worker, whose subprocesses run the attempt.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    try:
        fields = (PROC / "stat").read_text().splitlines()[0].split()[1:]
        busy = sum(int(fields[position]) for position in _BUSY_FIELDS)
    except (OSError, IndexError, ValueError):
        return None
    times: dict[int, int] = {}
    parents: dict[int, int] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit() and (found := _process(folder)) is not None:
            parents[int(folder.name)], times[int(folder.name)] = found
    own = sum(spent for pid, spent in times.items() if _is_below(pid, daemon, parents))
    return CpuLoad(busy / ticks, own / ticks, os.cpu_count() or 1)


def _process(folder: Path) -> tuple[int, int] | None:
    """Parent and processor time in ticks of a process, with that of the children that it waited for."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        return int(fields[1]), sum(int(field) for field in fields[11:15])
    except (OSError, IndexError, ValueError):  # it ended meanwhile
        return None


def _is_below(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    seen = set()
    while pid not in seen:
        if pid == ancestor:
            return True
        seen.add(pid)
        pid = parents.get(pid, 0)
    return False
