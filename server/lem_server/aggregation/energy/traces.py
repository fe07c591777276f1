"""Energy over a window from one part's samples: a cumulative counter, or power integrated over time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lem_server.aggregation.evidence_reader import NULL, IntArray

GAP_FACTOR = 5
"""An interval is a gap when it is longer than so many median intervals."""


FloatArray = npt.NDArray[np.float64]


class Interval(Protocol):
    """A stretch of time on the worker's clock; the measured window is one."""

    @property
    def begin_ns(self) -> int:
        """Its begin."""

    @property
    def end_ns(self) -> int:
        """Its end, after the begin."""

    @property
    def duration_s(self) -> float:
        """Its length."""


class Span(NamedTuple):
    """An interval that is no window."""

    begin_ns: int
    end_ns: int

    @property
    def duration_s(self) -> float:
        """Its length."""
        return (self.end_ns - self.begin_ns) / 1e9


class EnergyEstimate(NamedTuple):
    """An energy in J with its bound (truth within ± bound_j, None where none can be stated), or a reason for none.

    `sensor_j` is what of the bound the sensor's own accuracy is, None where that is not known.
    """

    joules: float | None
    bound_j: float | None = None
    reason: str | None = None
    sensor_j: float | None = None


class SampleGaps(NamedTuple):
    """Intervals between samples around the window that are longer than `GAP_FACTOR` median ones."""

    number: int
    longest_s: float


class Powers(NamedTuple):
    """Readings in order: when, in ns, and mW."""

    times_ns: IntArray
    power_mw: IntArray


@dataclass(frozen=True)
class Trace:
    """Samples of one part in order of time: ns, cumulative counts and mW, with `NULL` where a sample has none."""

    times_ns: IntArray
    counts: IntArray
    power_mw: IntArray

    def samples_in(self, window: Interval) -> int:
        """Samples inside the window, its ends included, that hold a count or a power."""
        use = (self.times_ns >= window.begin_ns) & (self.times_ns <= window.end_ns)
        return int((use & ((self.counts != NULL) | (self.power_mw != NULL))).sum())

    def peak_power_w(self, window: Interval) -> float | None:
        """The highest power of a sample inside the window, in W; None when no sample there holds one."""
        use = (self.times_ns >= window.begin_ns) & (self.times_ns <= window.end_ns) & (self.power_mw != NULL)
        return int(self.power_mw[use].max()) / 1e3 if use.any() else None

    def powers_around(self, window: Interval) -> Powers | None:
        """The readings of power from the last before the window to the first after it; None where they don't reach
        over it."""
        use = self.power_mw != NULL
        times = self.times_ns[use]
        span = _bracket(times, window)
        if isinstance(span, str):
            return None
        return Powers(times[span[0] : span[1] + 1], self.power_mw[use][span[0] : span[1] + 1])

    def sampling_period_s(self, window: Interval) -> float | None:
        """The median time between two samples around the window; None where they don't bracket it."""
        span = _bracket(self.times_ns, window)
        if isinstance(span, str) or span[0] == span[1]:
            return None
        return float(np.median(np.diff(self.times_ns[span[0] : span[1] + 1]))) / 1e9

    def counter_period_s(self, window: Interval) -> float | None:
        """The mean time between two updates of the counter around the window; None where fewer than two were seen."""
        use = self.counts != NULL
        span = _bracket(self.times_ns[use], window)
        if isinstance(span, str):
            return None
        part = slice(span[0], span[1] + 1)
        return _mean_update_s(self.times_ns[use][part], self.counts[use][part])

    def gaps(self, window: Interval) -> SampleGaps | None:
        """Gaps among the samples that bracket the window; None without any."""
        span = _bracket(self.times_ns, window)
        if isinstance(span, str):
            return None
        intervals = np.diff(self.times_ns[span[0] : span[1] + 1])
        median = float(np.median(intervals))
        count = int((intervals > GAP_FACTOR * median).sum())
        return SampleGaps(count, int(intervals.max()) / 1e9) if count else None


