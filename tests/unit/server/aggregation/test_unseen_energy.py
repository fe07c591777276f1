"""The energy between the readings of a part-time sensor, where its spread can be worked out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lem_server.aggregation.energy.coverage import unseen_j

TWO_SIDED_95 = 1.96
BY_CHANCE = 0.12
"""What 400 resamples may be off by."""


def test_a_sensor_that_always_looks_leaves_nothing_unseen() -> None:
    watts = np.array([100.0, 300.0, 100.0, 300.0])
    assert unseen_j(watts, 0.1, 1.0) == 0
    assert unseen_j(watts, 0.1, 1.5) == 0
    assert unseen_j(watts, 0.1, 0.99) > 0


def test_constant_power_leaves_nothing_unseen() -> None:
    assert unseen_j(np.array([250.0] * 50), 0.1, 0.25) == 0


@pytest.mark.parametrize(("watts", "joules"), [([], 0), ([300.0], 0), ([300.0, 250.0], 50 * 0.1 * 2)])
def test_two_readings_may_differ_all_the_time(watts: list[float], joules: float) -> None:
    assert unseen_j(np.array(watts), 0.1, 0.25) == pytest.approx(joules)


def test_three_readings_are_resampled() -> None:
    """One variance, drawn three times."""
    variance = 0.75**2 * 10**2 / 12
    expected = TWO_SIDED_95 * math.sqrt(3 * variance) * 0.1
    assert unseen_j(np.array([100.0, 110.0, 120.0]), 0.1, 0.25) == pytest.approx(expected, rel=BY_CHANCE)


def test_a_ramp_is_off_by_the_moments_of_its_steps() -> None:
    """64 variances in blocks of 4, of which 17 fill the time of 66 readings."""
    variance = 0.75**2 * 6**2 / 12
    expected = TWO_SIDED_95 * math.sqrt(17 * 4 * variance) * 0.1
    assert unseen_j(np.array([6.0 * n for n in range(66)]), 0.1, 0.25) == pytest.approx(expected, rel=BY_CHANCE)


def test_power_that_goes_up_and_down_is_different_again_in_between() -> None:
    """Steps of 40 W: as a step 0.75² × 40² / 12, as a change of direction 0.75 × 40²."""
    variance = 0.75**2 * 40**2 / 12 + 0.75 * 40**2
    expected = TWO_SIDED_95 * math.sqrt(17 * 4 * variance) * 0.1
    watts = np.array([200.0, 240.0] * 33)
    assert unseen_j(watts, 0.1, 0.25) == pytest.approx(expected, rel=BY_CHANCE)


def test_few_readings_are_drawn_one_by_one() -> None:
    """15 variances are fewer than two in each of 8 blocks."""
    variance = 0.5**2 * 6**2 / 12
    expected = TWO_SIDED_95 * math.sqrt(17 * variance) * 0.2
    assert unseen_j(np.array([6.0 * n for n in range(17)]), 0.2, 0.5) == pytest.approx(expected, rel=BY_CHANCE)
