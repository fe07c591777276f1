"""Energy of the leased devices and of the host over the window, each part once, and the job's total."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lem_domain.results import (
    DeviceEnergy,
    EnergyFigure,
    EnergyMethod,
    EnergyResult,
    Figure,
    HostEnergy,
    WindowResult,
)
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.sources import Sources
from lem_server.aggregation.traces import Gaps, Reading, Trace, counter_energy, integrated_energy

SENSOR_W: Mapping[DeviceKind, float] = {
    # The manual of nvidia-smi on power.draw: "accurate to within +/- 5 watts".
    DeviceKind.GPU: 5.0,
    # Exact but for the rounding to whole milliwatts.
    DeviceKind.SIMULATED: 0.0005,
}

_J_PER_MJ = 1e-3
_J_PER_UJ = 1e-6

NOT_ADDED = ("core", "uncore", "psys", "gpu")
"""Host domains left out of the total: core and uncore lie inside the package, psys contains it (powercap/RAPL), and a
GPU of the host that was not leased does none of the job."""

_STRENGTH = (EnergyMethod.MODELLED, EnergyMethod.INTEGRATED, EnergyMethod.COUNTER)


class HostKey(NamedTuple):
    """One domain as one method sees it."""

    domain: str
    method: EnergyMethod


class EnergyAccount(NamedTuple):
    """The energy of an attempt, with what the findings need: gaps in the samples, by device UUID or host domain."""

    result: EnergyResult
    gaps: dict[str, Gaps]


def energy_account(
    devices: Sequence[Device],
    device_traces: Mapping[str, Trace],
    host_traces: Mapping[HostKey, Trace],
    sources: Sources,
    window: WindowResult,
) -> EnergyAccount:
    """Energy per part and in all (measurement.md §2).

    `device_traces` are by UUID, `host_traces` by domain and method. A device's counter is its figure, the integral of
    its power where there is no usable counter. The total is the sum over the leased accelerators, each UUID once
    however often it was leased, or over the host's domains where none was leased; one part without a figure makes the
    total null, never smaller. The total's method is the weakest of its parts.
    """
    gaps: dict[str, Gaps] = {}
    device_results: dict[str, DeviceEnergy] = {}
    for uuid, device in {device.uuid: device for device in devices}.items():
        device_results[uuid] = _device_energy(device, device_traces.get(uuid), sources, window)
        _note_gaps(gaps, uuid, device_traces.get(uuid), window)
    host_results: dict[str, HostEnergy] = {}
    for domain in sorted({key.domain for key in host_traces}):
        readings = {key.method: trace for key, trace in host_traces.items() if key.domain == domain}
        host_results[domain], used = _host_energy(domain, readings, sources, window)
        _note_gaps(gaps, domain, used, window)
    accelerators = {device.uuid for device in devices if device.kind in (DeviceKind.GPU, DeviceKind.SIMULATED)}
    parts: dict[str, EnergyFigure]
    if accelerators:
        parts = {uuid: part.energy for uuid, part in device_results.items() if uuid in accelerators}
    else:
        parts = {name: part.energy for name, part in host_results.items() if not name.startswith(NOT_ADDED)}
    total = _total(parts, sources)
    result = EnergyResult(
        devices=tuple(device_results.values()),
        host=tuple(host_results.values()),
        total=total,
        includes=tuple(parts) if total.joules is not None else (),
        mean_power_w=_mean_power(total, window),
    )
    return EnergyAccount(result, gaps)


def _device_energy(device: Device, trace: Trace | None, sources: Sources, window: WindowResult) -> DeviceEnergy:
    if trace is None:
        reason = (
            "the energy of a CPU is given under host, by its domains"
            if device.kind is DeviceKind.CPU
            else _because("no power was sampled for this device", sources)
        )
        energy = EnergyFigure(joules=None, reason=reason)
        peak = None
    else:
        energy = _measured(trace, _J_PER_MJ, SENSOR_W.get(device.kind), sources.of(device.uuid), window)
        peak = trace.peak_power_w(window)
    return DeviceEnergy(
        uuid=device.uuid,
        energy=energy,
        mean_power_w=_mean_power(energy, window),
        peak_power_w=Figure(
            value=peak, unit="W", reason=None if peak is not None else "no sample in the window holds an instant power"
        ),
        samples=trace.samples_in(window) if trace is not None else 0,
    )


def _host_energy(
    domain: str, readings: Mapping[EnergyMethod, Trace], sources: Sources, window: WindowResult
) -> tuple[HostEnergy, Trace]:
    """A domain's figure by the strongest method that gives one: modelled never stands where measured does."""
    source = sources.of(domain)
    tried = [(trace, _host_figure(method, trace, source, window)) for method, trace in readings.items()]
    usable = [(trace, figure) for trace, figure in tried if figure.joules is not None]
    trace, energy = max(usable or tried[:1], key=lambda pair: _strength(pair[1].method))
    host = HostEnergy(
        domain=domain, energy=energy, mean_power_w=_mean_power(energy, window), samples=trace.samples_in(window)
    )
    return host, trace


