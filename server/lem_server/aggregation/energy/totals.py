"""Energy of the leased devices and of the host over the window, each part once, and the job's total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lem_domain.config.calibration import DeviceCalibration
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.energy import DeviceEnergy, EnergyResult, HostEnergy, RefusedReadings
from lem_domain.results.figures import EnergyFigure, EnergyMethod, Figure
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_domain.results.run import WindowResult
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.energy.baselines import baseline_results, net_energy
from lem_server.aggregation.energy.meters import BoundedMeter, Meter, bounded_meter, mean_power, strength, total_energy
from lem_server.aggregation.energy.model_constant import DividedEnergy, without_model_constant
from lem_server.aggregation.energy.phase_split import phase_split
from lem_server.aggregation.energy.plausibility import PlausibleTrace, plausible
from lem_server.aggregation.energy.power_traces import HostKey
from lem_server.aggregation.energy.prefill_probe import ProbeWindow, probe_result, with_probe
from lem_server.aggregation.energy.sampler_record import DeviceFacts, SamplerRecord
from lem_server.aggregation.energy.sensors import device_sensor
from lem_server.aggregation.energy.sources import ReportedSources
from lem_server.aggregation.energy.traces import SampleGaps, Trace
from lem_server.aggregation.work.requests import RankRequests, work_result

SENSOR_W: Mapping[DeviceKind, float] = {
    # nvidia-smi manual, power.draw: "accurate to within +/- 5 watts".
    DeviceKind.GPU: 5.0,
    # Exact except for rounding to whole milliwatts.
    DeviceKind.SIMULATED: 0.0005,
}

AVERAGED_S = 1.0
"""NVML's power reading is a mean over one second on Ampere (except GA100) and newer (NVML API reference)."""

_J_PER_MJ = 1e-3
_J_PER_UJ = 1e-6

NOT_ADDED = ("core", "uncore", "psys", "repeated", "gpu")
"""Host domains that are not in the total: core and uncore are inside the package, psys contains it (powercap/RAPL), a
repeated domain shows the counter of another one, and
a GPU of the host that was not leased does no work of the job."""


class EnergyAccount(NamedTuple):
    """The energy of an attempt, and what findings need, by device UUID or host domain.

    `parts` are the parts of the total, also if it is null.
    """

    result: EnergyResult
    sampling_gaps: dict[str, SampleGaps]
    meters: dict[str, Meter]
    parts: tuple[str, ...]


def energy_account(
    config: ExperimentConfig,
    devices: Sequence[Device],
    device_traces: Mapping[str, Trace],
    host_traces: Mapping[HostKey, Trace],
    sources: ReportedSources,
    record: SamplerRecord,
    ranks: Sequence[RankRequests],
    window: WindowResult,
    probe_window: ProbeWindow | None = None,
    method: MethodVersion = DEFAULT_METHOD,
    calibration: Sequence[DeviceCalibration] = (),
) -> EnergyAccount:
    """Compute energy per part and in total (docs/measurement.md, Energy).

    `device_traces` are by UUID, `host_traces` by domain and method. A device's figure is its counter's energy, else the
    integral of its power. The total is the sum over the leased accelerators, each UUID once, and the first of several
    MIG instances of one GPU, because each shows the power of the whole GPU. Without leased accelerators it is the sum
    over the host's domains. One part without a figure makes the total null, never smaller.
    """
    meters: dict[str, Meter] = {}
    device_results: dict[str, DeviceEnergy] = {}
    for uuid, device in {device.uuid: device for device in devices}.items():
        limit_w = record.highest_limit_w(uuid, devices)
        facts = record.facts.get(uuid)
        meter = _device_meter(device, device_traces.get(uuid), sources, facts, limit_w, method, calibration)
        if meter is not None:
            meters[uuid] = meter
        device_results[uuid] = _device_energy(device, meter, sources, window)
    host_results: dict[str, HostEnergy] = {}
    for domain in sorted({key.domain for key in host_traces}):
        readings = {key.method: trace for key, trace in host_traces.items() if key.domain == domain}
        host_results[domain], meters[domain] = _host_energy(domain, readings, sources, window, method)

    accelerators = _accelerators(devices, record)
    host = _domains_to_sum({name: part.energy for name, part in host_results.items()})
    on_gpu = {uuid: device_results[uuid].energy for uuid in accelerators}
    parts = on_gpu or host
    total = total_energy(parts, _because("nothing measured energy during the window", sources))
    if total.joules is None and not config.record.power:
        total = EnergyFigure(joules=None, reason="record.power is off")
    measured = {
        name: energy
        for name, energy in {**on_gpu, **host}.items()
        if energy.joules is not None and energy.method is not EnergyMethod.MODELLED
    }
    baselines = baseline_results(record, meters, tuple(parts))
    probe = probe_result(probe_window, total, work_result(ranks), meters, tuple(parts))
    divided = DividedEnergy.of_m1() if method is MethodVersion.M1 else without_model_constant(parts, total)
    result = EnergyResult(
        devices=tuple(device_results.values()),
        host=tuple(host_results.values()),
        total=total,
        includes=tuple(parts) if total.joules is not None else (),
        constant=divided.constant,
        constant_includes=divided.constant_parts,
        without_constant=divided.rest,
        mean_power_w=mean_power(total, window),
        peak_power_w=_peak_power({part: meters[part] for part in parts if part in meters}, total, window),
        measured_total=total_energy(measured, _because("nothing measured energy during the window", sources)),
        measured_includes=tuple(measured),
        gpu=total_energy(on_gpu, "no accelerator was leased"),
        cpu=_host_sum(host, "package", "no CPU package was measured", sources),
        dram=_host_sum(host, "dram", "no memory was measured", sources),
        net=net_energy(total, baselines, record, window, enabled=config.baseline.enabled, method=method),
        baselines=baselines,
        phases=with_probe(phase_split(ranks, meters, tuple(parts), window), probe),
        probe=probe,
    )
    gaps = {part: found for part, meter in meters.items() if (found := meter.trace.sampling_gaps(window)) is not None}
    return EnergyAccount(result, gaps, meters, tuple(parts))


