"""When power counts as steady."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_worker.energy.stationarity import PowerHistory

SECOND = 1_000_000_000


def history(powers: list[float], *, interval_ns: int = SECOND // 20) -> tuple[PowerHistory, int]:
    made = PowerHistory()
    for place, power in enumerate(powers):
        made.add(place * interval_ns, power)
    return made, (len(powers) - 1) * interval_ns


def test_too_little_tells_nothing() -> None:
    made, now = history([100.0] * 40)
    assert made.relative_error(0) is None
    assert made.relative_slope(now) is None
    assert made.lowest_w() is None
    assert PowerHistory().relative_slope(0) is None


def test_constant_power_has_no_error_and_no_slope() -> None:
    made, now = history([100.0] * 200)
    assert made.relative_error(0) == pytest.approx(0)
    assert made.relative_slope(now) == pytest.approx(0)


@given(st.floats(min_value=-10, max_value=10), st.floats(min_value=60, max_value=700))
def test_a_straight_line_has_its_slope(watts_per_second: float, middle_w: float) -> None:
    times = np.arange(0, 5.0001, 0.05)
    made, now = history([middle_w + watts_per_second * (t - 2.5) for t in times])
    assert made.relative_slope(now) == pytest.approx(watts_per_second * 5 / middle_w, abs=1e-6)


def test_the_error_falls_with_the_time_and_knows_that_samples_of_a_second_are_one() -> None:
    random = np.random.default_rng(1)
    by_second = np.repeat(100 + random.normal(0, 5, 60), 20)
    made, _ = history([float(power) for power in by_second])
    short, long = made.relative_error(50 * SECOND), made.relative_error(0)
    assert short is not None and long is not None
    assert long < short
    assert long == pytest.approx(0.05 / np.sqrt(60), rel=0.3)


def test_no_power_is_not_steady() -> None:
    made, now = history([0.0] * 200)
    assert made.relative_error(0) is None
    assert made.relative_slope(now) is None


def test_the_lowest_second_is_found() -> None:
    made, _ = history([200.0] * 100 + [80.0] * 40 + [200.0] * 100)
    assert made.lowest_w() == pytest.approx(80)
