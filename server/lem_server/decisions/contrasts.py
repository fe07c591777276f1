"""Differences of two means with their standard error and degrees of freedom, and the evidence against a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy import special

from lem_domain.wire.decisions import ConfidenceInterval
from lem_server.decisions.intervals import CONFIDENCE, FloatArray

_ROUNDING = 1e-12
"""What is left of equal values by rounding alone, in units of `scale`."""


class Contrast(NamedTuple):
    """An estimated difference; for a ratio, of logarithms."""

    mean: float
    error: float
    df: float

    def interval(self, confidence: float = CONFIDENCE) -> ConfidenceInterval:
        """Return mean ± t × standard error."""
        half = float(special.stdtrit(self.df, (1 + confidence) / 2)) * self.error if self.error else 0.0
        return ConfidenceInterval(low=self.mean - half, high=self.mean + half)

    def p_above(self, limit: float) -> float:
        """Return the one-sided p value of “the difference is at most `limit`”: small where it is above."""
        if self.error == 0:
            return 0.0 if self.mean > limit else 1.0
        return float(special.stdtr(self.df, (limit - self.mean) / self.error))

    def p_below(self, limit: float) -> float:
        """Return the one-sided p value of “the difference is at least `limit`”: small where it is below."""
        return Contrast(-self.mean, self.error, self.df).p_above(-limit)


def paired(reference: FloatArray, candidate: FloatArray, scale: float) -> Contrast:
    """Return the mean of the differences of pairs (Student: The Probable Error of a Mean, Biometrika 6, 1908).

    At least two pairs. `scale` is the size of the values, next to which a difference may be rounding.
    """
    found = candidate - reference
    sd = _rounded_off(float(found.std(ddof=1)), scale)
    return Contrast(_rounded_off(float(found.mean()), scale), sd / math.sqrt(len(found)), len(found) - 1)


def unpaired(reference: FloatArray, candidate: FloatArray, scale: float) -> Contrast:
    """Return the difference of means with unequal variances; at least two values each.

    Welch: The Generalization of “Student's” Problem, Biometrika 34 (1947), with the degrees of freedom of
    Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    sides = (reference, candidate)
    parts = [_rounded_off(float(one.std(ddof=1)), scale) ** 2 / len(one) for one in sides]
    variance = math.fsum(parts)
    df = float(min(len(one) for one in sides) - 1)
    if variance > 0:
        df = variance**2 / math.fsum(part**2 / (len(one) - 1) for part, one in zip(parts, sides, strict=True))
    return Contrast(_rounded_off(float(candidate.mean() - reference.mean()), scale), math.sqrt(variance), df)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted so that any wrong rejection in the whole family is at most as likely as the level.

    Holm: A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6 (1979); R has it
    as p.adjust.
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _rounded_off(value: float, scale: float) -> float:
    return 0.0 if abs(value) <= _ROUNDING * scale else value
