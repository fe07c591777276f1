"""Length of the interval over which the trend of power is computed; the sampler and a rank's warm-up share it."""

from __future__ import annotations

_SHORTEST_S = 5.0
_FEWEST_INTERVALS = 10


def trend_s(interval_ms: int) -> float:
    """Seconds of one trend: 5 s, or ten sampling intervals where 5 s would hold fewer than ten.

    A line through n evenly spaced readings with a relative noise of s has a standard error of about 3.5 s / sqrt(n)
    in its change. Ten readings with a noise of 1 % give 1 %: half of the default limit `warmup.power_slope`.
    """
    return max(_SHORTEST_S, _FEWEST_INTERVALS * interval_ms / 1000)
