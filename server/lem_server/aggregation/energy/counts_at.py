"""The count of a cumulative counter at any instant, and the range of its true value there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lem_server.aggregation.energy.traces import FloatArray, Interval, Trace
from lem_server.aggregation.evidence_reader import NULL, IntArray


class CountsAt(NamedTuple):
    """Counts at instants, relative to the last sample before an interval: the value, and the range of the true one."""

    values: FloatArray
    low: IntArray
    high: IntArray


def counts_at(trace: Trace, at_ns: IntArray, interval: Interval, *, from_sample: bool = False) -> CountsAt:
    """Return the counts at instants of an interval that the samples reach around.

    The true count is between the count before an instant and the first update after it. Counters truncate to whole
    counts, which adds one. Up to the first update in the interval the value is that update's, or with `from_sample` it
    rises from the sample before the interval.
    """
    use = trace.counts != NULL
    times, counts = trace.times_ns[use], trace.counts[use]
    first = int(np.searchsorted(times, interval.begin_ns, side="right")) - 1
    times, counts = times[first:] - interval.begin_ns, counts[first:] - counts[first]
    falls = np.flatnonzero(np.diff(counts) < 0)
    if len(falls):  # a reset after the interval
        times, counts = times[: falls[0] + 1], counts[: falls[0] + 1]
    at = at_ns - interval.begin_ns
    low = counts[np.searchsorted(times, at, side="right") - 1]
    shown = counts[np.minimum(np.searchsorted(times, at, side="left"), len(times) - 1)]
    update = np.searchsorted(counts, shown, side="right")
    period = 2 * int(counts[-1]) // max(1, len(np.unique(counts)) - 1)
    high = np.where(update < len(counts), counts[np.minimum(update, len(counts) - 1)], shown + period) + 1
    knots_ns, knots = _knots(times, counts)
    if from_sample and (not len(knots) or knots_ns[0] > times[0]):
        knots_ns, knots = np.append(times[:1], knots_ns), np.append(counts[:1], knots)
    return CountsAt(np.clip(np.interp(at, knots_ns, knots), low, high), low, high)


def _knots(times: IntArray, counts: IntArray) -> tuple[FloatArray, IntArray]:
    """Return instants and counts to interpolate between: every sample, or only updates if samples come more often.

    An update happened between the sample before it and the sample that shows it.
    """
    updates = np.flatnonzero(np.diff(counts) > 0) + 1
    if len(updates) == len(counts) - 1:
        return times.astype(np.float64), counts
    return (times[updates] + times[updates - 1]) / 2, counts[updates]
