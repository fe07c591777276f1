"""The least that a rank's window holds."""

from __future__ import annotations

from dataclasses import dataclass

from lem_domain.config.measurement import WindowConfig


@dataclass(frozen=True, slots=True)
class Goal:
    """The least that a rank's window holds."""

    duration_ns: int
    requests: int

    @classmethod
    def of(cls, window: WindowConfig, *, world_size: int) -> Goal:
        """The rank's part: the whole duration, and its share of the requests rounded up."""
        return cls(round(window.min_duration_s * 1e9), -(-window.min_requests // world_size))

    def is_met(self, duration_ns: int, requests: int) -> bool:
        """Whether both minima hold."""
        return duration_ns >= self.duration_ns and requests >= self.requests

    def fraction(self, duration_ns: int, requests: int, *, share: int) -> float:
        """How much of the window is over, as far as foreseeable; requests count in whole repetitions of `share`."""
        needed = share * max(1, -(-self.requests // share))
        elapsed = duration_ns / self.duration_ns if self.duration_ns else 1.0
        return max(0.0, min(1.0, elapsed, requests / needed))
