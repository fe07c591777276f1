"""Means with intervals, against scipy and published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lem_server.decisions.intervals import array_of, bootstrap_interval, mean_estimate, student_t_interval

HASH = "5" * 64
SLEEP = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)
"""Hours of sleep gained with the second drug, from Student: The Probable Error of a Mean, Biometrika 6 (1908)."""


def test_the_interval_of_the_nist_handbook() -> None:
    """NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.5.2: ZARR13.DAT."""
    found = student_t_interval(9.261460, 0.022789, 195)
    assert (round(found.low, 5), round(found.high, 5)) == (9.25824, 9.26468)


def test_below_ten_values_it_is_students_t() -> None:
    values = SLEEP[:9]
    found = mean_estimate(values, HASH)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))
    assert found.interval_method == "student_t"
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.cv == pytest.approx(np.std(values, ddof=1) / np.mean(values))


def test_from_ten_values_on_it_is_a_reproducible_bootstrap() -> None:
    found = mean_estimate(SLEEP, HASH)
    assert found.interval_method == "bca"
    assert found.interval == mean_estimate(SLEEP, HASH).interval
    assert found.interval != mean_estimate(SLEEP, "6" * 64).interval


def test_the_bootstrap_is_scipys_with_the_expanded_level() -> None:
    """Hesterberg 2015: each tail is Φ(−√(n/(n−1)) t)."""
    tail = stats.norm.cdf(-math.sqrt(10 / 9) * stats.t.ppf(0.975, 9))
    expected = stats.bootstrap(
        (SLEEP,), np.mean, n_resamples=2000, confidence_level=1 - 2 * tail, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    found = bootstrap_interval(array_of(SLEEP), 7)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_bootstrap_of_symmetric_values_is_as_wide_as_students_t() -> None:
    values = stats.norm.ppf((np.arange(12) + 0.5) / 12)
    found, expected = (
        mean_estimate(values.tolist(), HASH).interval,
        student_t_interval(0.0, float(np.std(values, ddof=1)), 12),
    )
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.12)


@pytest.mark.parametrize("values", [(), (1.0,), (1.0, 2.0)])
def test_fewer_than_three_values_have_no_interval(values: tuple[float, ...]) -> None:
    found = mean_estimate(values, HASH)
    assert (found.interval, found.interval_method, found.reason) == (None, None, "too_few_cycles")
    assert (found.mean is None, found.sd is None) == (len(values) == 0, len(values) < 2)


@pytest.mark.parametrize("n", [3, 12])
def test_equal_values_have_an_interval_without_width(n: int) -> None:
    found = mean_estimate([0.1] * n, HASH)
    assert found.interval is not None
    assert found.interval.low == found.interval.high == pytest.approx(0.1)
    assert found.interval_method == "student_t"


def test_intervals_of_ten_values_cover_as_stated() -> None:
    """Of 400 samples of 10: the binomial 99.9 % bounds of 95 % are 91 and 98.3 %; a plain bootstrap has 89 %."""
    random = np.random.default_rng(12)
    found = [mean_estimate(random.normal(5, 1, 10).tolist(), HASH).interval for _ in range(400)]
    covered = np.mean([one is not None and one.low <= 5 <= one.high for one in found])
    assert 0.91 <= covered <= 0.983
