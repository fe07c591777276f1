"""The least that a rank's window holds, and the most that it lasts."""

from __future__ import annotations

from dataclasses import dataclass

from lem_domain.config.measurement import WindowConfig


@dataclass(frozen=True, slots=True)
class Goal:
    """The least that a rank's window holds, and when it ends all the same."""

    duration_ns: int
    requests: int
    longest_ns: int | None = None

    @classmethod
    def of(cls, window: WindowConfig, *, world_size: int, least_requests: int = 0) -> Goal:
        """The rank's part: the whole duration, and its share of the requests rounded up.

        `least_requests` are those of a trace that is replayed as a whole.
        """
        requests = max(window.min_requests, least_requests)
        longest = None if window.max_duration_s is None else round(window.max_duration_s * 1e9)
        return cls(round(window.min_duration_s * 1e9), -(-requests // world_size), longest)

    def is_met(self, duration_ns: int, requests: int) -> bool:
        """Whether both minima hold, or the time is up."""
        return self.is_over(duration_ns) or (duration_ns >= self.duration_ns and requests >= self.requests)

    def is_over(self, duration_ns: int) -> bool:
        """Whether the time is up, so that no request is begun any more."""
        return self.longest_ns is not None and duration_ns >= self.longest_ns

    def cut(self, requests: int, *, share: int) -> bool:
        """Whether so many requests are fewer than were wanted, or no whole repetition of `share`."""
        return requests < self.requests or requests % share != 0

    def fraction(self, duration_ns: int, requests: int, *, share: int) -> float:
        """How much of the window is over, as far as foreseeable; requests count in whole repetitions of `share`."""
        needed = share * max(1, -(-self.requests // share))
        elapsed = duration_ns / self.duration_ns if self.duration_ns else 1.0
        least = min(1.0, elapsed, requests / needed)
        return max(0.0, least, min(1.0, duration_ns / self.longest_ns) if self.longest_ns else 0.0)
