"""Comparison of one metric: estimate, systematic part, words and cycles needed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from factories.decisions import ENERGY, METRIC, RATE, experiment, reading
from lem_domain.results.findings import Verdict
from lem_domain.wire.decisions import ComparisonWord
from lem_server.decisions.comparison import OpenComparison, compare_metric, cycles_needed, words
from lem_server.decisions.contrasts import Contrast
from lem_server.decisions.systematic import Widened

A = (1.00, 1.02, 0.98, 1.01, 0.99)
NOISE = (0.001, -0.001, 0.0005, 0.0, -0.0005)


def times(factor: float) -> list[float]:
    return [value * (factor + noise) for value, noise in zip(A, NOISE, strict=True)]


def compared(reference, candidate, *, metric=ENERGY, pairs=True, same_sensor=True, **options) -> Any:
    return words([compare_metric(metric, reference, candidate, pairs=pairs, same_sensor=same_sensor, **options)])[0]


def test_pairs_give_the_ratio_of_geometric_means() -> None:
    found = compared(experiment(A), experiment(times(0.9), number=2))
    logs = np.log(times(0.9)) - np.log(A)
    ends = stats.ttest_1samp(logs, 0).confidence_interval()
    assert found.estimate == pytest.approx(math.exp(logs.mean()))
    assert (found.statistical.low, found.statistical.high) == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
    assert (found.design, found.pairs, found.word) == ("paired", 5, ComparisonWord.BETTER)
    assert found.effect.kind == "d_z"
    assert found.p_value == found.p_adjusted == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)


def test_without_pairs_it_is_welchs_test_on_logarithms() -> None:
    candidate = experiment([1.2, 1.25, 1.31, 1.22], number=2)
    found = compared(experiment(A), candidate, pairs=False)
    expected = stats.ttest_ind(np.log([1.2, 1.25, 1.31, 1.22]), np.log(A), equal_var=False)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.design, found.pairs, found.word) == ("unpaired", None, ComparisonWord.WORSE)
    assert found.effect.kind == "hedges_g"


def test_direction_decides_between_better_and_worse() -> None:
    rate: dict[str, Any] = {"metric": RATE}
    assert compared(experiment(A, **rate), experiment(times(1.1), number=2, **rate), **rate).word == "better"
    power: dict[str, Any] = {"metric": METRIC["energy.mean_power_w"]}
    assert compared(experiment(A, **power), experiment(times(1.1), number=2, **power), **power).word == "different"


def test_only_common_cycles_are_pairs() -> None:
    found = compared(experiment([*A, 9.0]), experiment(times(0.9), number=2))
    assert (found.pairs, found.reference.n, found.candidate.n) == (5, 6, 5)


def test_invalid_cycles_are_in_no_figure() -> None:
    verdicts: tuple[Verdict, ...] = ("valid", "valid", "valid", "questionable", "invalid")
    found = compared(experiment(A, verdicts=verdicts), experiment(times(0.9), number=2))
    assert (found.pairs, found.reference.n) == (4, 4)


@pytest.mark.parametrize(("pairs", "why"), [(True, "pairs of cycles"), (False, "cycles of each")])
def test_two_cycles_are_not_enough(pairs: bool, why: str) -> None:
    found = compared(experiment(A[:2]), experiment(times(0.5), number=2), pairs=pairs)
    assert (found.word, found.estimate) == ("not_enough_evidence", None)
    assert why in (found.reason or "")


def test_a_metric_without_values_is_not_comparable() -> None:
    found = compared(experiment(A, metric=RATE), experiment(A, number=2))
    assert found.word == "not_comparable"
    assert "experiment 1 has no value" in (found.reason or "")


def test_a_refusal_keeps_the_figures() -> None:
    found = compared(experiment(A), experiment(times(0.5), number=2), refused="other prompts")
    assert (found.word, found.reason) == ("not_comparable", "other prompts")
    assert found.estimate == pytest.approx(0.5, rel=1e-3)


def test_metrics_that_can_be_zero_are_compared_by_difference() -> None:
    queue: dict[str, Any] = {"metric": METRIC["speed.queue_ms.mean"]}
    found = compared(experiment([0.0, 0.0, 0.1], **queue), experiment([1.0, 1.1, 1.2], number=2, **queue), **queue)
    assert (found.scale, found.word) == ("difference", "worse")
    assert found.estimate == pytest.approx(1.1 - 0.1 / 3)


def test_a_margin_makes_small_differences_equivalent() -> None:
    pair = experiment(A), experiment(times(1.004), number=2)
    assert compared(*pair).word == "worse"
    assert compared(*pair, margin=0.02).word == "equivalent"
    assert compared(*pair, margin=0.004).word == "worse"


def test_equal_experiments_show_no_difference() -> None:
    found = compared(experiment(A), experiment(A, number=2))
    assert (found.word, found.estimate, found.p_value) == ("no_difference_shown", 1.0, 1.0)
    assert compared(experiment(A), experiment(A, number=2), margin=0.01).word == "equivalent"


def test_holm_is_over_the_whole_request() -> None:
    noisy = experiment([value * factor for value, factor in zip(A, (1.02, 1.03, 0.995, 1.04, 1.02), strict=True)])
    one = compare_metric(ENERGY, experiment(A), noisy, pairs=True, same_sensor=True)
    assert 0.02 < (one.found.p_value or 0) <= 0.05
    alone, among = words([one])[0], words([one] * 5)[0]
    assert (alone.word, among.word) == ("worse", "no_difference_shown")
    assert among.p_adjusted == pytest.approx(5 * one.found.p_value)
    assert among.cycles_needed.cycles > 5


def test_the_same_gain_and_a_small_offset_change_nothing() -> None:
    """The shift by an offset δ at powers P_A and P_B is ln(1 + δ/P_B) − ln(1 + δ/P_A)."""
    first = experiment(A, energies=[reading(6000, gain=0.13, offset_w=5)] * 5)
    second = experiment(times(0.9), number=2, energies=[reading(5400, gain=0.13, offset_w=5)] * 5)
    found = compared(first, second)
    shifts = [math.log1p(by / 90) - math.log1p(by / 100) for by in (-5, 5)]
    assert found.systematic.sensor.low == pytest.approx(math.expm1(min(shifts)))
    assert found.systematic.sensor.high == pytest.approx(math.expm1(max(shifts)))
    assert found.widened.low == pytest.approx(found.statistical.low * math.exp(min(shifts)))
    assert found.widened.high == pytest.approx(found.statistical.high * math.exp(max(shifts)))
    assert found.word == "better"


def test_other_sensors_are_the_worst_case() -> None:
    """Gains of ± 5 % each leave a ratio of 0.95/1.05 to 1.05/0.95 open."""
    pair = [
        experiment(values, number=number, energies=[reading(6000, gain=0.05)] * 5)
        for number, values in ((1, A), (2, times(0.93)))
    ]
    found = compared(*pair, same_sensor=False, pairs=False)
    assert found.systematic.sensor.low == pytest.approx(0.95 / 1.05 - 1)
    assert found.systematic.sensor.high == pytest.approx(1.05 / 0.95 - 1)
    assert found.word == "no_difference_shown"
    assert found.cycles_needed.cycles is None
    assert "sensor" in (found.cycles_needed.reason or "")


def test_other_sensors_without_published_accuracy_are_not_comparable() -> None:
    pair = [experiment(A, number=number, energies=[reading(gain=None, offset_w=None)] * 5) for number in (1, 2)]
    assert compared(*pair, same_sensor=False).word == "not_comparable"
    found = compared(*pair)
    assert (found.word, found.systematic.unpublished) == ("no_difference_shown", True)


def test_samples_are_added_in_quadrature_over_cycles() -> None:
    """Five cycles of each with 1 % open: √(2 × 5) × 1 % / 5."""
    pair = [
        experiment(values, number=number, energies=[reading(6000, open_j=60)] * 5)
        for number, values in ((1, A), (2, times(0.99)))
    ]
    found = compared(*pair)
    share = math.sqrt(10) * 0.01 / 5
    assert found.systematic.sampling == pytest.approx(1 / (1 - share) - 1)
    assert found.widened.low == pytest.approx(found.statistical.low * (1 - share))
    assert found.word == "better"


def test_an_offset_as_large_as_the_power_is_not_comparable() -> None:
    pair = [experiment(A, number=number, energies=[reading(240, offset_w=5)] * 5) for number in (1, 2)]
    assert compared(*pair).word == "not_comparable"


def test_tokens_per_joule_move_against_the_energy() -> None:
    metric = METRIC["efficiency.output_tokens_per_j"]
    pair = [
        experiment(values, number=number, metric=metric, energies=[reading(joules, power=-1, offset_w=5)] * 5)
        for number, values, joules in ((1, A, 6000), (2, times(1.1), 5400))
    ]
    found = compared(*pair, metric=metric)
    shifts = [-math.log1p(by / 90) + math.log1p(by / 100) for by in (-5, 5)]
    assert found.systematic.sensor.low == pytest.approx(math.expm1(min(shifts)))
    assert found.word == "better"


def test_the_gain_scales_a_difference_and_never_its_sign() -> None:
    net: dict[str, Any] = {"metric": METRIC["energy.net"]}
    pair = [
        experiment(values, number=number, energies=[reading(value, gain=0.1) for value in values], **net)
        for number, values in ((1, (100, 101, 99)), (2, (80.0, 81.5, 79.2)))
    ]
    found = compared(*pair, **net)
    assert found.widened.low == pytest.approx(found.statistical.low * 1.1)
    assert found.widened.high < 0
    assert found.word == "better"


def test_cycles_needed_are_enough_for_the_stated_power() -> None:
    """A paired sd of 2 % of logarithms; a difference of 3 % needs as many pairs as scipy's noncentral t says."""
    logs = np.array([-1.0, 0.0, 1.0]) * 0.02
    one = compare_metric(
        ENERGY, experiment([1, 1, 1]), experiment(np.exp(logs).tolist(), number=2), pairs=True, same_sensor=True
    )
    found: Any = cycles_needed(one, 0.03, purpose="difference")

    def power(n: int) -> float:
        quantile, shift = stats.t.ppf(0.975, n - 1), math.log1p(0.03) / 0.02 * math.sqrt(n)
        return float(stats.nct.sf(quantile, n - 1, shift) + stats.nct.cdf(-quantile, n - 1, shift))

    assert power(found.cycles - 1) < 0.8 <= power(found.cycles)
    assert found.more == found.cycles - 3


