"""Decides whether a candidate stays within the regressions that are allowed: a test of non-inferiority.

Piaggio et al.: Reporting of Noninferiority and Equivalence Randomized Trials, JAMA 308 (2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lem_domain.results.metrics import Direction
from lem_domain.wire.decisions import GateMetric, GateOutcome
from lem_server.decisions.comparison import OpenComparison, cycles_needed
from lem_server.decisions.contrasts import holm
from lem_server.decisions.intervals import CONFIDENCE


class GatedMetric(NamedTuple):
    """A compared metric with the regression that is allowed, as a fraction of the reference."""

    opened: OpenComparison
    limit: float


def decide(metrics: Sequence[GatedMetric]) -> tuple[GateOutcome, tuple[GateMetric, ...]]:
    """Return the outcome of all metrics and of each.

    `passed` needs every metric wholly on the good side of its limit, for which no correction is needed: each has to err
    (Berger: Multiparameter Hypothesis Testing and Acceptance Sampling, Technometrics 24, 1982). `regressed` needs one
    wholly on the bad side, corrected by Holm over the metrics. A missing value never passes.
    """
    tests = [_p_values(one) for one in metrics]
    regressed = holm([bad for _, bad in tests])
    found = tuple(
        _outcome(one, good, bad, tests=len(metrics))
        for one, (good, _), bad in zip(metrics, tests, regressed, strict=True)
    )
    outcomes = {one.outcome for one in found}
    if GateOutcome.REGRESSED in outcomes:
        return GateOutcome.REGRESSED, found
    return (GateOutcome.PASSED if outcomes == {GateOutcome.PASSED} else GateOutcome.NOT_ENOUGH_EVIDENCE), found


def _p_values(one: GatedMetric) -> tuple[float, float]:
    """Return two-sided p values of “it is not within the limit” and of “it is within the limit”."""
    widened = one.opened.widened
    if widened is None:
        return 1.0, 1.0
    low, high = one.opened.limits(-one.limit, one.limit)
    if one.opened.metric.better is Direction.HIGHER:
        good, bad = widened.p_above(low), widened.p_below(low)
    else:
        good, bad = widened.p_below(high), widened.p_above(high)
    return min(1.0, 2 * good), min(1.0, 2 * bad)


def _outcome(one: GatedMetric, good: float, bad: float, *, tests: int) -> GateMetric:
    level = 1 - CONFIDENCE
    outcome = GateOutcome.NOT_ENOUGH_EVIDENCE
    if good <= level:
        outcome = GateOutcome.PASSED
    elif bad <= level:
        outcome = GateOutcome.REGRESSED
    needed = None
    if outcome is GateOutcome.NOT_ENOUGH_EVIDENCE and one.opened.widened is not None:
        needed = cycles_needed(one.opened, _distance(one), purpose="limit", tests=tests)
    return GateMetric(comparison=one.opened.found, limit=one.limit, outcome=outcome, cycles_needed=needed)


def _distance(one: GatedMetric) -> float:
    """Return how far the estimate is from the limit, as a difference on the scale that is compared."""
    sign = -1 if one.opened.metric.better is Direction.HIGHER else 1
    limit = one.opened.limits(-one.limit, one.limit)[sign > 0]
    mean = one.opened.widened.contrasts[0].mean if one.opened.widened else limit
    return math.expm1(abs(limit - mean)) if one.opened.ratio else abs(limit - mean)
