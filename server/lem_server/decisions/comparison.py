"""Compares two experiments metric by metric, and says in words what is shown (docs/comparing.md).

Ratios are compared by logarithms: a ratio of geometric means, with an interval that treats A / B and B / A alike. The
interval is Student's t at every n, so that interval, p value and word agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from lem_domain.results.metrics import Direction, Metric
from lem_domain.wire.decisions import (
    ComparisonWord,
    ConfidenceInterval,
    CyclesNeeded,
    EffectSize,
    MetricComparison,
)
from lem_server.decisions.contrasts import Contrast, holm, paired, unpaired
from lem_server.decisions.facts import CycleFacts, ExperimentFacts
from lem_server.decisions.intervals import CONFIDENCE, LEAST_VALUES, FloatArray, array_of, mean_estimate
from lem_server.decisions.power import POWER, cycles_for, d_z, hedges_g, power_of_t
from lem_server.decisions.systematic import NotBounded, Side, Widened, widen

_BY_DIFFERENCE: Final = frozenset(
    {"energy.net", "efficiency.net_energy_per_output_token_j", "speed.queue_ms.mean", "speed.goodput_per_s"}
)
"""Metrics that can be 0 or negative."""


class OpenComparison(NamedTuple):
    """A metric that is compared, and has no word before the whole request is known."""

    metric: Metric
    found: MetricComparison
    """Everything but its word; `not_comparable` and `not_enough_evidence` are final."""
    widened: Widened | None
    """On the scale of the contrast; None without one."""
    reference_mean: float
    """What a relative margin refers to, on that scale: 1 for a ratio."""

    @property
    def ratio(self) -> bool:
        """Whether the contrast is of logarithms."""
        return self.found.scale == "ratio"

    def limits(self, low: float, high: float) -> tuple[float, float]:
        """Return relative differences (−0.02, 0.02) on the scale of the contrast."""
        if self.ratio:
            return math.log1p(low), math.log1p(high)
        return low * self.reference_mean, high * self.reference_mean


def compare_metric(
    metric: Metric,
    reference: ExperimentFacts,
    candidate: ExperimentFacts,
    *,
    pairs: bool,
    same_sensor: bool,
    margin: float | None = None,
    refused: str | None = None,
) -> OpenComparison:
    """Compare one metric of two experiments; `refused` says why there may be no word, but figures all the same."""
    sides = [[one for one in facts.usable if metric.name in one.values] for facts in (reference, candidate)]
    if pairs:
        both = {one.cycle for one in sides[0]} & {one.cycle for one in sides[1]}
        used = [[one for one in side if one.cycle in both] for side in sides]
    else:
        used = sides
    values = [array_of([one.values[metric.name] for one in side]) for side in used]
    ratio = metric.name not in _BY_DIFFERENCE and all(bool((side > 0).all()) for side in values)
    fields = {
        "metric": metric.name,
        "unit": metric.unit,
        "better": metric.better,
        "scale": "ratio" if ratio else "difference",
        "design": "paired" if pairs else "unpaired",
        "reference": _estimate(metric, sides[0], reference),
        "candidate": _estimate(metric, sides[1], candidate),
        "pairs": len(used[0]) if pairs else None,
        "margin": margin,
    }
    count = min(len(side) for side in values)
    empty = [facts for facts, side in zip((reference, candidate), sides, strict=True) if not side]
    if empty:
        return _closed(metric, fields, ComparisonWord.NOT_COMPARABLE, _why_empty(metric, empty[0]))
    if count < LEAST_VALUES:
        what = "pairs of cycles" if pairs else "cycles of each"
        word = ComparisonWord.NOT_COMPARABLE if refused else ComparisonWord.NOT_ENOUGH_EVIDENCE
        return _closed(metric, fields, word, refused or f"it needs {LEAST_VALUES} {what}, and there are {count}")
    scale = 1.0 if ratio else float(max(np.abs(side).max() for side in values))
    method = paired if pairs else unpaired

    def contrast(first: FloatArray, second: FloatArray) -> Contrast:
        return method(first, second, scale)

    bounded = [
        Side(side, [one.energies[metric.name] for one in cycles if metric.name in one.energies])
        for side, cycles in zip(values, used, strict=True)
    ]
    compared = [np.log(side) for side in values] if ratio else values
    plain = contrast(*compared)
    fields |= {"estimate": _shown(plain.mean, ratio), "statistical": _shown_interval(plain.interval(), ratio)}
    size = d_z(*compared) if pairs else hedges_g(*compared)
    fields["effect"] = None if size is None else EffectSize(kind="d_z" if pairs else "hedges_g", value=size)
    try:
        widened, systematic = widen(bounded[0], bounded[1], contrast, ratio=ratio, same_sensor=same_sensor)
    except NotBounded as error:
        return _closed(metric, fields, ComparisonWord.NOT_COMPARABLE, str(error))
    fields |= {
        "widened": _shown_interval(widened.interval(), ratio),
        "systematic": systematic,
        "p_value": min(1.0, 2 * min(widened.p_above(0.0), widened.p_below(0.0))),
    }
    if refused:
        return _closed(metric, fields, ComparisonWord.NOT_COMPARABLE, refused)
    found = _comparison(fields, ComparisonWord.NO_DIFFERENCE_SHOWN)
    return OpenComparison(metric, found, widened, 1.0 if ratio else abs(float(values[0].mean())))


def words(comparisons: Sequence[OpenComparison]) -> list[MetricComparison]:
    """Give every comparison of a request its word.

    Differences and equivalences are corrected apart, each by Holm over the whole request. Equivalence is two one-sided
    tests (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987) at the level of the shown interval. A
    difference that is within the margin counts as equivalent: the user said that it does not matter.
    """
    tested = [one for one in comparisons if one.widened is not None]
    different = dict(zip(map(id, tested), holm([one.found.p_value or 0.0 for one in tested]), strict=True))
    with_margin = [one for one in tested if one.found.margin is not None]
    equivalent = dict(zip(map(id, with_margin), holm([_p_equivalent(one) for one in with_margin]), strict=True))
    return [
        one.found
        if one.widened is None
        else _word(one, different[id(one)], equivalent.get(id(one), 1.0), tests=len(tested))
        for one in comparisons
    ]


def cycles_needed(
    one: OpenComparison, difference: float, *, purpose: Literal["difference", "limit"], tests: int = 1
) -> CyclesNeeded | None:
    """Return how many cycles show a difference (relative, or in the unit of a difference), from the observed spread.

    The level is divided by the number of tests, which is Holm's first step: later ones need fewer.
    """
    if one.widened is None or not difference:
        return None
    plain, widened = one.widened.contrasts[0], one.widened
    n = one.found.pairs or min(one.found.reference.n, one.found.candidate.n)
    effect = abs(math.log1p(difference)) if one.ratio else abs(difference)
    sensor = max(widened.shifts.high, -widened.shifts.low, 0.0)
    confidence = 1 - (1 - CONFIDENCE) / tests

    def power_at(cycles: int) -> float:
        less = math.sqrt(n / cycles)
        left = effect - sensor - widened.sampling * less
        df = plain.df * (cycles - 1) / (n - 1)
        return power_of_t(left, plain.error * less, df, confidence) if left > 0 else 0.0

    cycles = cycles_for(power_at)
    reason = None
    if cycles is None:
        reason = (
            "the sensor leaves more open than this difference" if sensor >= effect else "more than 1,000 cycles would"
        )
    more = None if cycles is None else max(0, cycles - n)
    return CyclesNeeded(purpose=purpose, difference=difference, power=POWER, cycles=cycles, more=more, reason=reason)


def _word(one: OpenComparison, p_different: float, p_equivalent: float, *, tests: int) -> MetricComparison:
    found, level = one.found, 1 - CONFIDENCE
    word = ComparisonWord.NO_DIFFERENCE_SHOWN
    needed = None
    if p_equivalent <= level:
        word = ComparisonWord.EQUIVALENT
    elif p_different <= level:
        word = _direction(one)
    else:
        observed = (found.estimate or 0.0) - (1.0 if one.ratio else 0.0)
        wanted = observed
        if found.margin is not None:
            wanted = found.margin if one.ratio else found.margin * one.reference_mean
        needed = cycles_needed(one, wanted, purpose="difference", tests=tests)
    return found.model_copy(update={"word": word, "p_adjusted": p_different, "cycles_needed": needed})


def _direction(one: OpenComparison) -> ComparisonWord:
    if one.metric.better is Direction.NEUTRAL:
        return ComparisonWord.DIFFERENT
    widened = one.widened
    assert widened is not None  # noqa: S101 - only comparisons with one have a word
    larger = widened.p_above(0.0) < widened.p_below(0.0)
    return ComparisonWord.BETTER if larger == (one.metric.better is Direction.HIGHER) else ComparisonWord.WORSE


def _p_equivalent(one: OpenComparison) -> float:
    """Return the p value of “the difference is outside of the margin”, doubled as that of a two-sided test is."""
    if one.widened is None or one.found.margin is None:
        return 1.0
    low, high = one.limits(-one.found.margin, one.found.margin)
    return min(1.0, 2 * max(one.widened.p_above(low), one.widened.p_below(high)))


def _estimate(metric: Metric, cycles: Sequence[CycleFacts], facts: ExperimentFacts) -> object:
    return mean_estimate([one.values[metric.name] for one in cycles], facts.config_hash)


def _closed(metric: Metric, fields: dict[str, object], word: ComparisonWord, reason: str) -> OpenComparison:
    return OpenComparison(metric, _comparison(fields, word, reason), None, 0.0)


_ABSENT: Final = dict.fromkeys(
    ("estimate", "statistical", "widened", "systematic", "p_value", "p_adjusted", "effect", "margin")
)


def _comparison(fields: dict[str, object], word: ComparisonWord, reason: str | None = None) -> MetricComparison:
    return MetricComparison.model_validate({**_ABSENT, **fields, "word": word, "reason": reason})


def _why_empty(metric: Metric, facts: ExperimentFacts) -> str:
    reasons = dict.fromkeys(one.reasons[metric.name] for one in facts.usable if metric.name in one.reasons)
    why = "; ".join(reasons) or "no cycle has a usable result"
    return f"{facts.display_name} has no value: {why}"


def _shown(value: float, ratio: bool) -> float:
    return math.exp(value) if ratio else value


def _shown_interval(found: ConfidenceInterval, ratio: bool) -> ConfidenceInterval:
    return ConfidenceInterval(low=_shown(found.low, ratio), high=_shown(found.high, ratio))
