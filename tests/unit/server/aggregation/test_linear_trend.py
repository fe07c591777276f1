"""A fitted line against values that were worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lem_server.aggregation.linear_trend import LinearTrend, fit_trend, standard_error, student_t

PUBLISHED = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]
"""Two-sided 95 % quantiles for 1 to 10 degrees of freedom, from a printed table."""


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [
        (0, 12.706),
        *enumerate(PUBLISHED, start=1),
        *((11, 2.228), (19, 2.228), (20, 2.086), (29, 2.086), (30, 2.042), (500, 2.042)),
    ],
)
def test_student_s_t_is_the_printed_table_s(degrees: int, quantile: float) -> None:
    assert student_t(degrees) == quantile


def test_the_standard_error_of_a_mean() -> None:
    assert standard_error(np.array([1.0, 2.0, 3.0, 6.0])) == pytest.approx(math.sqrt(14 / 3) / 2)


def test_a_line_is_fitted_with_its_uncertainty() -> None:
    """Slope 4.32 around a mean of 10; the squares of the positions sum to 0.625."""
    at = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    values = np.array([8.0, 8.8, 9.6, 11.6, 12.0])
    trend = fit_trend(at, values)
    assert trend is not None
    assert trend.change == pytest.approx(0.432)
    rest = values - 10 - 4.32 * (at - 0.5)
    error = math.sqrt(float(np.square(rest).sum()) / 3 / 0.625)
    assert trend.uncertainty == pytest.approx(3.182 * error / 10)


@pytest.mark.parametrize(
    ("at", "values"),
    [
        ([], []),
        ([0.0, 0.3, 0.6, 1.0], [1.0, 2.0, 3.0, 4.0]),
        ([0.0, 0.2, 0.4, 0.6, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]),
        ([0.0, 0.2, 0.4, 0.6, 1.0], [-1.0, -1.0, -1.0, -1.0, -2.0]),
        ([0.5, 0.5, 0.5, 0.5, 0.5], [1.0, 2.0, 3.0, 4.0, 5.0]),
    ],
    ids=["nothing", "four values", "mean 0", "negative mean", "one position"],
)
def test_there_is_no_trend_of(at: list[float], values: list[float]) -> None:
    assert fit_trend(np.array(at), np.array(values)) is None


def test_values_with_a_mean_below_one_have_a_trend() -> None:
    trend = fit_trend(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert trend is not None
    assert trend == (pytest.approx(0.4 / 0.3), pytest.approx(0, abs=1e-9))


@pytest.mark.parametrize(
    ("change", "uncertainty", "beyond"),
    [(0.06, 0.01, True), (-0.06, 0.01, True), (0.05, 0.01, False), (0.06, 0.06, False), (0.06, 0.07, False)],
)
def test_a_trend_exceeds_a_limit_only_beyond_its_own_uncertainty(
    change: float, uncertainty: float, beyond: bool
) -> None:
    assert LinearTrend(change, uncertainty).beyond(0.05) is beyond