def make_trace(times_ns: IntArray, counts: IntArray, power_mw: IntArray) -> Trace:
    """A trace from samples in any order; of several samples of one instant the first stays."""
    times, first = np.unique(times_ns, return_index=True)
    return Trace(times, counts[first], power_mw[first])


def counter_energy(
    trace: Trace, joules_per_count: float, window: Interval, sensor_w: float | None = None
) -> EnergyEstimate:
    """C(end) - C(begin) in J, the counter interpolated linearly between the samples around each end.

    Bound (measurement.md §2): mean power x observed update period for each end, and never less than what the samples
    themselves leave open. A counter shows the energy of its last update, so the truth at an instant lies between the
    sample before and the first sample that shows an update after it; where power at an end is far above its mean this
    is wider than the first. One count is added for the counter's own rounding, and the accuracy `sensor_w` x duration
    of the sensor that feeds it, where that is known: a counter adds up what its sensor is off by.

    The reason for no energy: no sample on one side of the window, a counter that went backwards (a reset), or one that
    never moved.
    """
    use = trace.counts != NULL
    times, counts = trace.times_ns[use], trace.counts[use]
    span = _bracket(times, window)
    if isinstance(span, str):
        return EnergyEstimate(None, reason=f"the energy counter has {span}")
    first, last = span
    falls = np.flatnonzero(np.diff(counts[first:]) < 0)
    whole = first + int(falls[0]) + 1 if len(falls) else len(counts)  # samples before the first reset
    if whole <= last:
        return EnergyEstimate(None, reason="the energy counter was reset inside the window")
    if counts[last] == counts[first]:
        return EnergyEstimate(None, reason="the energy counter did not move during the window")
    # Relative to the first sample: the numbers stay small and exact in a float.
    times = times[first:whole] - window.begin_ns
    counts = counts[first:whole] - counts[first]
    begin = _end_of_window(times, counts, 0, 0)
    end = _end_of_window(times, counts, window.end_ns - window.begin_ns, last - first - 1)
    energy = end.value - begin.value
    per_period = energy / window.duration_s * _update_period_s(times[: last - first + 1], counts[: last - first + 1])
    begin_above = per_period + begin.shown if begin.above is None else begin.above
    end_above = per_period + end.shown if end.above is None else end.above
    too_low = (end_above - end.value) + (begin.value - begin.below)
    too_high = (end.value - end.below) + (begin_above - begin.value)
    bound = max(2 * per_period, too_low + 1, too_high + 1)
    sensor_j = None if sensor_w is None else sensor_w * window.duration_s
    return EnergyEstimate(energy * joules_per_count, bound * joules_per_count + (sensor_j or 0.0), sensor_j=sensor_j)


def integrated_energy(
    trace: Trace, sensor_w: float | None, window: Interval, averaged_s: float = 0.0
) -> EnergyEstimate:
    """The integral of power over the window in J, by trapezoids, power interpolated linearly at both ends.

    Bound (measurement.md §2), None where the sensor's accuracy `sensor_w` is not known: that accuracy x duration; plus
    what can hide between two readings, half their difference x their distance, which holds while power moves from one
    to the other without turning (bursts shorter than that are seen by chance, and not at all, or each time, where they
    come in step with the readings: nothing bounds those but a counter); plus, as a sensor that updates every u
    shows a power of up to u ago, the difference of the powers around both ends x u. Where a reading is the mean over
    the last `averaged_s`, the powers of the seconds before both ends mix in: the range of power x `averaged_s`.

    The reason for no energy: no sample with a power on one side of the window.
    """
    use = trace.power_mw != NULL
    times, power = trace.times_ns[use], trace.power_mw[use]
    span = _bracket(times, window)
    if isinstance(span, str):
        return EnergyEstimate(None, reason=f"the power reading has {span}")
    first, last = span
    seconds = (times[first : last + 1] - window.begin_ns) / 1e9
    watts = power[first : last + 1] / 1e3
    at_ends = np.interp([0.0, window.duration_s], seconds, watts)
    inside = (seconds > 0) & (seconds < window.duration_s)
    t = np.concatenate(([0.0], seconds[inside], [window.duration_s]))
    p = np.concatenate((at_ends[:1], watts[inside], at_ends[1:]))
    widths = np.diff(t)
    joules = math.fsum((widths * (p[1:] + p[:-1]) / 2).tolist())
    if sensor_w is None:
        return EnergyEstimate(joules)
    steps, distances = np.abs(np.diff(watts)), np.diff(seconds)
    period = _reading_period_s(seconds, watts)
    hidden = math.fsum((steps / 2 * np.maximum(distances, period)).tolist())
    late = period * (
        _range_around(times, power, window.begin_ns, period) + _range_around(times, power, window.end_ns, period)
    )
    mixed = averaged_s * _range_between(times, power, window, averaged_s) if averaged_s else 0.0
    sensor_j = sensor_w * window.duration_s
    return EnergyEstimate(joules, sensor_j + hidden + late + mixed, sensor_j=sensor_j)


