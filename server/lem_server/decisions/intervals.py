"""The mean of one metric over the cycles of an experiment, with its 95 % interval.

Below 10 values the interval is Student's t. From 10 on it is the BCa bootstrap (Efron, Tibshirani: An Introduction to
the Bootstrap, 1993, chapter 14; scipy.stats.bootstrap), which follows skewed values. A bootstrap of few values is too
narrow, because it uses quantiles of the normal distribution and sd with n: of 10 normal values, the plain 95 % BCa
interval covers 89 %. So its tails are those of Student's t: Hesterberg: What Teachers Should Know About the Bootstrap,
The American Statistician 69 (2015), the expanded percentile interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from scipy import special, stats

from lem_domain.wire.decisions import ConfidenceInterval, MeanEstimate

FloatArray = np.ndarray[tuple[int], np.dtype[np.float64]]

CONFIDENCE: Final = 0.95
LEAST_VALUES: Final = 3
"""Two values have an interval by Student's t that is 13 sd wide on both sides: it looks like knowledge and is none."""
BOOTSTRAP_FROM: Final = 10
RESAMPLES: Final = 2000
_NO_SPREAD = 1e-12
"""Relative to the mean: what rounding alone leaves of equal values."""


def array_of(values: Sequence[float]) -> FloatArray:
    """Return values as an array."""
    return np.asarray(values, dtype=np.float64)


def spread_of(values: FloatArray) -> float:
    """Return the sample standard deviation (n − 1) of at least two values; exactly 0 if only rounding differs."""
    sd = float(values.std(ddof=1))
    return sd if sd > _NO_SPREAD * float(np.abs(values).max()) else 0.0


def student_t_interval(mean: float, sd: float, n: int, confidence: float = CONFIDENCE) -> ConfidenceInterval:
    """Return mean ± t × sd / √n with n − 1 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.5.2)."""
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * sd / math.sqrt(n)
    return ConfidenceInterval(low=mean - half, high=mean + half)


def bootstrap_interval(values: FloatArray, seed: int, confidence: float = CONFIDENCE) -> ConfidenceInterval:
    """Return the BCa interval of the mean, its level expanded to the width of Student's t (see above)."""
    n = len(values)
    quantile = math.sqrt(n / (n - 1)) * float(special.stdtrit(n - 1, (1 + confidence) / 2))
    found: Any = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=2 * float(special.ndtr(quantile)) - 1,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return ConfidenceInterval(low=float(low), high=float(high))


def mean_estimate(values: Sequence[float], config_hash: str) -> MeanEstimate:
    """Return mean, spread and interval; the hash is the bootstrap's seed, so that equal values give equal ends."""
    n = len(values)
    mean = math.fsum(values) / n if n else None
    sd = cv = interval = method = None
    if mean is not None and n > 1:
        found = array_of(values)
        sd = spread_of(found)
        cv = sd / abs(mean) if mean else None
        if n >= LEAST_VALUES:
            bootstrapped = n >= BOOTSTRAP_FROM and sd > 0
            method = "bca" if bootstrapped else "student_t"
            interval = (
                bootstrap_interval(found, int(config_hash[:16], 16))
                if bootstrapped
                else student_t_interval(mean, sd, n)
            )
    return MeanEstimate.model_validate(
        {
            "n": n,
            "mean": mean,
            "sd": sd,
            "cv": cv,
            "interval": interval,
            "interval_method": method,
            "reason": None if n >= LEAST_VALUES else "too_few_cycles",
        }
    )
