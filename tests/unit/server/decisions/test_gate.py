"""The gate: within a regression that is allowed, beyond it, or undecided."""

from __future__ import annotations

from typing import Any

import pytest

from factories.decisions import ENERGY, RATE, experiment
from lem_domain.results.metrics import Metric
from lem_domain.wire.decisions import GateOutcome
from lem_server.decisions.comparison import OpenComparison, compare_metric
from lem_server.decisions.gate import GatedMetric, decide

A = (1.00, 1.02, 0.98, 1.01, 0.99)
NOISE = (0.004, -0.004, 0.002, 0.0, -0.002)


def opened(factor: float, metric: Metric = ENERGY, cycles: int = 5, noise: float = 1.0) -> OpenComparison:
    values = [value * (factor + noise * each) for value, each in zip(A, NOISE, strict=True)][:cycles]
    first, second = experiment(A[:cycles], metric=metric), experiment(values, number=2, metric=metric)
    return compare_metric(metric, first, second, pairs=True, same_sensor=True)


@pytest.mark.parametrize(
    ("factor", "outcome"),
    [
        (0.9, GateOutcome.PASSED),
        (1.0, GateOutcome.PASSED),
        (1.02, GateOutcome.PASSED),
        (1.028, GateOutcome.NOT_ENOUGH_EVIDENCE),
        (1.032, GateOutcome.NOT_ENOUGH_EVIDENCE),
        (1.04, GateOutcome.REGRESSED),
    ],
)
def test_the_whole_interval_decides(factor: float, outcome: GateOutcome) -> None:
    """Of these pairs the half-width of the interval is 0.4 %."""
    assert decide([GatedMetric(opened(factor), 0.03)])[0] is outcome


@pytest.mark.parametrize(("factor", "outcome"), [(1.1, "passed"), (0.98, "passed"), (0.95, "regressed")])
def test_where_more_is_better_the_limit_is_below(factor: float, outcome: str) -> None:
    assert decide([GatedMetric(opened(factor, RATE), 0.03)])[0] == outcome


def test_a_difference_that_is_shown_but_may_be_allowed_is_no_regression_yet() -> None:
    outcome, (found,) = decide([GatedMetric(opened(1.04, noise=3.0), 0.03)])
    assert found.comparison.statistical is not None
    assert 1 < found.comparison.statistical.low < 1.03 < (found.comparison.estimate or 0)
    assert outcome is GateOutcome.NOT_ENOUGH_EVIDENCE
    needed: Any = found.cycles_needed
    assert needed.purpose == "limit"
    assert needed.cycles > 5


def test_every_metric_has_to_pass_and_one_is_enough_to_regress() -> None:
    good, open_, bad = opened(1.0), opened(1.029, RATE), opened(1.2)
    assert decide([GatedMetric(good, 0.03), GatedMetric(open_, 0.03)])[0] is GateOutcome.PASSED
    assert decide([GatedMetric(good, 0.03), GatedMetric(opened(1.029), 0.03)])[0] is GateOutcome.NOT_ENOUGH_EVIDENCE
    assert decide([GatedMetric(good, 0.03), GatedMetric(bad, 0.03)])[0] is GateOutcome.REGRESSED


def test_too_few_cycles_and_missing_values_never_pass() -> None:
    missing = compare_metric(ENERGY, experiment(A), experiment(A, metric=RATE), pairs=True, same_sensor=True)
    for one in (opened(0.5, cycles=2), missing):
        outcome, (found,) = decide([GatedMetric(one, 0.03)])
        assert (outcome, found.outcome) == (GateOutcome.NOT_ENOUGH_EVIDENCE,) * 2
        assert found.comparison.reason
