"""What an aggregation's process may take: everybody else goes first."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NICENESS = 10
"""Of a processor that both want, others get nine parts of ten (sched(7)). With 19 it would be 68 of 69, and a machine
that measures on its processors would keep an aggregation waiting for minutes."""


def let_others_go_first(pid: int) -> None:
    """Give a process, which leads a session of its own and has only just begun, a low priority and all processors but
    one, so that whoever answers meanwhile finds one free (`docs/validation.md` has what that gives).
    """
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS))
        allowed = sorted(os.sched_getaffinity(pid))
        os.sched_setaffinity(pid, allowed[1:] or allowed)
    # Where the kernel groups processes by session, niceness counts inside of a session, and there this one is alone.
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS))
