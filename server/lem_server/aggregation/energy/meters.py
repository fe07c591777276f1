"""One part of the job (a device or a host domain) with its samples: its energy over any interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lem_domain.results.energy import RefusedReadings
from lem_domain.results.figures import EnergyFigure, EnergyMethod, Figure
from lem_server.aggregation.energy.bounds import (
    BoundedEstimate,
    bound_j,
    bound_parts,
    counter_bounded,
    disagreement_j,
    integral_bounded,
    integral_open,
    sensor_bound_j,
    sum_of_parts,
)
from lem_server.aggregation.energy.counts_at import counts_at
from lem_server.aggregation.energy.plausibility import PlausibleTrace
from lem_server.aggregation.energy.sensors import Sensor
from lem_server.aggregation.energy.traces import (
    EnergyEstimate,
    FloatArray,
    Interval,
    Span,
    Trace,
    counter_energy,
    integrated_energy,
)
from lem_server.aggregation.evidence_reader import NULL, IntArray

STRENGTH = (EnergyMethod.MODELLED, EnergyMethod.INTEGRATED, EnergyMethod.COUNTER)
"""From the weakest to the strongest."""


class EnergyCourse(NamedTuple):
    """The energy of a part since the begin of an interval, at instants of it, in J, and what its samples leave open.

    `open_j` is by how much each value may be off. In addition `late_j` is open by chance over the whole interval (it
    grows with the root of time), and `hidden_j` anywhere in it. A shorter time than `resolution_s` is not resolved.
    """

    joules: FloatArray
    open_j: FloatArray
    late_j: float
    hidden_j: float
    resolution_s: float


@dataclass(frozen=True)
class Meter:
    """The samples of one part and how to turn them into energy.

    `best` is the strongest method that its figures may claim; a power reading is a mean over `averaged_s`; `sensor_w`
    is the sensor's accuracy, None if it is not known.
    """

    part: str
    trace: Trace
    joules_per_count: float
    sensor_w: float | None = None
    averaged_s: float = 0.0
    source: str | None = None
    best: EnergyMethod = EnergyMethod.COUNTER

    def energy(self, interval: Interval) -> EnergyFigure:
        """Return the counter's energy, else the integral's, else null with both reasons."""
        counted = self.counted(interval)
        if counted.joules is not None:
            return self._figure(counted, EnergyMethod.COUNTER)
        integrated = self.integrated(interval)
        if integrated.joules is not None:
            return self._figure(integrated, EnergyMethod.INTEGRATED)
        return EnergyFigure(joules=None, source=self.source, reason=f"{counted.reason}, and {integrated.reason}")

    def integral(self, interval: Interval) -> EnergyFigure | None:
        """Return the integral of power; None if there is none."""
        integrated = self.integrated(interval)
        return self._figure(integrated, EnergyMethod.INTEGRATED) if integrated.joules is not None else None

    def counted(self, interval: Interval) -> EnergyEstimate:
        """Return the energy by the counter."""
        return counter_energy(self.trace, self.joules_per_count, interval, self.sensor_w)

    def integrated(self, interval: Interval) -> EnergyEstimate:
        """Return the energy by integrated power."""
        return integrated_energy(self.trace, self.sensor_w, interval, self.averaged_s)

    def powers_w(self, edges_ns: IntArray) -> FloatArray | None:
        """Return the mean power between successive instants, from instant power if sampled, else from the counter.

        None if the samples do not cover all instants.
        """
        for values, joules in (
            (self.trace.power_mw, integral_until),
            (self.trace.counts, self._counted_until),
        ):
            use = values != NULL
            times = self.trace.times_ns[use]
            if len(times) > 1 and times[0] <= edges_ns[0] and times[-1] >= edges_ns[-1]:
                found: FloatArray = np.diff(joules(times, values[use], edges_ns)) / (np.diff(edges_ns) / 1e9)
                return found
        return None

    def _counted_until(self, times: IntArray, counts: IntArray, at_ns: IntArray) -> FloatArray:
        relative = np.interp(at_ns - times[0], times - times[0], counts - counts[0])
        joules: FloatArray = relative * self.joules_per_count - self._counted_offset_w * (at_ns - times[0]) / 1e9
        return joules

    @property
    def _counted_offset_w(self) -> float:
        return 0.0

    def _figure(self, reading: EnergyEstimate, method: EnergyMethod) -> EnergyFigure:
        if strength(self.best) < strength(method):
            # A cumulative figure that its source modelled or integrated is not a counter and has no bound.
            return EnergyFigure(joules=reading.joules, method=self.best, source=self.source)
        return EnergyFigure(
            joules=reading.joules,
            method=method,
            source=self.source,
            bound_j=reading.bound_j,
            sensor_bound_j=reading.sensor_j,
        )


@dataclass(frozen=True)
class BoundedMeter(Meter):
    """The samples of one part by method `m2`: `trace` has plausible readings only, and bounds have parts.

    With a calibration of its sensor `trace` has corrected powers, and `joules_per_count` is that of true energy.
    """

    sensor: Sensor = field(default_factory=Sensor)
    plausible: PlausibleTrace | None = None

    def energy(self, interval: Interval) -> EnergyFigure:
        """Return the counter's energy, else the integral's, else null with both reasons.

        Where both exist and differ by more than their samples leave open, the bound is widened until it holds both.
        """
        counted = self._counted(interval)
        integrated = self._integrated(interval)
        if counted.joules is not None:
            apart_j = disagreement_j(counted, integrated)
            return self._bounded(counted, interval, EnergyMethod.COUNTER, apart_j)
        if integrated.joules is not None:
            return self._bounded(integrated, interval, EnergyMethod.INTEGRATED)
        return EnergyFigure(joules=None, source=self.source, reason=f"{counted.reason}, and {integrated.reason}")

    def integral(self, interval: Interval) -> EnergyFigure | None:
        """Return the integral of power; None if there is none."""
        integrated = self._integrated(interval)
        return None if integrated.joules is None else self._bounded(integrated, interval, EnergyMethod.INTEGRATED)

    def counted(self, interval: Interval) -> EnergyEstimate:
        """Return the energy by the counter."""
        counted = self._counted(interval)
        return EnergyEstimate(counted.joules, None if counted.joules is None else counted.open_j, counted.reason)

    def part_of(self, interval: Interval, counts: float, open_counts: float, part_s: float) -> EnergyFigure:
        """Return the energy of a part of an interval, of which a number of counts is known to within `open_counts`.

        Unseen energy and the steps of a counter that were replaced may all be in this part.
        """
        whole = self._counted(interval)
        replaced_j = self._plausible.replaced_counts(interval) * self.joules_per_count
        found = BoundedEstimate(
            counts * self.joules_per_count - self._counted_offset_w * part_s,
            open_counts * self.joules_per_count + replaced_j,
            whole.coverage_j,
        )
        return self._bounded(found, Span(0, round(part_s * 1e9)), EnergyMethod.COUNTER)

    def course(self, interval: Interval, at_ns: IntArray) -> EnergyCourse | str:
        """Return the energy since the begin of an interval at rising instants, its begin and end among them.

        It has the shape of the counter, or of the power readings if the figure is their integral, scaled so that it
        ends at the figure. A string says why there is no figure.
        """
        figure = self.energy(interval)
        if figure.joules is None:
            return str(figure.reason)
        since_s = (at_ns - interval.begin_ns) / 1e9
        if self._counted(interval).joules is not None:
            counts = counts_at(self.trace, at_ns, interval, from_sample=True)
            shape = counts.values * self.joules_per_count - self._counted_offset_w * since_s
            open_j = np.maximum(counts.high - counts.values, counts.values - counts.low) * self.joules_per_count
            resolution_s = self.trace.counter_period_s(interval) or interval.duration_s
            late_j, hidden_j = 0.0, self._plausible.replaced_counts(interval) * self.joules_per_count
        else:
            use = self.trace.power_mw != NULL
            left = integral_open(self.trace, interval, self.sensor)
            shape = integral_until(self.trace.times_ns[use], self.trace.power_mw[use], at_ns)
            open_j = np.full(len(at_ns), left.lag_s * left.range_w)
            resolution_s = max(left.usual_s, self.sensor.period_s)
            late_j, hidden_j = left.late_j, left.gaps_j
        shape = shape - shape[0]
        if shape[-1] <= 0:
            shape = since_s  # as far as is known the power was level
        return EnergyCourse(shape * (figure.joules / shape[-1]), open_j, late_j, hidden_j, resolution_s)

    def refused_around(self, interval: Interval) -> tuple[RefusedReadings, ...]:
        """Count what is in no figure around an interval."""
        return self._plausible.refused_around(interval)

    def why_not_counted(self, interval: Interval) -> str | None:
        """Return why a counter that was sampled is not the figure; None if it is, or if there is none."""
        if not bool((self.trace.counts != NULL).any()):
            return None
        return self._counted(interval).reason

    def disagreement_j(self, interval: Interval) -> float | None:
        """Return by how much counter and integral differ; None if their samples leave that open."""
        return disagreement_j(self._counted(interval), self._integrated(interval))

    def _counted(self, interval: Interval) -> BoundedEstimate:
        found = counter_bounded(self._plausible, self.joules_per_count, interval, self.sensor)
        if found.joules is None or self.sensor.correction is None:
            return found
        return found._replace(joules=found.joules - self._counted_offset_w * interval.duration_s)

    @property
    def _counted_offset_w(self) -> float:
        return self.sensor.counted_offset_w

    def _integrated(self, interval: Interval) -> BoundedEstimate:
        return integral_bounded(self._plausible, interval, self.sensor)

    @property
    def _plausible(self) -> PlausibleTrace:
        return self.plausible or PlausibleTrace(self.trace)

    def _bounded(
        self, found: BoundedEstimate, interval: Interval, method: EnergyMethod, apart_j: float | None = None
    ) -> EnergyFigure:
        joules = found.joules
        if joules is None or strength(self.best) < strength(method):
            return EnergyFigure(
                joules=joules, method=self.best, source=self.source, bound_reason="a model of power has no bound"
            )
        parts = bound_parts(found, interval.duration_s, self.sensor, apart_j)
        sensor_j = sensor_bound_j(parts, joules, interval.duration_s)
        if sensor_j is None and method is EnergyMethod.INTEGRATED:
            return EnergyFigure(
                joules=joules,
                method=method,
                source=self.source,
                bound_reason="the error of the power readings is not published",
            )
        return EnergyFigure(
            joules=joules,
            method=method,
            source=self.source,
            bound_j=bound_j(parts, joules, interval.duration_s),
            sensor_bound_j=sensor_j,
            bound_parts=parts,
        )


def bounded_meter(
    part: str, found: PlausibleTrace, joules_per_count: float, sensor: Sensor, source: str | None = None
) -> BoundedMeter:
    """Return the meter of plausible readings, corrected by the sensor's calibration if it has one."""
    corrected = sensor.corrected(found)
    return BoundedMeter(
        part=part,
        trace=corrected.trace,
        joules_per_count=joules_per_count / sensor.slope,
        source=source,
        sensor=sensor,
        plausible=corrected,
    )


