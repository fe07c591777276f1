"""A fixed cadence on one clock: deadlines on a grid, never pushed back by a late tick, with the misses counted."""

from __future__ import annotations

FEWEST_READINGS = 5
"""A line through fewer is decided by the noise of single readings; half of a stretch's may be late or missing."""


class DeadlineGrid:
    """Deadlines at `start + k × interval`."""

    def __init__(self, start_ns: int, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self.next_ns = start_ns + interval_ns
        self.ticks = 0
        self.late = 0
        """Ticks that came more than half an interval after their deadline."""
        self.missed = 0
        """Deadlines at which there was no tick, because the one before came so late."""

    def tick(self, now_ns: int) -> bool:
        """Whether a deadline has come; if so it is used up, with all that lie behind."""
        lateness = now_ns - self.next_ns
        if lateness < 0:
            return False
        skipped = lateness // self._interval_ns
        self.ticks += 1
        self.missed += skipped
        self.late += lateness > self._interval_ns // 2
        self.next_ns += (skipped + 1) * self._interval_ns
        return True
