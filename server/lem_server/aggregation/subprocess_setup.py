"""Sets up an aggregation's subprocess.

Imports little, because it runs first: the expensive imports follow at low priority.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

NICENESS = 10
"""At 10, other processes get nine tenths of a contended processor (sched(7)). At 19 it would be 68 of 69, and an
aggregation on a machine whose processors are being measured would take minutes."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def lower_priority() -> None:
    """Let other processes run first, and leave one processor free for the server and PostgreSQL."""
    # In a separate session Ctrl-C reaches the server alone, which answers open requests before it ends.
    os.setsid()
    os.nice(NICENESS)
    # Where the kernel groups processes by session, niceness only counts within a session (sched(7), autogroup).
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[1:] or allowed)  # docs/validation.md has the latencies that this gives


def begin(parent: int) -> None:
    """Initialise a subprocess of the pool."""
    die_with_parent(parent)
    lower_priority()