def strength(method: EnergyMethod | None) -> int:
    """Return the rank of a method for comparisons; -1 for none."""
    return STRENGTH.index(method) if method is not None else -1


def total_energy(parts: Mapping[str, EnergyFigure], none: str) -> EnergyFigure:
    """Return the sum, with the weakest method of its parts; null if one part is.

    `none` is the reason if there are no parts.
    """
    if not parts:
        return EnergyFigure(joules=None, reason=none)
    lacking = [f"{name}: {part.reason}" for name, part in parts.items() if part.joules is None]
    if lacking:
        return EnergyFigure(joules=None, reason="; ".join(lacking))
    figures = list(parts.values())
    methods = {figure.method for figure in figures if figure.method is not None}
    return EnergyFigure(
        joules=math.fsum(figure.joules for figure in figures if figure.joules is not None),
        method=min(methods, key=strength),
        source=_sources_text(figures, methods),
        bound_j=sum_or_none([figure.bound_j for figure in figures]),
        sensor_bound_j=sum_or_none([figure.sensor_bound_j for figure in figures]),
        bound_parts=sum_of_parts(figures),
        bound_reason="; ".join(dict.fromkeys(figure.bound_reason for figure in figures if figure.bound_reason)) or None,
    )


def not_sampled() -> EnergyFigure:
    """Return the figure of a part without samples."""
    return EnergyFigure(joules=None, reason="no power was sampled for it")


