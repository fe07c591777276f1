"""Stopping once a mean is known well enough."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lem_server.decisions.until import look


def test_the_interval_spends_half_of_the_error() -> None:
    values = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0]
    half = stats.t.ppf(1 - 0.025 / 2, 5) * np.std(values, ddof=1) / math.sqrt(6)
    found = look(values, 0.2)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((1 - half, 1 + half))
    assert found.half_width == pytest.approx(half)
    assert (found.precise, look(values, half * 0.99).precise) == (True, False)


def test_it_never_stops_before_five_cycles_or_at_a_mean_of_zero() -> None:
    assert look([1.0] * 4, 0.5) == (False, None, None)
    assert look([1.0, -1.0, 1.0, -1.0, 0.0], 0.5) == (False, None, None)
    assert look([1.0] * 5, 0.5).precise


def test_the_interval_at_the_stop_covers() -> None:
    """Of 1,000 experiments at the worst spread; the 99.9 % bound of 95 % is 92.6 %; plain intervals have 92 %."""
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        values = random.normal(1, 0.034, 20).tolist()
        found = next(one for n in range(5, 21) if (one := look(values[:n], 0.02)).precise or n == 20)
        covered += found.interval is not None and found.interval.low <= 1 <= found.interval.high
    assert covered >= 926
