"""Energy over a window from the samples of one part: a cumulative counter, or power integrated over time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lem_server.aggregation.evidence_reader import NULL, IntArray

GAP_FACTOR = 5
"""An interval is a sampling gap if it is longer than this many median intervals."""


FloatArray = npt.NDArray[np.float64]


class Interval(Protocol):
    """A period on the worker's clock; the measured window is one."""

    @property
    def begin_ns(self) -> int:
        """The begin."""

    @property
    def end_ns(self) -> int:
        """The end, after the begin."""

    @property
    def duration_s(self) -> float:
        """The length."""


class Span(NamedTuple):
    """An interval other than a window."""

    begin_ns: int
    end_ns: int

    @property
    def duration_s(self) -> float:
        """The length."""
        return (self.end_ns - self.begin_ns) / 1e9


class EnergyEstimate(NamedTuple):
    """An energy in J with its bound (the true value is within ± bound_j), or a reason why there is none.

    `bound_j` is None if no bound can be stated. `sensor_j` is the part of it that is the sensor's accuracy, None if
    that is not known.
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
    """Power readings in order: times in ns, powers in mW."""

    times_ns: IntArray
    power_mw: IntArray


@dataclass(frozen=True)
class Trace:
    """Samples of one part in order of time: ns, cumulative counts and mW, with `NULL` for missing values."""

    times_ns: IntArray
    counts: IntArray
    power_mw: IntArray

    def samples_in(self, window: Interval) -> int:
        """Count the samples inside the window, ends included, that have a count or a power."""
        use = (self.times_ns >= window.begin_ns) & (self.times_ns <= window.end_ns)
        return int((use & ((self.counts != NULL) | (self.power_mw != NULL))).sum())

    def peak_power_w(self, window: Interval) -> float | None:
        """Return the highest power of a sample inside the window, in W; None if no sample there has one."""
        use = (self.times_ns >= window.begin_ns) & (self.times_ns <= window.end_ns) & (self.power_mw != NULL)
        return int(self.power_mw[use].max()) / 1e3 if use.any() else None

    def powers_around(self, window: Interval) -> Powers | None:
        """Return the power readings from the last before the window to the first after it; None if one is missing."""
        use = self.power_mw != NULL
        times = self.times_ns[use]
        span = _bracket(times, window)
        if isinstance(span, str):
            return None
        return Powers(times[span[0] : span[1] + 1], self.power_mw[use][span[0] : span[1] + 1])

    def sampling_period_s(self, window: Interval) -> float | None:
        """Return the median time between two samples around the window; None if they do not bracket it."""
        span = _bracket(self.times_ns, window)
        if isinstance(span, str) or span[0] == span[1]:
            return None
        return float(np.median(np.diff(self.times_ns[span[0] : span[1] + 1]))) / 1e9

    def counter_period_s(self, window: Interval) -> float | None:
        """Return the mean time between counter updates around the window; None below two updates."""
        use = self.counts != NULL
        span = _bracket(self.times_ns[use], window)
        if isinstance(span, str):
            return None
        part = slice(span[0], span[1] + 1)
        return _mean_update_s(self.times_ns[use][part], self.counts[use][part])

    def sampling_gaps(self, window: Interval) -> SampleGaps | None:
        """Return the sampling gaps among the samples that bracket the window; None without any."""
        span = _bracket(self.times_ns, window)
        if isinstance(span, str):
            return None
        intervals = np.diff(self.times_ns[span[0] : span[1] + 1])
        median = float(np.median(intervals))
        count = int((intervals > GAP_FACTOR * median).sum())
        return SampleGaps(count, int(intervals.max()) / 1e9) if count else None


def make_trace(times_ns: IntArray, counts: IntArray, power_mw: IntArray) -> Trace:
    """Make a trace from samples in any order; of several samples of one instant the first is kept."""
    times, first = np.unique(times_ns, return_index=True)
    return Trace(times, counts[first], power_mw[first])


def counter_energy(
    trace: Trace, joules_per_count: float, window: Interval, sensor_w: float | None = None
) -> EnergyEstimate:
    """Return C(end) - C(begin) in J, the counter interpolated linearly between the samples around each end.

    Bound (docs/measurement.md, Energy): mean power x observed update period for each end, or the range that the samples
    leave open if that is larger. A counter shows the energy of its last update, so its true value at an instant is
    between the sample before and the first sample that shows a later update; this range is larger if power at an end is
    far above its mean. One count is added for the counter's rounding, and, if the accuracy `sensor_w` of the sensor
    behind the counter is known, `sensor_w` x duration: a counter accumulates the error of its sensor.

    There is no energy if no sample is on one side of the window, or if the counter was reset or did not move.
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
    # Relative to the first sample, the numbers are small enough to be exact in a float.
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
    """Return the integral of power over the window in J, by trapezoids, with power interpolated linearly at both ends.

    Bound (docs/measurement.md, Energy), None if the sensor's accuracy `sensor_w` is not known, the sum of:
    - `sensor_w` x duration;
    - half the difference x distance of successive readings, which bounds the error while power moves monotonically
      between them. Shorter bursts are sampled by chance; in step with the readings they are missed, or always hit. Only
      a counter bounds those;
    - the difference of the powers around both ends x update period, because a reading may be one period old;
    - range of power x `averaged_s`, if a reading is the mean over the last `averaged_s`: it includes the powers of the
      seconds before both ends.

    There is no energy if no sample with a power is on one side of the window.
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
    mixed = averaged_s * range_between(times, power, window, averaged_s) if averaged_s else 0.0
    sensor_j = sensor_w * window.duration_s
    return EnergyEstimate(joules, sensor_j + hidden + late + mixed, sensor_j=sensor_j)


class _EndOfWindow(NamedTuple):
    value: float
    below: float
    shown: float
    above: float | None


def _end_of_window(times: IntArray, counts: IntArray, at_ns: int, lower: int) -> _EndOfWindow:
    """Return the counter at an instant between samples `lower` and `lower + 1`, and the range of its true value."""
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
    """Return the mean time between counter updates; the whole span below two updates."""
    seen = _mean_update_s(times, counts)
    return int(times[-1] - times[0]) / 1e9 if seen is None else seen


def _mean_update_s(times: IntArray, counts: IntArray) -> float | None:
    updates = times[1:][np.diff(counts) > 0]
    if len(updates) < 2:
        return None
    return int(updates[-1] - updates[0]) / (len(updates) - 1) / 1e9


def _reading_period_s(seconds: FloatArray, watts: FloatArray) -> float:
    """Return how old a reading may be: the time between changes, or between samples if the reading hardly changes.

    The lower quartile is used, because constant power must not look like a slow sensor.
    """
    changes = seconds[1:][np.diff(watts) != 0]
    return (
        float(np.percentile(np.diff(changes) if len(changes) > 4 else np.diff(seconds), 25))
        if len(seconds) > 1
        else 0.0
    )


def _range_around(times: IntArray, power: IntArray, at_ns: int, period_s: float) -> float:
    """Return highest minus lowest reading in W, from one sensor period before an instant to one after it."""
    return range_between(times, power, Span(at_ns, at_ns), period_s)


def range_between(times: IntArray, power: IntArray, interval: Interval, margin_s: float) -> float:
    """Return highest minus lowest reading in W over the interval with a margin at both ends."""
    margin_ns = round(margin_s * 1e9)
    low = max(0, int(np.searchsorted(times, interval.begin_ns - margin_ns, side="right")) - 1)
    high = int(np.searchsorted(times, interval.end_ns + margin_ns, side="left")) + 1
    near = power[low:high]
    return int(near.max() - near.min()) / 1e3


def _bracket(times: IntArray, window: Interval) -> tuple[int, int] | str:
    """Return the positions of the last sample before the window and the first after it, or what is missing."""
    if len(times) == 0:
        return "no samples"
    first = int(np.searchsorted(times, window.begin_ns, side="right")) - 1
    last = int(np.searchsorted(times, window.end_ns, side="left"))
    if first < 0:
        return "no sample before the window began"
    if last == len(times):
        return "no sample after the window ended"
    return first, last
