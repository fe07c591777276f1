"""Trends of power, temperature and latency in the window: straight lines through means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lem_server.aggregation.energy.meters import Meter
from lem_server.aggregation.energy.power_traces import SparseReadings
from lem_server.aggregation.energy.traces import FloatArray, Interval
from lem_server.aggregation.evidence_reader import NULL, IntArray
from lem_server.aggregation.linear_trend import LinearTrend, fit_trend
from lem_server.aggregation.work.requests import RankRequests

_BLOCKS = 20
_PERIODS_PER_BLOCK = 5
"""Shorter blocks would show a counter's steps as changes of power."""


def power_trend(meters: Sequence[Meter], window: Interval) -> LinearTrend | None:
    """Trend of the job's power over means of equal parts of the window; None if they can't be computed."""
    periods = [meter.trace.counter_period_s(window) or meter.trace.sampling_period_s(window) for meter in meters]
    known = [period for period in periods if period is not None]
    if not meters or len(known) < len(meters):
        return None
    blocks = min(_BLOCKS, int(window.duration_s / (_PERIODS_PER_BLOCK * max(known))))
    if blocks < 5:
        return None
    edges = np.linspace(0, window.end_ns - window.begin_ns, blocks + 1).round().astype(np.int64) + window.begin_ns
    watts: FloatArray = np.zeros(blocks)
    for meter in meters:
        powers = meter.powers_w(edges)
        if powers is None:
            return None
        watts = watts + powers
    return fit_trend((np.arange(blocks) + 0.5) / blocks, watts)


def latency_trend(ranks: Sequence[RankRequests], window: Interval) -> LinearTrend | None:
    """Fit E2E latency over the repetitions of the prompts; None below five repetitions.

    Each latency is relative to the mean of the same prompt in the same process, so that the order of long and short
    prompts does not look like a trend. The line is fitted to the means of the repetitions.
    """
    numbers: list[IntArray] = []
    positions: list[FloatArray] = []
    values: list[FloatArray] = []
    for rank in ranks:
        use = np.flatnonzero(rank.finished & (rank.last_token_ns != NULL))
        order = use[np.lexsort((rank.arrival_ns[use], rank.prompt_index[use]))]
        if len(order) == 0:
            continue
        _, first, prompt, count = np.unique(
            rank.prompt_index[order], return_index=True, return_inverse=True, return_counts=True
        )
        seconds = (rank.last_token_ns[order] - rank.arrival_ns[order]) / 1e9
        means = np.bincount(prompt, seconds) / count
        keep = (count[prompt] == count.max()) & (means[prompt] > 0)
        numbers.append((np.arange(len(order)) - first[prompt])[keep])
        values.append(seconds[keep] / means[prompt][keep])
        positions.append((rank.arrival_ns[order][keep] - window.begin_ns) / (window.end_ns - window.begin_ns))
    if not numbers:
        return None
    number = np.concatenate(numbers)
    counts = np.bincount(number)
    at = np.bincount(number, np.concatenate(positions)) / np.maximum(counts, 1)
    return fit_trend(at[counts > 0], (np.bincount(number, np.concatenate(values)) / np.maximum(counts, 1))[counts > 0])


def temperature_change_c(readings: SparseReadings | None, window: Interval) -> float | None:
    """Return the rise over the window of a line through the temperatures, in °C; None below five readings."""
    if readings is None:
        return None
    use = (readings.times_ns >= window.begin_ns) & (readings.times_ns <= window.end_ns)
    at = (readings.times_ns[use] - window.begin_ns) / (window.end_ns - window.begin_ns)
    if len(at) < 5 or not np.ptp(at):
        return None
    spread = at - at.mean()
    return float(spread @ readings.values[use] / (spread @ spread))
