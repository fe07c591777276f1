"""When power counts as steady."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_worker.process.power_trend import trend_s
from lem_worker.sampler.stationarity import PowerHistory

SECOND = 1_000_000_000


def history(powers: list[float], *, interval_ns: int = SECOND // 20) -> tuple[PowerHistory, int]:
    made = PowerHistory(trend_s(interval_ns // 1_000_000))
    for place, power in enumerate(powers):
        made.add(place * interval_ns, power)
    return made, (len(powers) - 1) * interval_ns


def test_too_little_shows_nothing() -> None:
    made, now = history([100.0] * 40)
    assert made.relative_error(0) is None
    assert made.relative_slope(now) is None
    assert made.lowest_w() is None
    assert PowerHistory(5.0).relative_slope(0) is None


def test_constant_power_has_no_error_and_no_slope() -> None:
    made, now = history([100.0] * 200)
    assert made.relative_error(0) == pytest.approx(0)
    assert made.relative_slope(now) == pytest.approx(0)


@given(st.floats(min_value=-10, max_value=10), st.floats(min_value=60, max_value=700))
def test_a_straight_line_has_its_slope(watts_per_second: float, middle_w: float) -> None:
    times = np.arange(0, 5.0001, 0.05)
    made, now = history([middle_w + watts_per_second * (t - 2.5) for t in times])
    assert made.relative_slope(now) == pytest.approx(watts_per_second * 5 / middle_w, abs=1e-6)


@pytest.mark.parametrize(("interval_ms", "stretch_s"), [(5, 5.0), (50, 5.0), (500, 5.0), (2000, 20.0), (5000, 50.0)])
def test_a_trend_is_taken_over_5_s_or_ten_intervals(interval_ms: int, stretch_s: float) -> None:
    assert trend_s(interval_ms) == stretch_s


@pytest.mark.parametrize("interval_s", [0.05, 1.0, 2.0, 2.5, 5.0])
def test_noise_about_a_constant_power_is_seldom_a_trend_however_seldom_it_is_read(interval_s: float) -> None:
    random = np.random.default_rng(1)
    powers = [float(power) for power in 300 + random.normal(0, 3, 400)]
    slopes = []
    made = PowerHistory(trend_s(round(interval_s * 1000)))
    for place, power in enumerate(powers):
        made.add(round(place * interval_s * SECOND), power)
        slopes.append(made.relative_slope(round(place * interval_s * SECOND)))
    known = [slope for slope in slopes if slope is not None]
    assert len(known) >= 300, "it is known as soon as the first stretch is over"
    assert np.mean(np.abs(known) < 0.02) > 0.85


def test_a_stretch_that_holds_few_readings_has_no_trend() -> None:
    made, now = history([100.0] * 200)
    late = now + 4 * SECOND
    assert made.relative_slope(late) is not None
    assert made.relative_slope(now + round(4.85 * SECOND)) is None


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
