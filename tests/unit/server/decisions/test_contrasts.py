"""Paired and unpaired differences, Holm's correction, effect sizes and power, against published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lem_server.decisions.contrasts import Contrast, holm, paired, unpaired
from lem_server.decisions.intervals import array_of
from lem_server.decisions.power import cycles_for, d_z, hedges_g, power_of_t

SLEEP_1 = array_of([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
SLEEP_2 = array_of([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
"""Student 1908; R's data set `sleep`, with the output of t.test in its manual."""
MOVIE_1 = array_of([9, 7, 8, 9, 8, 9, 9, 10, 9, 9])
MOVIE_2 = array_of([9, 6, 7, 8, 7, 9, 8, 8, 8, 7])
"""Lakens: Calculating and reporting effect sizes, Frontiers in Psychology 4:863 (2013), table 1."""


def p_of(contrast: Contrast) -> float:
    return 2 * min(contrast.p_above(0), contrast.p_below(0))


def test_pairs_as_in_student_1908() -> None:
    found = paired(SLEEP_1, SLEEP_2, 1.0)
    ends = found.interval()
    assert found.mean / found.error == pytest.approx(4.0621, abs=5e-5)
    assert (ends.low, ends.high) == pytest.approx((0.7001142, 2.4598858), abs=5e-8)
    assert p_of(found) == pytest.approx(0.002833, abs=5e-7)


def test_welch_as_in_r() -> None:
    found = unpaired(SLEEP_1, SLEEP_2, 1.0)
    ends = found.interval()
    assert found.mean / found.error == pytest.approx(1.8608, abs=5e-5)
    assert found.df == pytest.approx(17.776, abs=5e-4)
    assert (ends.low, ends.high) == pytest.approx((-0.2054832, 3.3654832), abs=5e-8)
    assert p_of(found) == pytest.approx(0.07939, abs=5e-6)


def test_welch_of_unequal_numbers_as_in_scipy() -> None:
    first, second = array_of([1.1, 1.4, 1.2, 1.9]), array_of([2.2, 1.3, 1.8, 2.9, 1.0, 1.7, 2.1])
    expected = stats.ttest_ind(second, first, equal_var=False)
    found = unpaired(first, second, 1.0)
    assert (found.mean / found.error, found.df, p_of(found)) == pytest.approx(
        (expected.statistic, expected.df, expected.pvalue)
    )


def test_what_is_rounding_is_no_difference() -> None:
    first = array_of([0.1 + 0.2, 0.3, 0.3])
    for method in (paired, unpaired):
        found = method(first, array_of([0.3, 0.3, 0.1 + 0.2]), 1.0)
        assert (found.mean, found.error, p_of(found)) == (0, 0, 2)


def test_equal_pairs_that_differ_are_certain() -> None:
    found = paired(array_of([1, 2, 3]), array_of([2, 3, 4]), 3.0)
    assert (found.mean, found.error, found.p_above(0), found.p_above(1.5)) == (1, 0, 0, 1)
    assert found.interval().low == found.interval().high == 1


def test_holm_as_in_r() -> None:
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") in R."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1, 1]


def test_effect_sizes_as_in_lakens() -> None:
    """Lakens 2013: Hedges's g 1.08, d_z 1.50."""
    assert hedges_g(MOVIE_2, MOVIE_1) == pytest.approx(1.08, abs=5e-3)
    assert d_z(MOVIE_2, MOVIE_1) == pytest.approx(1.50, abs=5e-3)


def test_effects_without_spread_are_none() -> None:
    equal = array_of([1, 1, 1])
    assert hedges_g(equal, equal + 1) is None
    assert d_z(equal, equal + 1) is None


def test_power_as_in_r() -> None:
    """The examples of power.t.test in R's manual: n = 20, delta = 1, sd = 1: 0.8689528 (0.8689530 strict)."""
    assert power_of_t(1, math.sqrt(2 / 20), 38) == pytest.approx(0.86895, abs=1e-5)


def test_power_of_a_certain_effect() -> None:
    assert power_of_t(1, 1e-3, 4) == 1
    assert (power_of_t(1, 0, 4), power_of_t(0, 0, 4)) == (1, 0)


def test_cycles_as_in_cohen() -> None:
    """Cohen 1988, tables 2.3 and 2.4: d = 0.5 at 5 % needs 64 per group for a power of 0.8; 34 pairs (G*Power)."""
    assert cycles_for(lambda n: power_of_t(0.5, math.sqrt(2 / n), 2 * n - 2)) == 64
    assert cycles_for(lambda n: power_of_t(0.5, math.sqrt(1 / n), n - 1)) == 34
    assert cycles_for(lambda _: 0.5) is None


def test_pairs_err_as_often_as_stated() -> None:
    """Of 2,000 samples of 5 pairs; 99.9 % binomial bounds."""
    random = np.random.default_rng(3)
    pairs = [random.normal(0, 1, (2, 5)) for _ in range(2000)]
    wrong = np.mean([p_of(paired(first, second, 1.0)) <= 0.05 for first, second in pairs])
    assert 0.034 <= wrong <= 0.068


def test_without_spread_the_smaller_side_has_the_degrees_of_freedom() -> None:
    found = unpaired(array_of([1, 1, 1, 1, 1]), array_of([2, 2, 2]), 2.0)
    assert (found.mean, found.error, found.df) == (1, 0, 2)


def test_what_is_rounding_depends_on_the_size_of_the_values() -> None:
    first, second = array_of([1e6, 1e6, 1e6]), array_of([1e6 + 1e-7, 1e6, 1e6])
    assert paired(first, second, 1e6)[:2] == (0, 0)
    assert paired(first / 1e6, second / 1e6 + 1e-6, 1.0).mean == pytest.approx(1e-6, rel=1e-3)


def test_a_small_effect_may_be_found_on_the_wrong_side() -> None:
    """Without an effect the power is the level, half of it on either side."""
    assert power_of_t(0, 1, 10) == pytest.approx(0.05)
    assert power_of_t(0.1, 1, 10) == pytest.approx(
        stats.nct.sf(stats.t.ppf(0.975, 10), 10, 0.1) + stats.nct.cdf(stats.t.ppf(0.025, 10), 10, 0.1)
    )


def test_an_effect_size_has_the_sign_and_size_of_the_difference() -> None:
    """The exact factor at 4 degrees of freedom is Γ(2) / (√2 Γ(1.5)) = √(2/π)."""
    first, second = array_of([1, 2, 3]), array_of([5, 6, 7])
    assert hedges_g(first, second) == pytest.approx(4 * math.sqrt(2 / math.pi))
    assert hedges_g(second, first) == pytest.approx(-4 * math.sqrt(2 / math.pi))


@pytest.mark.parametrize("least", [3, 4, 5, 999, 1000])
def test_the_fewest_cycles_are_found(least: int) -> None:
    assert cycles_for(lambda n: 0.8 if n >= least else 0.79) == least
    assert cycles_for(lambda n: 0.8 if n > 1000 else 0.79) is None