QUEUE: dict[str, Any] = {"metric": METRIC["speed.queue_ms.mean"]}


def test_a_margin_of_a_difference_is_relative_to_the_reference() -> None:
    """0.3 more than 10: within 5 %, not within 2 %."""
    pair = [
        experiment(values, number=number, **QUEUE) for number, values in ((1, (9, 10, 11)), (2, (9.31, 10.3, 11.29)))
    ]
    assert compared(*pair, margin=0.05, **QUEUE).word == "equivalent"
    assert compared(*pair, margin=0.02, **QUEUE).word == "worse"
    one = compare_metric(QUEUE["metric"], *pair, pairs=True, same_sensor=True)
    assert one.limits(-0.02, 0.03) == pytest.approx((-0.2, 0.3))
    ratio = compare_metric(ENERGY, experiment(A), experiment(A, number=2), pairs=True, same_sensor=True)
    assert ratio.limits(-0.02, 0.03) == pytest.approx((math.log(0.98), math.log(1.03)))


def test_a_zero_has_no_ratio() -> None:
    assert compared(experiment([0.0, 0.5, 0.4]), experiment([0.5, 0.4, 0.6], number=2)).scale == "difference"
    assert compared(experiment([0.1, 0.5, 0.4]), experiment([0.5, 0.4, 0.6], number=2)).scale == "ratio"


