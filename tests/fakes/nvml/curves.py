"""Quantities over time with their exact integrals; curve.c computes the same in the simulated NVML.

Time is in ms from an origin. A test writes `text()` into the state file and takes its ground truth from `integral`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol


class Curve(Protocol):
    """A quantity over time; before the origin it has its first value."""

    def text(self) -> str:
        """The curve in the state file's format."""

    def at(self, ms: float) -> float:
        """Value at a time."""

    def integral(self, ms: float) -> float:
        """Integral from the origin to a time."""


@dataclass(frozen=True)
class Steps:
    """Constant between points; the first value also applies before its point."""

    points: tuple[tuple[float, float], ...]

    def text(self) -> str:
        """The curve in the state file's format."""
        return f"steps {_listed(self.points)}"

    def at(self, ms: float) -> float:
        """Value at a time."""
        reached = [value for time, value in self.points if time <= max(ms, 0)]
        return reached[-1] if reached else self.points[0][1]

    def integral(self, ms: float) -> float:
        """Integral from the origin to a time."""
        edges = _edges(self.points, ms)
        return math.fsum(self.at(begin) * (end - begin) for begin, end in pairwise(edges))


@dataclass(frozen=True)
class Trace:
    """Linear between points, constant outside of them."""

    points: tuple[tuple[float, float], ...]

    def text(self) -> str:
        """The curve in the state file's format."""
        return f"trace {_listed(self.points)}"

    def at(self, ms: float) -> float:
        """Value at a time."""
        ms = max(ms, 0)
        if ms <= self.points[0][0]:
            return self.points[0][1]
        for (left_ms, left), (right_ms, right) in pairwise(self.points):
            if ms < right_ms:
                return left + (right - left) * (ms - left_ms) / (right_ms - left_ms)
        return self.points[-1][1]

    def integral(self, ms: float) -> float:
        """Integral from the origin to a time."""
        edges = _edges(self.points, ms)
        return math.fsum((self.at(begin) + self.at(end)) / 2 * (end - begin) for begin, end in pairwise(edges))


@dataclass(frozen=True)
class Sawtooth:
    """Rises from `low` to `high` in every period, then drops back."""

    low: float
    high: float
    period_ms: float

    def text(self) -> str:
        """The curve in the state file's format."""
        return f"sawtooth {self.low} {self.high} {self.period_ms}"

    def at(self, ms: float) -> float:
        """Value at a time."""
        return self.low + (self.high - self.low) * (max(ms, 0) % self.period_ms) / self.period_ms

    def integral(self, ms: float) -> float:
        """Integral from the origin to a time."""
        whole, phase = divmod(ms, self.period_ms)
        rise = self.high - self.low
        return self.low * ms + whole * rise * self.period_ms / 2 + rise * phase * phase / (2 * self.period_ms)


@dataclass(frozen=True)
class Burst:
    """`high` in the first `high_ms` of every period, else `low`."""

    low: float
    high: float
    period_ms: float
    high_ms: float

    def text(self) -> str:
        """The curve in the state file's format."""
        return f"burst {self.low} {self.high} {self.period_ms} {self.high_ms}"

    def at(self, ms: float) -> float:
        """Value at a time."""
        return self.high if max(ms, 0) % self.period_ms < self.high_ms else self.low

    def integral(self, ms: float) -> float:
        """Integral from the origin to a time."""
        whole, phase = divmod(ms, self.period_ms)
        return self.low * ms + (self.high - self.low) * (whole * self.high_ms + min(phase, self.high_ms))


def constant(value: float) -> Steps:
    """Always the same."""
    return Steps(((0, value),))


def ramp(low: float, high: float, duration_ms: float) -> Trace:
    """From `low` to `high` once, then level."""
    return Trace(((0, low), (duration_ms, high)))


def joules(power: Curve, begin_ns: int, end_ns: int, *, origin_ns: int) -> float:
    """The energy of a power in W between two instants of the origin's clock."""
    return (power.integral((end_ns - origin_ns) / 1e6) - power.integral((begin_ns - origin_ns) / 1e6)) / 1e3


def _edges(points: tuple[tuple[float, float], ...], ms: float) -> list[float]:
    return [0.0, *(time for time, _ in points if 0 < time < ms), ms]


def _listed(points: tuple[tuple[float, float], ...]) -> str:
    return ",".join(f"{time}:{value}" for time, value in points)
