"""Detects stationary power, for baselines (mean) and warm-up (trend)."""

from __future__ import annotations

from collections import deque
from itertools import groupby

import numpy as np

_KEPT_NS = 300_000_000_000
_BLOCK_NS = 1_000_000_000
"""Successive samples of a sensor are correlated (it averages, and updates more slowly than it is read), so the standard
error is computed from means over one second: the method of batch means (Conway 1963)."""
_FEWEST_BLOCKS = 3
_FEWEST_READINGS = 5
"""A line through fewer readings is dominated by their noise. Half of the readings of a trend may be late or missing."""
MOST_RELATIVE_ERROR = 0.01
"""A baseline is stationary when the standard error of its mean is below this fraction of the mean."""


class PowerHistory:
    """Recent power of all measured parts together; `trend_s` is the duration of a trend."""

    def __init__(self, trend_s: float) -> None:
        self._trend_s = trend_s
        self._readings: deque[tuple[int, float]] = deque()

    def add(self, time_ns: int, power_w: float) -> None:
        """Add a reading and drop those older than five minutes."""
        self._readings.append((time_ns, power_w))
        while time_ns - self._readings[0][0] > _KEPT_NS:
            self._readings.popleft()

    def mean_w(self, since_ns: int) -> float | None:
        """Mean power since a time; None without a reading."""
        recent = [power for time_ns, power in self._readings if time_ns >= since_ns]
        return float(np.mean(recent)) if recent else None

    def relative_error(self, since_ns: int) -> float | None:
        """Standard error of the mean as a fraction of the mean, since a time; None before three seconds, or at 0 W."""
        recent = [(time_ns, power) for time_ns, power in self._readings if time_ns >= since_ns]
        blocks = [
            float(np.mean([power for _, power in block]))
            for _, block in groupby(recent, key=lambda reading: (reading[0] - since_ns) // _BLOCK_NS)
        ]
        if len(blocks) < _FEWEST_BLOCKS or np.mean(blocks) <= 0:
            return None
        return float(np.std(blocks, ddof=1) / np.sqrt(len(blocks)) / np.mean(blocks))

    def relative_slope(self, now_ns: int) -> float | None:
        """Change of a fitted straight line over the last `trend_s`, as a fraction of the mean power in it.

        None before the first `trend_s` is over, with too few readings in it, or at 0 W.
        """
        trend_ns = self._trend_s * 1e9
        if not self._readings or now_ns - self._readings[0][0] < trend_ns:
            return None
        recent = [(time_ns, power) for time_ns, power in self._readings if now_ns - time_ns <= trend_ns]
        if len(recent) < _FEWEST_READINGS:
            return None
        seconds = np.array([(time_ns - now_ns) / 1e9 for time_ns, _ in recent])
        watts = np.array([power for _, power in recent])
        spread = seconds - seconds.mean()
        if watts.mean() <= 0 or not spread.any():
            return None
        slope_w_per_s = float(spread @ watts / (spread @ spread))
        return slope_w_per_s * self._trend_s / float(watts.mean())

    def lowest_w(self) -> float | None:
        """Lowest mean of a whole second; None before there is one."""
        blocks = [
            float(np.mean([power for _, power in block]))
            for _, block in groupby(self._readings, key=lambda reading: reading[0] // _BLOCK_NS)
        ]
        # The first and the last block are parts of a second.
        return min(blocks[1:-1], default=None)
