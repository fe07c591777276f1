"""A fixed cadence: deadlines on a grid of one clock, which a late tick does not shift."""

from __future__ import annotations


class DeadlineGrid:
    """Deadlines at `start + k × interval`, with counts of ticks that were late or missed."""

    def __init__(self, start_ns: int, interval_ns: int) -> None:
        self._interval_ns = interval_ns
        self.next_ns = start_ns + interval_ns
        self.ticks = 0
        self.late = 0
        """Ticks that came more than half an interval after their deadline."""
        self.missed = 0
        """Deadlines without a tick, because the previous tick took too long."""

    def tick(self, now_ns: int) -> bool:
        """Return whether a deadline has passed, and consume it with all earlier ones."""
        lateness = now_ns - self.next_ns
        if lateness < 0:
            return False
        # Missed deadlines are skipped, not caught up: a burst of ticks would sample nothing new.
        skipped = lateness // self._interval_ns
        self.ticks += 1
        self.missed += skipped
        self.late += lateness > self._interval_ns // 2
        self.next_ns += (skipped + 1) * self._interval_ns
        return True
