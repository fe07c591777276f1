"""Effect sizes, and how many cycles a comparison needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from scipy import special

from lem_server.decisions.intervals import CONFIDENCE, FloatArray

POWER: Final = 0.8
"""The usual chance of finding what there is (Cohen: Statistical Power Analysis, 1988, 2.4)."""
MOST_CYCLES: Final = 1000


def hedges_g(reference: FloatArray, candidate: FloatArray) -> float | None:
    """Return the difference of means / pooled sd, corrected for small samples; None without any spread.

    Hedges: Distribution Theory for Glass's Estimator, Journal of Educational Statistics 6 (1981), with the exact factor
    Γ(m/2) / (√(m/2) Γ((m−1)/2)).
    """
    df = len(reference) + len(candidate) - 2
    squares = math.fsum((float(one.std(ddof=1)) ** 2) * (len(one) - 1) for one in (reference, candidate))
    if squares <= 0:
        return None
    exact = math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)
    return exact * float(candidate.mean() - reference.mean()) / math.sqrt(squares / df)


def d_z(reference: FloatArray, candidate: FloatArray) -> float | None:
    """Return the mean difference of pairs / its sd; None without spread (Lakens, Frontiers in Psychology 4, 2013)."""
    found = candidate - reference
    sd = float(found.std(ddof=1))
    return float(found.mean()) / sd if sd > 0 else None


def power_of_t(effect: float, error: float, df: float, confidence: float = CONFIDENCE) -> float:
    """Return the chance that a two-sided t test finds a true difference, by the noncentral t distribution.

    `error` is the standard error of the estimate. Cohen 1988; power.t.test(strict = TRUE) in R.
    """
    if error == 0:
        return 1.0 if effect else 0.0
    quantile = float(special.stdtrit(df, (1 + confidence) / 2))
    shift = abs(effect) / error
    if shift - quantile > _CERTAIN:
        return 1.0
    return 1 - float(special.nctdtr(df, shift, quantile)) + float(special.nctdtr(df, shift, -quantile))


_CERTAIN = 30.0
"""Standard errors beyond the quantile at which the noncentral distribution need not be computed."""


def cycles_for(power_at: Callable[[int], float]) -> int | None:
    """Return the fewest cycles with the wanted power; None if not even `MOST_CYCLES` have it."""
    if power_at(MOST_CYCLES) < POWER:
        return None
    few, enough = 2, MOST_CYCLES
    while enough - few > 1:
        middle = (few + enough) // 2
        if power_at(middle) < POWER:
            few = middle
        else:
            enough = middle
    return enough
