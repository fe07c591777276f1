"""The limits of a rank's window: its minima of time and requests, and its maximum time."""

from __future__ import annotations

from dataclasses import dataclass

from lem_domain.config.measurement import WindowConfig


@dataclass(frozen=True, slots=True)
class WindowLength:
    """When a rank's window may end, and when it must."""

    duration_ns: int
    """Minimum."""
    requests: int
    """Minimum."""
    longest_ns: int | None = None
    """Maximum; None for none."""

    @classmethod
    def of(cls, window: WindowConfig, *, world_size: int, min_requests: int = 0) -> WindowLength:
        """The rank's part: the whole duration, and its share of the requests rounded up.

        `min_requests` is the length of a trace, which is always replayed to its end.
        """
        requests = max(window.min_requests, min_requests)
        longest = None if window.max_duration_s is None else round(window.max_duration_s * 1e9)
        return cls(round(window.min_duration_s * 1e9), -(-requests // world_size), longest)

    def is_met(self, duration_ns: int, requests: int) -> bool:
        """Whether both minima are reached, or the maximum is."""
        return self.is_over(duration_ns) or (duration_ns >= self.duration_ns and requests >= self.requests)

    def is_over(self, duration_ns: int) -> bool:
        """Whether the maximum is reached, after which no request is sent."""
        return self.longest_ns is not None and duration_ns >= self.longest_ns

    def cut(self, requests: int, *, share: int) -> bool:
        """Whether a window of so many requests missed its minimum or is no whole repetition of `share` prompts."""
        return requests < self.requests or requests % share != 0

    def fraction(self, duration_ns: int, requests: int, *, share: int) -> float:
        """The estimated part of the window that is over; requests count in whole repetitions of `share` prompts."""
        needed = share * max(1, -(-self.requests // share))
        elapsed = duration_ns / self.duration_ns if self.duration_ns else 1.0
        least = min(1.0, elapsed, requests / needed)
        return max(0.0, least, min(1.0, duration_ns / self.longest_ns) if self.longest_ns else 0.0)
