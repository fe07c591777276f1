"""The priority of an aggregation's process: everybody else goes first.

Imports next to nothing, so that it holds from the first moment: what the process imports takes a second.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

NICENESS = 10
"""Of a processor that both want, others get nine parts of ten (sched(7)). With 19 it would be 68 of 69, and a machine
that measures on its processors would keep an aggregation waiting for minutes."""
_AUTOGROUP = Path("/proc/self/autogroup")


def let_others_go_first() -> None:
    """Give this process, which has a session of its own, a low priority."""
    os.nice(NICENESS)
    # Where the kernel groups processes by session, niceness counts inside of a session, and here this one is alone.
    with contextlib.suppress(OSError):
        _AUTOGROUP.write_text(str(NICENESS))