def _domains_to_sum(host: Mapping[str, EnergyFigure]) -> dict[str, EnergyFigure]:
    """Choose the host domains to add up.

    Sources name the same part differently (RAPL package-0, CodeCarbon package). Of the domains of one kind only the
    measured ones count if one of them has a figure, else the modelled ones.
    """
    kinds: dict[str, dict[str, EnergyFigure]] = {}
    for name, energy in host.items():
        if not name.startswith(NOT_ADDED):
            kinds.setdefault(name.partition("-")[0], {})[name] = energy
    chosen: dict[str, EnergyFigure] = {}
    for domains in kinds.values():
        modelled = {name: energy for name, energy in domains.items() if energy.method is EnergyMethod.MODELLED}
        others = {name: energy for name, energy in domains.items() if name not in modelled}
        measured = any(energy.joules is not None for energy in others.values())
        chosen |= others if measured or not modelled else modelled
    return chosen


def _peak_power(meters: Mapping[str, Meter], total: EnergyFigure, window: WindowResult) -> Figure:
    if total.joules is None:
        return Figure(value=None, unit="W", reason=total.reason)
    edges = [meter.trace.powers_around(window) for meter in meters.values()]
    known = [found for found in edges if found is not None]
    if not known or len(known) < len(edges):
        lacking = ", ".join(part for part, found in zip(meters, edges, strict=True) if found is None)
        return Figure(value=None, unit="W", reason=f"no power was sampled around the window of {lacking}")
    times = np.unique(np.concatenate([found.times_ns for found in known]))
    times = times[(times >= window.begin_ns) & (times <= window.end_ns)]
    if not len(times):
        return Figure(value=None, unit="W", reason="no sample in the window holds an instant power")
    together = np.sum([np.interp(times, found.times_ns, found.power_mw) for found in known], axis=0)
    return Figure(value=float(together.max()) / 1e3, unit="W")


def _accelerators(devices: Sequence[Device], record: SamplerRecord) -> tuple[str, ...]:
    """Return UUIDs in order, and only the first of those that show the power of the same GPU."""
    first: dict[str, str] = {}
    for device in devices:
        if device.kind in (DeviceKind.GPU, DeviceKind.SIMULATED):
            facts = record.facts.get(device.uuid)
            first.setdefault((facts.mig_parent_uuid if facts else None) or device.uuid, device.uuid)
    return tuple(first.values())


def _device_meter(
    device: Device,
    trace: Trace | None,
    sources: ReportedSources,
    facts: DeviceFacts | None,
    limit_w: float | None,
    method: MethodVersion,
    calibration: Sequence[DeviceCalibration],
) -> Meter | None:
    if trace is None:
        return None
    if method is not MethodVersion.M1:
        sensor = device_sensor(device, facts, limit_w, calibration)
        found = PlausibleTrace(trace)
        if sensor.limit_w is not None:
            found = plausible(trace, _J_PER_MJ, sensor.limit_w)
        return bounded_meter(device.uuid, found, _J_PER_MJ, sensor, sources.of(device.uuid))
    return Meter(
        part=device.uuid,
        trace=trace,
        joules_per_count=_J_PER_MJ,
        sensor_w=SENSOR_W.get(device.kind),
        averaged_s=AVERAGED_S if facts is not None and facts.power_reading == "average" else 0.0,
        source=sources.of(device.uuid),
    )