class _EndOfWindow(NamedTuple):
    value: float
    below: float
    shown: float
    above: float | None


def _end_of_window(times: IntArray, counts: IntArray, at_ns: int, lower: int) -> _EndOfWindow:
    """The counter at an instant between samples `lower` and `lower + 1`, and the counts that the truth lies between."""
    upper = lower + 1
    if times[lower] == at_ns:
        upper = lower
    elif times[upper] == at_ns:
        lower = upper
    share = 0.0 if upper == lower else (at_ns - int(times[lower])) / int(times[upper] - times[lower])
    below, shown = int(counts[lower]), int(counts[upper])
    updated = int(np.searchsorted(counts, shown, side="right"))
    above = float(counts[updated]) if updated < len(counts) else None
    return _EndOfWindow(below + (shown - below) * share, below, shown, above)


def _update_period_s(times: IntArray, counts: IntArray) -> float:
    """The mean time between updates of the counter; the whole span when fewer than two were seen."""
    seen = _mean_update_s(times, counts)
    return int(times[-1] - times[0]) / 1e9 if seen is None else seen


def _mean_update_s(times: IntArray, counts: IntArray) -> float | None:
    updates = times[1:][np.diff(counts) > 0]
    if len(updates) < 2:
        return None
    return int(updates[-1] - updates[0]) / (len(updates) - 1) / 1e9


def _reading_period_s(seconds: FloatArray, watts: FloatArray) -> float:
    """How old a reading may be: the time between changes of the reading, or between samples where it hardly changes.

    The lower quartile: power that really stays the same for a while must not look like a slow sensor.
    """
    changes = seconds[1:][np.diff(watts) != 0]
    return (
        float(np.percentile(np.diff(changes) if len(changes) > 4 else np.diff(seconds), 25))
        if len(seconds) > 1
        else 0.0
    )


def _range_around(times: IntArray, power: IntArray, at_ns: int, period_s: float) -> float:
    """Highest less lowest reading in W, from the one that shows the power before an instant to the one that shows it
    after a period of the sensor."""
    return _range_between(times, power, Span(at_ns, at_ns), period_s)


def _range_between(times: IntArray, power: IntArray, interval: Interval, margin_s: float) -> float:
    """Highest less lowest reading in W that shows a power of the interval with a margin at both ends."""
    margin_ns = round(margin_s * 1e9)
    low = max(0, int(np.searchsorted(times, interval.begin_ns - margin_ns, side="right")) - 1)
    high = int(np.searchsorted(times, interval.end_ns + margin_ns, side="left")) + 1
    near = power[low:high]
    return int(near.max() - near.min()) / 1e3


def _bracket(times: IntArray, window: Interval) -> tuple[int, int] | str:
    """Positions of the last sample at or before the begin and the first at or after the end, or what is lacking."""
    if len(times) == 0:
        return "no samples"
    first = int(np.searchsorted(times, window.begin_ns, side="right")) - 1
    last = int(np.searchsorted(times, window.end_ns, side="left"))
    if first < 0:
        return "no sample before the window began"
    if last == len(times):
        return "no sample after the window ended"
    return first, last
