"""Whether power has become steady: what baselines and warm-up wait for."""

from __future__ import annotations

from collections import deque
from itertools import groupby

import numpy as np

from lem_worker.sampler.cadence import FEWEST_READINGS

_KEPT_NS = 300_000_000_000
_BLOCK_NS = 1_000_000_000
"""Successive samples of a sensor depend on each other (it averages, and it updates seldom), so the spread is taken over
means of a second: the method of batch means (Conway 1963)."""
_FEWEST_BLOCKS = 3
MOST_RELATIVE_ERROR = 0.01
"""A baseline is stationary when the standard error of its mean is below this fraction of the mean."""


class PowerHistory:
    """The latest power readings of what is measured, all parts together; `trend_s` is the stretch of a trend."""

    def __init__(self, trend_s: float) -> None:
        self._trend_s = trend_s
        self._readings: deque[tuple[int, float]] = deque()

    def add(self, time_ns: int, power_w: float) -> None:
        """One reading; the oldest are forgotten after some minutes."""
        self._readings.append((time_ns, power_w))
        while time_ns - self._readings[0][0] > _KEPT_NS:
            self._readings.popleft()

    def mean_w(self, since_ns: int) -> float | None:
        """The mean since then; None without a reading."""
        recent = [power for time_ns, power in self._readings if time_ns >= since_ns]
        return float(np.mean(recent)) if recent else None

    def relative_error(self, since_ns: int) -> float | None:
        """Standard error of the mean over the mean, since then; None before there are three seconds, or at no power."""
        recent = [(time_ns, power) for time_ns, power in self._readings if time_ns >= since_ns]
        blocks = [
            float(np.mean([power for _, power in block]))
            for _, block in groupby(recent, key=lambda reading: (reading[0] - since_ns) // _BLOCK_NS)
        ]
        if len(blocks) < _FEWEST_BLOCKS or np.mean(blocks) <= 0:
            return None
        return float(np.std(blocks, ddof=1) / np.sqrt(len(blocks)) / np.mean(blocks))

    def relative_slope(self, now_ns: int) -> float | None:
        """How much a straight line through the last stretch changes over it, as a fraction of its mean.

        None before it is over, with fewer than `FEWEST_READINGS` in it, or at no power.
        """
        stretch_ns = self._trend_s * 1e9
        if not self._readings or now_ns - self._readings[0][0] < stretch_ns:
            return None
        recent = [(time_ns, power) for time_ns, power in self._readings if now_ns - time_ns <= stretch_ns]
        if len(recent) < FEWEST_READINGS:
            return None
        seconds = np.array([(time_ns - now_ns) / 1e9 for time_ns, _ in recent])
        watts = np.array([power for _, power in recent])
        spread = seconds - seconds.mean()
        if watts.mean() <= 0 or not spread.any():
            return None
        slope_w_per_s = float(spread @ watts / (spread @ spread))
        return slope_w_per_s * self._trend_s / float(watts.mean())

    def lowest_w(self) -> float | None:
        """The lowest mean of a whole second; None before there is one."""
        blocks = [
            float(np.mean([power for _, power in block]))
            for _, block in groupby(self._readings, key=lambda reading: reading[0] // _BLOCK_NS)
        ]
        return min(blocks[1:-1], default=None)