def _device_energy(device: Device, meter: Meter | None, sources: ReportedSources, window: WindowResult) -> DeviceEnergy:
    integrated = peak = counter_reason = calibration = uncorrected_j = None
    refused: tuple[RefusedReadings, ...] = ()
    if meter is None:
        reason = (
            "the energy of a CPU is given under host, by its domains"
            if device.kind is DeviceKind.CPU
            else _because("no power was sampled for this device", sources)
        )
        energy = EnergyFigure(joules=None, reason=reason)
    else:
        energy = _with_reason(meter.energy(window), sources.why_ended(device.uuid))
        integrated = meter.integral(window) if energy.method is EnergyMethod.COUNTER else None
        peak = meter.trace.peak_power_w(window)
        if isinstance(meter, BoundedMeter):
            refused, counter_reason = meter.refused_around(window), meter.why_not_counted(window)
            calibration = meter.sensor.correction
        if calibration is not None and energy.joules is not None:
            uncorrected_j = energy.joules * calibration.gain + calibration.offset_w * window.duration_s
    return DeviceEnergy(
        uuid=device.uuid,
        energy=energy,
        integrated=integrated,
        refused=refused,
        counter_reason=counter_reason,
        calibration=calibration,
        uncorrected_j=uncorrected_j,
        mean_power_w=mean_power(energy, window),
        peak_power_w=Figure(
            value=peak, unit="W", reason=None if peak is not None else "no sample in the window holds an instant power"
        ),
        samples=meter.trace.samples_in(window) if meter is not None else 0,
        counter_period_ms=_counter_period(meter, window),
        sampling_period_ms=_sampling_period(meter, window),
    )


def _host_energy(
    domain: str,
    readings: Mapping[EnergyMethod, Trace],
    sources: ReportedSources,
    window: WindowResult,
    version: MethodVersion,
) -> tuple[HostEnergy, Meter]:
    """Return a domain's figure by the strongest method that gives one; measured takes precedence over modelled."""
    source = sources.of(domain)
    kind = Meter if version is MethodVersion.M1 else BoundedMeter
    meters = [
        kind(part=domain, trace=trace, joules_per_count=_J_PER_UJ, source=source, best=method)
        for method, trace in readings.items()
    ]
    tried = [(meter, meter.energy(window)) for meter in meters]
    usable = [(meter, figure) for meter, figure in tried if figure.joules is not None]
    meter, energy = max(usable or tried[:1], key=lambda pair: strength(pair[1].method))
    energy = _with_reason(energy, sources.why_ended(domain))
    host = HostEnergy(
        domain=domain,
        energy=energy,
        mean_power_w=mean_power(energy, window),
        samples=meter.trace.samples_in(window),
        counter_period_ms=_counter_period(meter, window),
        sampling_period_ms=_sampling_period(meter, window),
    )
    return host, meter


def _host_sum(host: Mapping[str, EnergyFigure], kind: str, none: str, sources: ReportedSources) -> EnergyFigure:
    parts = {name: energy for name, energy in host.items() if name.startswith(kind)}
    return total_energy(parts, _because(none, sources))


def _counter_period(meter: Meter | None, window: WindowResult) -> Figure:
    period_s = meter.trace.counter_period_s(window) if meter is not None else None
    return _milliseconds(period_s, "no two updates of a counter were seen around the window")


def _sampling_period(meter: Meter | None, window: WindowResult) -> Figure:
    period_s = meter.trace.sampling_period_s(window) if meter is not None else None
    return _milliseconds(period_s, "the samples don't reach over the window")


def _milliseconds(seconds: float | None, reason: str) -> Figure:
    return Figure.of(None if seconds is None else seconds * 1e3, "ms", reason)


def _with_reason(energy: EnergyFigure, why: str | None) -> EnergyFigure:
    """Add to a null figure why its samples ended, if that is known."""
    if energy.joules is not None or why is None:
        return energy
    return energy.model_copy(update={"reason": f"{energy.reason} ({why})"})


def _because(what: str, sources: ReportedSources) -> str:
    why = sources.why_none()
    return f"{what} ({why})" if why else what