def sum_or_none(numbers: Sequence[float | None]) -> float | None:
    """Return the sum; None if one number is."""
    known = [number for number in numbers if number is not None]
    return math.fsum(known) if len(known) == len(numbers) else None


def mean_power(energy: EnergyFigure, interval: Interval) -> Figure:
    """Return energy / duration."""
    return energy.per(interval.duration_s, "W", "the interval has no length")


def _sources_text(figures: Iterable[EnergyFigure], methods: set[EnergyMethod]) -> str | None:
    names = ", ".join(sorted({figure.source for figure in figures if figure.source is not None}))
    if len(methods) < 2:
        return names or None
    mixed = "sum of " + " and ".join(method.value for method in reversed(STRENGTH) if method in methods) + " figures"
    return f"{names} ({mixed})" if names else mixed


def integral_until(times: IntArray, power_mw: IntArray, at_ns: IntArray) -> FloatArray:
    """Return the integral of power from the first sample until each instant, in J."""
    seconds, watts = (times - times[0]) / 1e9, power_mw / 1e3
    pieces = np.diff(seconds) * (watts[1:] + watts[:-1]) / 2
    whole = np.concatenate(([0.0], np.cumsum(pieces)))
    at = (at_ns - times[0]) / 1e9
    index = np.clip(np.searchsorted(seconds, at, side="right") - 1, 0, len(seconds) - 2)
    into = at - seconds[index]
    slope = (watts[index + 1] - watts[index]) / (seconds[index + 1] - seconds[index])
    joules: FloatArray = whole[index] + into * (watts[index] + slope * into / 2)
    return joules