def test_the_first_experiment_without_values_is_named() -> None:
    found = compared(experiment(A, metric=RATE), experiment(A, number=2, metric=RATE))
    assert "experiment 1 " in (found.reason or "")


def opened(
    shifts: tuple[float, ...] = (), below: float = 0.0, sampling: float = 0.0, *, ratio: bool = True
) -> OpenComparison:
    """Of 4 pairs, with a mean of 0.01 and a standard error of 0.01; `shifts` are those of the sensor's offsets."""
    metric: dict[str, Any] = {} if ratio else QUEUE
    one = compare_metric(
        metric.get("metric", ENERGY),
        experiment(A[:4], **metric),
        experiment(A[:4], number=2, **metric),
        pairs=True,
        same_sensor=True,
    )
    contrasts = tuple(Contrast(mean, 0.01, 3.0) for mean in (0.01, *(0.01 + by for by in shifts)))
    return one._replace(widened=Widened(contrasts, below, sampling, 0.0, sampling))


def cycles_by_scipy(effect: float, sensor: float = 0.0, sampling: float = 0.0, level: float = 0.975) -> int:
    """The fewest cycles whose power is 80 %, each as the noncentral t says; the other tail is nothing."""
    for n in range(3, 1001):  # fewer values are in no figure
        less = math.sqrt(4 / n)
        df = 3.0 * (n - 1) / 3
        left = effect - sensor - sampling * less
        quantile, shift = stats.t.ppf(level, df), left / (0.01 * less)
        if left > 0 and stats.nct.sf(quantile, df, shift) >= 0.8:
            return n
    return 0


