"""The energy that flows while a part-time sensor does not look (method `m2`)."""

from __future__ import annotations

import math

import numpy as np

from lem_server.aggregation.energy.traces import FloatArray

RESAMPLES = 400
SEED = 20_231_205
"""The same evidence gives the same bound."""
CONFIDENCE = 0.95
_BLOCKS = 8
"""At least so many blocks in an interval, so that resampling them varies."""


def unseen_j(watts: FloatArray, period_s: float, share: float) -> float:
    """Return the half-width in J of the 95 % interval of the unseen energy, by a moving-block bootstrap.

    `watts` are successive readings, one per `period_s`, each the mean over a `share` of its period. What the rest of a
    period may differ by shows in the differences d of successive readings:
    - a step from one level to another at any time of the unseen part is off evenly, with the variance d² / 12;
    - power that goes up and down, so that successive differences have opposite signs, is different again in between:
      minus the product of the two is in the mean the variance v of a reading, and that of a mean over the whole period
      around it is (1 - share) v.

    Stretches of these variances are drawn at random, in blocks of n^(1/3), so that quiet and lively stretches stay
    whole, each with a random sign: unseen power is above or below by chance. Work in step with the readings is always
    on the same side, and no such interval holds it.

    Moving blocks: Künsch, Annals of Statistics 17 (1989); random signs: Wu, Annals of Statistics 14 (1986).
    """
    if share >= 1 or not len(watts):
        return 0.0
    if len(watts) < 3:  # too few to resample: what they differ by, over all of the time
        return float(np.ptp(watts)) * period_s * len(watts)
    steps = np.diff(watts)
    apart = (1 - share) ** 2 * steps[:-1] ** 2 / 12
    variances = apart + (1 - share) * np.maximum(0.0, -steps[:-1] * steps[1:])
    count = len(variances)
    length = max(1, min(round(count ** (1 / 3)), count // _BLOCKS))
    # The sum of a block's differences with random signs is nearly normal, with the sum of their variances.
    squares = np.concatenate(([0.0], np.cumsum(variances)))
    blocks = np.sqrt(squares[length:] - squares[:-length])
    number = math.ceil(len(watts) / length)
    random = np.random.default_rng(SEED)
    drawn = blocks[random.integers(0, len(blocks), (RESAMPLES, number))]
    sums = np.abs((drawn * random.standard_normal(drawn.shape)).sum(axis=1))
    return float(np.quantile(sums, CONFIDENCE)) * period_s
