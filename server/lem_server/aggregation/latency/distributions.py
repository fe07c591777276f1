"""Latency distributions over the concatenated values of all processes; percentiles are never averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lem_domain.config.measurement import SloConfig
from lem_domain.results.figures import Distribution, Figure
from lem_domain.results.run import WindowResult
from lem_server.aggregation.evidence_reader import NULL, IntArray
from lem_server.aggregation.work.requests import RankRequests

NS_PER_MS = 1e6
_BLOCK = 1 << 18
"""Values per block, so that a sum of squares over millions of values needs no second array of that size."""

_Values = npt.NDArray[np.int64] | npt.NDArray[np.float64]


def distribution_ms(values_ns: _Values, reason: str) -> Distribution:
    """Return the distribution in ms of values in ns (see `distribution`)."""
    return distribution(values_ns, "ms", NS_PER_MS, reason)


def distribution(values: _Values, unit: str, per_unit: float, reason: str) -> Distribution:
    """Return mean, sd (n - 1), min, percentiles and max of values / `per_unit`; sorts `values` in place.

    Percentiles interpolate linearly between order statistics (NumPy's default; Hyndman and Fan 1996, type 7). Sorting
    first makes every figure independent of the order of the values, to the last bit. `reason` is given if there are no
    values.
    """
    count = len(values)
    if count == 0:
        nothing = dict.fromkeys(("mean", "sd", "min", "p50", "p90", "p95", "p99", "max"))
        return Distribution(unit=unit, count=0, reason=reason, **nothing)
    values.sort()
    blocks = [values[start : start + _BLOCK] for start in range(0, count, _BLOCK)]
    mean = math.fsum(float(block.sum()) for block in blocks) / count
    squares = math.fsum(float(np.square(block - mean).sum()) for block in blocks)
    return Distribution(
        unit=unit,
        count=count,
        mean=mean / per_unit,
        sd=math.sqrt(squares / (count - 1)) / per_unit if count > 1 else None,
        min=float(values[0]) / per_unit,
        p50=_percentile(values, 50) / per_unit,
        p90=_percentile(values, 90) / per_unit,
        p95=_percentile(values, 95) / per_unit,
        p99=_percentile(values, 99) / per_unit,
        max=float(values[-1]) / per_unit,
    )


def since_arrival_ms(
    ranks: Sequence[RankRequests], until: Callable[[RankRequests], IntArray], reason: str
) -> Distribution:
    """Return a time - arrival, for finished requests that have that time: TTFT, E2E latency or time in the queue."""
    values = [np.empty(0, dtype=np.int64)]
    for rank in ranks:
        use = rank.finished & (until(rank) != NULL)
        values.append(until(rank)[use] - rank.arrival_ns[use])
    return distribution_ms(np.concatenate(values), reason)


def tpot_ms(ranks: Sequence[RankRequests]) -> Distribution:
    """Return (last - first token) / (generated - 1), for finished requests with two or more tokens."""
    values = [np.empty(0, dtype=np.float64)]
    for rank in ranks:
        timed = (rank.first_token_ns != NULL) & (rank.last_token_ns != NULL)
        use = rank.finished & timed & (rank.generated_tokens > 1)
        values.append((rank.last_token_ns[use] - rank.first_token_ns[use]) / (rank.generated_tokens[use] - 1))
    return distribution_ms(np.concatenate(values), "no finished request has two tokens with times")


def goodput_per_s(ranks: Sequence[RankRequests], slo: SloConfig | None, window: WindowResult) -> Figure:
    """Return finished requests within the limits / window.

    A request without a first token misses a TTFT limit; one with a single token has no TPOT and misses no TPOT limit.
    """
    if slo is None:
        return Figure(value=None, unit="1/s", reason="no limits are set; set traffic.slo")
    good = 0
    for rank in ranks:
        keeps = rank.finished.copy()
        if slo.ttft_ms is not None:
            ttft_ns = rank.first_token_ns - rank.arrival_ns
            keeps &= (rank.first_token_ns != NULL) & (ttft_ns <= slo.ttft_ms * NS_PER_MS)
        if slo.tpot_ms is not None:
            several = (rank.first_token_ns != NULL) & (rank.last_token_ns != NULL) & (rank.generated_tokens > 1)
            tpot_ns = (rank.last_token_ns - rank.first_token_ns) / np.maximum(rank.generated_tokens - 1, 1)
            keeps &= ~several | (tpot_ns <= slo.tpot_ms * NS_PER_MS)
        good += int(keeps.sum())
    return Figure(value=good / window.duration_s, unit="1/s")


def _percentile(ordered: _Values, percent: int) -> float:
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    return low + (high - low) * (position - below)
