"""One part of the job (a device or a host domain) with its samples: its energy over any interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lem_domain.results.figures import EnergyFigure, EnergyMethod, Figure
from lem_server.aggregation.energy.traces import (
    EnergyEstimate,
    FloatArray,
    Interval,
    Trace,
    counter_energy,
    integrated_energy,
)
from lem_server.aggregation.evidence_reader import NULL, IntArray

STRENGTH = (EnergyMethod.MODELLED, EnergyMethod.INTEGRATED, EnergyMethod.COUNTER)
"""From the weakest to the strongest."""


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
            (self.trace.power_mw, _integral_until),
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
        joules: FloatArray = relative * self.joules_per_count
        return joules

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
    if energy.joules is None:
        return Figure(value=None, unit="W", reason=energy.reason)
    return Figure(value=energy.joules / interval.duration_s, unit="W")


def _sources_text(figures: Iterable[EnergyFigure], methods: set[EnergyMethod]) -> str | None:
    names = ", ".join(sorted({figure.source for figure in figures if figure.source is not None}))
    if len(methods) < 2:
        return names or None
    mixed = "sum of " + " and ".join(method.value for method in reversed(STRENGTH) if method in methods) + " figures"
    return f"{names} ({mixed})" if names else mixed


def _integral_until(times: IntArray, power_mw: IntArray, at_ns: IntArray) -> FloatArray:
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
