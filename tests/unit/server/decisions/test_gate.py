"""The gate: within a regression that is allowed, beyond it, or undecided."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from factories.decisions import ENERGY, METRIC, RATE, experiment
from lem_domain.results.metrics import Metric
from lem_domain.wire.decisions import GateOutcome
from lem_server.decisions.answers import compare, gate
from lem_server.decisions.comparison import OpenComparison, compare_metric
from lem_server.decisions.contrasts import Contrast
from lem_server.decisions.gate import GatedMetric, decide
from lem_server.decisions.matching import Matched, match_campaigns
from lem_server.decisions.question import Question
from lem_server.decisions.systematic import Widened

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


@pytest.mark.parametrize("metric", [ENERGY, RATE])
@pytest.mark.parametrize(
    ("p", "side", "outcome"),
    [
        (0.02, 1, GateOutcome.PASSED),
        (0.03, 1, GateOutcome.NOT_ENOUGH_EVIDENCE),
        (0.03, -1, GateOutcome.NOT_ENOUGH_EVIDENCE),
        (0.02, -1, GateOutcome.REGRESSED),
    ],
)
def test_a_side_needs_half_of_the_level(metric: Metric, p: float, side: int, outcome: GateOutcome) -> None:
    """The mean is as far from the limit as this one-sided p value says, on the good (1) or the bad side."""
    away = side * 0.01 * stats.t.isf(p, 4)
    mean = math.log(0.97) + away if metric is RATE else math.log(1.03) - away
    widened = Widened((Contrast(mean, 0.01, 4.0), Contrast(mean, 0.01, 4.0)))
    assert decide([GatedMetric(opened(1.0, metric)._replace(widened=widened), 0.03)])[0] is outcome


@pytest.mark.parametrize(
    "name", ["speed.output_rate_tok_s", "speed.queue_ms.mean", "efficiency.energy_per_output_token_j"]
)
def test_the_cycles_needed_are_for_the_distance_to_the_limit(name: str) -> None:
    """The estimate is 4 % off; the limit is 3 % on the bad side, of the reference's mean where zeros are possible."""
    metric = METRIC[name]
    values = [10 * value for value in A]
    noisy = [10 * value * 1.04 + noise for value, noise in zip(A, (2, -2, 1, 0, -1), strict=True)]
    first, second = experiment(values, metric=metric), experiment(noisy, number=2, metric=metric)
    one = compare_metric(metric, first, second, pairs=True, same_sensor=True)
    outcome, (found,) = decide([GatedMetric(one, 0.03)])
    assert outcome is GateOutcome.NOT_ENOUGH_EVIDENCE
    assert found.comparison.estimate is not None
    needed: Any = found.cycles_needed
    if name == "speed.queue_ms.mean":
        assert needed.difference == pytest.approx(found.comparison.estimate - 0.3)
    elif name == "speed.output_rate_tok_s":
        assert needed.difference == pytest.approx(found.comparison.estimate / 0.97 - 1)
    else:
        assert needed.difference == pytest.approx(
            max(found.comparison.estimate / 1.03, 1.03 / found.comparison.estimate) - 1
        )


def test_what_passes_needs_no_cycles() -> None:
    assert decide([GatedMetric(opened(0.9), 0.03)])[1][0].cycles_needed is None


def test_an_experiment_without_a_partner_never_passes() -> None:
    kept = experiment(A, config={"a": 1}), experiment([0.9 * value for value in A], number=2, config={"a": 1})
    for more, outcome in (([], GateOutcome.PASSED), ([experiment(A, number=3)], GateOutcome.NOT_ENOUGH_EVIDENCE)):
        matched = match_campaigns([kept[0], *more], [kept[1]], ())
        assert gate(Question(matched, (ENERGY,), limits=(0.03,))).outcome is outcome
    worse = match_campaigns([kept[1], experiment(A, number=3)], [kept[0]], ())
    assert gate(Question(worse, (ENERGY,), limits=(0.03,))).outcome is GateOutcome.REGRESSED


def test_only_energies_with_a_word_have_an_unknown_sensor() -> None:
    for metric, values, codes, tests in ((ENERGY, A, 1, 1), (ENERGY, A[:2], 0, 0), (RATE, A, 0, 1)):
        pair = experiment(values, metric=metric), experiment(values, number=2, metric=metric)
        answer = compare(Question(Matched((pair,)), (metric,)))
        assert answer.tests == tests
        assert [one.code for one in answer.comparisons[0].findings] == ["sensor_unknown"] * codes