@pytest.mark.parametrize("difference", [0.02, -0.02, 0.008, 0.1])
def test_cycles_needed_of_a_ratio_and_of_a_difference(difference: float) -> None:
    for ratio, effect in ((True, abs(math.log1p(difference))), (False, abs(difference))):
        found: Any = cycles_needed(opened(ratio=ratio), difference, purpose="limit")
        assert found.cycles == cycles_by_scipy(effect)
        assert found.more == max(0, found.cycles - 4)
        assert (found.purpose, found.difference, found.power) == ("limit", difference, 0.8)


def test_the_sensor_and_the_samples_take_from_the_effect() -> None:
    """The larger shift counts, up or down; what the samples leave open shrinks with the cycles."""
    for shifts in ((-0.004, 0.002), (-0.002, 0.004)):
        found: Any = cycles_needed(opened(shifts), 0.02, purpose="difference")
        assert found.cycles == cycles_by_scipy(math.log1p(0.02), sensor=0.004)
    sampled: Any = cycles_needed(opened(below=0.01, sampling=0.01), 0.02, purpose="difference")
    assert sampled.cycles == cycles_by_scipy(math.log1p(0.02), sampling=0.01)


def test_more_tests_need_more_cycles() -> None:
    found: Any = cycles_needed(opened(), 0.02, purpose="difference", tests=5)
    assert found.cycles == cycles_by_scipy(math.log1p(0.02), level=0.995)


def test_why_no_number_of_cycles_is_enough() -> None:
    sensor: Any = cycles_needed(opened((-0.03, 0.03), ratio=False), 0.02, purpose="difference")
    spread: Any = cycles_needed(opened(), 1e-5, purpose="difference")
    assert (sensor.cycles, sensor.more, spread.cycles, spread.more) == (None,) * 4
    assert "sensor" in sensor.reason
    assert "sensor" not in spread.reason
    assert cycles_needed(opened(), 0.0, purpose="difference") is None
    assert cycles_needed(opened()._replace(widened=None), 0.02, purpose="difference") is None


def test_no_word_of_a_difference_counts_from_its_own_zero() -> None:
    """What is observed is the difference that more cycles are to show: estimate − 1 of a ratio, else the estimate."""
    for metric, values in (({"metric": ENERGY}, (10.5, 10.2, 11)), (QUEUE, (10.5, 10.2, 11))):
        made: dict[str, Any] = dict(metric)
        found = compared(experiment((9, 10, 12), **made), experiment(values, number=2, **made), **made)
        assert found.word == "no_difference_shown"
        assert found.cycles_needed.difference == found.estimate - (1 if found.scale == "ratio" else 0)
        margin = compared(experiment((9, 10, 12), **made), experiment(values, number=2, **made), margin=0.06, **made)
        assert margin.cycles_needed.difference == pytest.approx(0.06 if margin.scale == "ratio" else 0.06 * 31 / 3)


def test_equivalence_is_two_sided_at_the_shown_level() -> None:
    """One p value of 3 % on the worse side is 6 %: not equivalent; 2 % is 4 %: equivalent."""
    for p, word in ((0.03, "no_difference_shown"), (0.02, "equivalent")):
        margin = math.expm1(0.001 + 0.01 * stats.t.isf(p, 3))
        one = opened()._replace(widened=Widened((Contrast(0.001, 0.01, 3.0),)))
        found = one.found.model_copy(update={"margin": margin, "p_value": 0.9})
        assert words([one._replace(found=found)])[0].word == word


def test_a_cycle_without_a_value_says_why() -> None:
    empty = experiment(A, number=2, metric=RATE)
    cycles = tuple(one._replace(reasons={ENERGY.name: why}) for one, why in zip(empty.cycles, "ababa", strict=True))
    assert compared(experiment(A), empty._replace(cycles=cycles)).reason.endswith("no value: a; b")
    assert compared(experiment(A), empty).reason.endswith("no cycle has a usable result")
