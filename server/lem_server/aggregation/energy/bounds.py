"""Energy over an interval with its bound by parts (method `m2`; docs/measurement.md, Energy)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lem_domain.results.figures import BoundParts, EnergyFigure
from lem_server.aggregation.energy.coverage import unseen_j
from lem_server.aggregation.energy.plausibility import PlausibleTrace
from lem_server.aggregation.energy.sensors import Sensor
from lem_server.aggregation.energy.traces import (
    FloatArray,
    Interval,
    Span,
    Trace,
    counter_energy,
    integrated_energy,
    range_between,
)
from lem_server.aggregation.evidence_reader import NULL, IntArray

_GAP = 3.0
"""A distance between readings of more than this many usual ones is a gap."""
_LEAST_OPEN = 0.1
"""Of the mean power: what a gap leaves open even where no reading varied."""


class BoundedEstimate(NamedTuple):
    """An energy in J with what sampling and unseen time leave open, or a reason why there is none."""

    joules: float | None
    sampling_j: float = 0.0
    coverage_j: float = 0.0
    reason: str | None = None

    @property
    def open_j(self) -> float:
        """What the samples leave open in all."""
        return self.sampling_j + self.coverage_j


def counter_bounded(
    found: PlausibleTrace, joules_per_count: float, interval: Interval, sensor: Sensor
) -> BoundedEstimate:
    """Return the counter's energy as `m1` computes it, and what is open.

    Sampling: as in `m1`; for a counter that was not seen to update after the interval, the highest power × the time
    since its last update; and for every step that was replaced by an estimate, what that leaves open. Coverage: that of
    the sensor, because it is not published whether a counter sees more than the sensor behind it.
    """
    if found.unusable is not None:
        return BoundedEstimate(None, reason=found.unusable)
    if found.stalled_in(interval):
        return BoundedEstimate(None, reason="the energy counter did not move while power flowed")
    read = counter_energy(found.trace, joules_per_count, interval)
    if read.joules is None or read.bound_j is None:
        return BoundedEstimate(None, reason=read.reason)
    replaced = found.replaced_counts(interval)
    stale_j = _since_last_update_j(found.trace, read.joules, interval)
    return BoundedEstimate(
        read.joules,
        read.bound_j + replaced * joules_per_count + stale_j,
        _counter_coverage_j(found.trace, joules_per_count, interval, sensor),
    )


def integral_bounded(found: PlausibleTrace, interval: Interval, sensor: Sensor) -> BoundedEstimate:
    """Return the integral of the power readings by trapezoids, and what is open.

    Sampling is the sum of:
    - at each end, the range of the readings around it × the time by which a reading may lag: its age, which is the
      longest distance between changes (at least the model's period), and half of its averaging and sampling times;
    - that a new reading is seen up to one sample late: the root of the sum of squares of differences of successive
      readings × the sampling distance, because one is seen early and another late;
    - in every gap, its length × the range of the readings, or × a tenth of their mean if that is more.

    Coverage is the time that no reading saw.
    """
    read = integrated_energy(found.trace, None, interval)
    if read.joules is None:
        return BoundedEstimate(None, reason=read.reason)
    times, power = _readings(found.trace)
    left = integral_open(found.trace, interval, sensor)
    ends_j = sum(
        left.lag_s * range_between(times, power, Span(at_ns, at_ns), left.lag_s)
        for at_ns in (interval.begin_ns, interval.end_ns)
    )
    sampling_j = ends_j + left.late_j + left.gaps_j
    usual_s = left.usual_s
    step_s = max(sensor.period_s, usual_s)
    coverage_j = 0.0
    if step_s > 0:
        coverage_j = unseen_j(_held(times, watts_of(power), interval, step_s), step_s, sensor.averaged_s / step_s)
    return BoundedEstimate(read.joules, sampling_j, coverage_j)


class IntegralOpen(NamedTuple):
    """What an integral leaves open: readings may lag by a time, be seen late, and be missing in gaps.

    `range_w` is the highest reading minus the lowest.
    """

    lag_s: float
    late_j: float
    gaps_j: float
    range_w: float
    usual_s: float
    """The usual distance between readings."""


def integral_open(trace: Trace, interval: Interval, sensor: Sensor) -> IntegralOpen:
    """Return what the integral over an interval that readings reach around leaves open (see `integral_bounded`)."""
    times, power = _readings(trace)
    first = int(np.searchsorted(times, interval.begin_ns, side="right")) - 1
    last = int(np.searchsorted(times, interval.end_ns, side="left"))
    distances, watts = np.diff(times[first : last + 1]) / 1e9, power[first : last + 1] / 1e3
    usual_s = float(np.median(distances)) if len(distances) else 0.0
    lag_s = _age_s(times[first : last + 1], power[first : last + 1], sensor, usual_s)
    lag_s += (sensor.averaged_s + usual_s) / 2
    late = np.diff(watts) * np.minimum(distances, _GAP * usual_s)
    gaps = distances[distances > _GAP * max(usual_s, sensor.period_s)]
    open_w = max(float(np.ptp(watts)), _LEAST_OPEN * float(watts.mean())) if len(gaps) else 0.0
    return IntegralOpen(
        lag_s=lag_s,
        late_j=math.sqrt(math.fsum((late**2).tolist())),
        gaps_j=float((gaps - usual_s).sum()) * open_w,
        range_w=float(np.ptp(watts)),
        usual_s=usual_s,
    )


def disagreement_j(counted: BoundedEstimate, integrated: BoundedEstimate) -> float | None:
    """Return by how much counter and integral differ, if that is more than their samples leave open; else None."""
    if counted.joules is None or integrated.joules is None:
        return None
    apart = abs(counted.joules - integrated.joules)
    return apart if apart > counted.open_j + integrated.open_j else None


def bound_parts(found: BoundedEstimate, interval_s: float, sensor: Sensor, apart_j: float | None) -> BoundParts:
    """Return the parts of an estimate's bound, widened so that it holds a figure `apart_j` away."""
    parts = BoundParts(
        sensor_gain=sensor.gain,
        sensor_offset_w=sensor.offset_w,
        sampling_j=found.sampling_j,
        coverage_j=found.coverage_j,
        calibration=sensor.calibration,
    )
    short_j = (apart_j or 0.0) - bound_j(parts, found.joules or 0.0, interval_s)
    return parts.model_copy(update={"disagreement_j": short_j}) if short_j > 0 else parts


def sensor_bound_j(parts: BoundParts, joules: float, interval_s: float) -> float | None:
    """Return the sensor's part of a bound; None if the sensor's error is not published."""
    if parts.sensor_gain is None or parts.sensor_offset_w is None:
        return None
    return parts.sensor_gain * abs(joules) + parts.sensor_offset_w * interval_s


def bound_j(parts: BoundParts, joules: float, interval_s: float) -> float:
    """Return the sum of the parts."""
    sensor_j = sensor_bound_j(parts, joules, interval_s) or 0.0
    return sensor_j + parts.sampling_j + parts.coverage_j + parts.disagreement_j


def sum_of_parts(figures: Sequence[EnergyFigure]) -> BoundParts | None:
    """Return the parts of the bound of a sum (see `BoundParts`); None if a figure has none."""
    parts = [figure.bound_parts for figure in figures]
    known = [one for one in parts if one is not None]
    if not known or len(known) < len(parts):
        return None
    joules = [abs(figure.joules or 0.0) for figure in figures]
    gains = [one.sensor_gain for one in known]
    offsets = [one.sensor_offset_w for one in known]
    stated = [one for one in gains if one is not None]
    gain = None
    if len(stated) == len(gains):
        whole = math.fsum(joules)
        weighted = math.fsum(one * each for one, each in zip(stated, joules, strict=True))
        gain = weighted / whole if whole else max(stated)
    return BoundParts(
        sensor_gain=gain,
        sensor_offset_w=None if None in offsets else math.fsum(one for one in offsets if one is not None),
        sampling_j=math.fsum(one.sampling_j for one in known),
        coverage_j=math.fsum(one.coverage_j for one in known),
        disagreement_j=math.fsum(one.disagreement_j for one in known),
        calibration="; ".join(dict.fromkeys(one.calibration for one in known if one.calibration)) or None,
    )


def watts_of(power_mw: IntArray) -> FloatArray:
    """Return powers in W."""
    watts: FloatArray = power_mw / 1e3
    return watts


def _readings(trace: Trace) -> tuple[IntArray, IntArray]:
    use = trace.power_mw != NULL
    return trace.times_ns[use], trace.power_mw[use]


def _held(times: IntArray, values: FloatArray, interval: Interval, step_s: float) -> FloatArray:
    """Return the reading that is shown at the end of each step of the interval."""
    at = np.arange(interval.begin_ns + round(step_s * 1e9), interval.end_ns + 1, round(step_s * 1e9))
    found: FloatArray = values[np.maximum(np.searchsorted(times, at, side="right") - 1, 0)]
    return found


def _age_s(times: IntArray, power: IntArray, sensor: Sensor, usual_s: float) -> float:
    """Return how old a reading may be."""
    changes = np.diff(times[1:][np.diff(power) != 0]) / 1e9
    longest = 0.0
    if len(changes):
        # Level power shows no changes: what is far above the usual distance says nothing of the sensor.
        longest = min(float(changes.max()), _GAP * float(np.median(changes)))
    return max(sensor.period_s, usual_s, longest)


def _since_last_update_j(trace: Trace, joules: float, interval: Interval) -> float:
    """Return the energy that may have flowed since the counter's last update, if it was not seen to update again."""
    use = trace.counts != NULL
    times, counts = trace.times_ns[use], trace.counts[use]
    moves = times[1:][np.diff(counts) > 0]
    if not len(moves) or moves[-1] >= interval.end_ns:
        return 0.0
    read_at, power = _readings(trace)
    near = power[(read_at >= moves[-1]) & (read_at <= interval.end_ns)]
    watts = float(near.max()) / 1e3 if len(near) else joules / interval.duration_s
    return watts * (interval.end_ns - int(moves[-1])) / 1e9


def _counter_coverage_j(trace: Trace, joules_per_count: float, interval: Interval, sensor: Sensor) -> float:
    if not sensor.is_part_time:
        return 0.0
    times, power = _readings(trace)
    if len(times) > 1 and times[0] <= interval.begin_ns and times[-1] >= interval.end_ns:
        step_s = max(sensor.period_s, trace.sampling_period_s(interval) or 0.0)
        watts = _held(times, watts_of(power), interval, step_s)
    else:
        step_s = max(sensor.period_s, trace.counter_period_s(interval) or 0.0, trace.sampling_period_s(interval) or 0.0)
        use = trace.counts != NULL
        times, counts = trace.times_ns[use], trace.counts[use]
        edges = np.arange(interval.begin_ns, interval.end_ns + 1, round(step_s * 1e9))
        joules = np.interp(edges - times[0], times - times[0], counts - counts[0]) * joules_per_count
        watts = np.diff(joules) / step_s
    # The sensor looks once in its period, however seldom the samples show it.
    periods = math.sqrt(sensor.period_s / step_s)
    return unseen_j(watts, step_s, sensor.averaged_s / sensor.period_s) * periods
