"""Fits a straight line and tests it against chance."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lem_server.aggregation.energy.traces import FloatArray

_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom."""


def student_t(degrees: int) -> float:
    """Return the two-sided 95 % quantile of Student's t; above 10 degrees of freedom that of 10, 20 or 30."""
    if degrees <= len(_T_95):
        return _T_95[max(degrees, 1) - 1]
    return 2.228 if degrees < 20 else 2.086 if degrees < 30 else 2.042


def standard_error(values: FloatArray) -> float:
    """Return the standard error of the mean of at least two independent values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


class LinearTrend(NamedTuple):
    """The change of a fitted line over the interval, relative to the mean, and the half-width of its 95 % interval."""

    change: float
    uncertainty: float

    def beyond(self, limit: float) -> bool:
        """Return whether the change exceeds the limit and its own 95 % interval."""
        return abs(self.change) > limit and abs(self.change) > self.uncertainty


def fit_trend(at: FloatArray, values: FloatArray) -> LinearTrend | None:
    """Fit values at positions from 0 to 1 by least squares; None below five values, or without a mean or spread."""
    mean = float(values.mean()) if len(values) else 0.0
    spread = at - at.mean() if len(at) else at
    squares = float(spread @ spread)
    if len(values) < 5 or mean <= 0 or squares == 0:
        return None
    slope = float(spread @ values) / squares
    rest = values - mean - slope * spread
    degrees = len(values) - 2
    error = math.sqrt(float(rest @ rest) / degrees / squares)
    return LinearTrend(slope / mean, student_t(degrees) * error / mean)
