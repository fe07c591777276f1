"""Stops the cycles of an experiment once its mean is known well enough.

Looking after each cycle and stopping when the interval is narrow favours moments at which the spread looks small by
chance: with a plain 95 % interval at each look and at least 5 cycles, the interval at the stop covers 92 %. Mean and sd
of normal values are independent, so the coverage is known exactly (Starr: The Performance of a Sequential Procedure for
the Fixed-Width Interval Estimation of the Mean, Annals of Mathematical Statistics 37, 1966): with N cycles at the
stop, E[2 Φ(t S_N / σ) − 1]. Its minimum over all σ is 95.5 % when each look spends half of the error (a confidence of
97.5 %), however many cycles there may be. An alpha-spending boundary for tests (O'Brien–Fleming, Pocock) would
protect against stopping on the mean too, which this rule never looks at, and would take many more cycles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from lem_domain.wire.decisions import ConfidenceInterval
from lem_server.decisions.intervals import CONFIDENCE, array_of, spread_of, student_t_interval

LEAST_CYCLES: Final = 5
SPENDING: Final = 2.0
"""The error of each look is 5 % / this factor; `benchmarks/decisions.py` prints the coverage that follows."""


class Look(NamedTuple):
    """What is known after the cycles so far."""

    precise: bool
    """No further cycle is needed."""
    half_width: float | None
    """Of the interval, relative to the mean; None below `LEAST_CYCLES`, or if the mean is 0."""
    interval: ConfidenceInterval | None
    """It covers 95 % when the cycles end by this rule."""


def look(values: Sequence[float], half_width: float) -> Look:
    """Return whether the interval of the mean is at most ± `half_width` × mean."""
    n = len(values)
    mean = math.fsum(values) / n if n else 0.0
    if n < LEAST_CYCLES or mean == 0:
        return Look(False, None, None)
    found = student_t_interval(mean, spread_of(array_of(values)), n, 1 - (1 - CONFIDENCE) / SPENDING)
    relative = (found.high - found.low) / 2 / abs(mean)
    return Look(relative <= half_width, relative, found)