def _host_figure(method: EnergyMethod, trace: Trace, source: str | None, window: WindowResult) -> EnergyFigure:
    figure = _measured(trace, _J_PER_UJ, None, source, window)
    if figure.joules is not None and _strength(method) < _strength(figure.method):
        # A cumulative figure that its source modelled or integrated is no counter, and has no stated bound.
        return figure.model_copy(update={"method": method, "bound_j": None})
    return figure


def _measured(
    trace: Trace, joules_per_count: float, sensor_w: float | None, source: str | None, window: WindowResult
) -> EnergyFigure:
    """The counter's energy, else the integral's, else null with both reasons."""
    counted = counter_energy(trace, joules_per_count, window)
    if counted.joules is not None:
        return _figure(counted, EnergyMethod.COUNTER, source)
    integrated = integrated_energy(trace, sensor_w, window)
    if integrated.joules is not None:
        return _figure(integrated, EnergyMethod.INTEGRATED, source)
    return EnergyFigure(joules=None, source=source, reason=f"{counted.reason}, and {integrated.reason}")


def _figure(reading: Reading, method: EnergyMethod, source: str | None) -> EnergyFigure:
    return EnergyFigure(joules=reading.joules, method=method, source=source, bound_j=reading.bound_j)


def _total(parts: Mapping[str, EnergyFigure], sources: Sources) -> EnergyFigure:
    if not parts:
        return EnergyFigure(joules=None, reason=_because("nothing measured energy during the window", sources))
    lacking = [f"{name}: {part.reason}" for name, part in parts.items() if part.joules is None]
    if lacking:
        return EnergyFigure(joules=None, reason="; ".join(lacking))
    figures = list(parts.values())
    methods = {figure.method for figure in figures if figure.method is not None}
    bounds = [figure.bound_j for figure in figures if figure.bound_j is not None]
    return EnergyFigure(
        joules=math.fsum(figure.joules for figure in figures if figure.joules is not None),
        method=min(methods, key=_strength),
        source=_sources_text(figures, methods),
        bound_j=math.fsum(bounds) if len(bounds) == len(figures) else None,
    )


def _sources_text(figures: Iterable[EnergyFigure], methods: set[EnergyMethod]) -> str | None:
    names = ", ".join(sorted({figure.source for figure in figures if figure.source is not None}))
    if len(methods) < 2:
        return names or None
    mixed = "sum of " + " and ".join(method.value for method in reversed(_STRENGTH) if method in methods) + " figures"
    return f"{names} ({mixed})" if names else mixed


def _strength(method: EnergyMethod | None) -> int:
    return _STRENGTH.index(method) if method is not None else -1


def _mean_power(energy: EnergyFigure, window: WindowResult) -> Figure:
    if energy.joules is None:
        return Figure(value=None, unit="W", reason=energy.reason)
    return Figure(value=energy.joules / window.duration_s, unit="W")


def _because(what: str, sources: Sources) -> str:
    why = sources.why_none()
    return f"{what} ({why})" if why else what


def _note_gaps(gaps: dict[str, Gaps], name: str, trace: Trace | None, window: WindowResult) -> None:
    found = trace.gaps(window) if trace is not None else None
    if found is not None:
        gaps[name] = found
