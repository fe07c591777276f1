"""Telemetry of devices, ranks and the sampler: temperature, clocks, utilisation, memory, throttling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic.types import JsonValue

from lem_domain.results.figures import Figure
from lem_domain.results.run import DeviceTelemetry, ProcessMemory, SamplerTelemetry, TelemetryResult
from lem_domain.wire.workers import Device
from lem_server.aggregation.energy.power_traces import VIOLATIONS, DeviceSamples, SparseReadings
from lem_server.aggregation.energy.sampler_record import SamplerRecord
from lem_server.aggregation.energy.traces import FloatArray, Interval
from lem_server.aggregation.evidence_reader import IntArray
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import finite_number

THROTTLE_REASONS: Mapping[int, str] = {
    # nvmlClocksEventReasons of the NVML API reference.
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}

_NO_READING = "the device has no such reading in the window"
_B_PER_MB = 1e6
COVERED = 0.8
"""Counters of time that were read over a smaller part of the window say too little of it."""


def telemetry_result(
    devices: Sequence[Device],
    samples: Mapping[str, DeviceSamples],
    ranks: Sequence[str],
    summaries: Summaries,
    record: SamplerRecord,
    window: Interval,
) -> TelemetryResult:
    """Return the telemetry; devices without samples are left out."""
    uuids = [uuid for uuid in dict.fromkeys(device.uuid for device in devices) if uuid in samples]
    return TelemetryResult(
        devices=tuple(_device(uuid, samples[uuid].readings, window) for uuid in uuids),
        processes=tuple(_memory(process, summaries.get(process, {})) for process in ranks),
        sampler=_sampler(record),
    )


def during(readings: SparseReadings | None, window: Interval) -> tuple[IntArray, FloatArray] | None:
    """Return the readings that apply in the window, and for how many seconds; None if none is inside it."""
    if readings is None:
        return None
    first = int(np.searchsorted(readings.times_ns, window.begin_ns, side="left"))
    last = int(np.searchsorted(readings.times_ns, window.end_ns, side="right"))
    if first == last:
        return None
    first = max(0, first - 1)
    edges = np.clip(np.append(readings.times_ns[first:last], window.end_ns), window.begin_ns, window.end_ns)
    return readings.values[first:last], np.diff(edges) / 1e9


def throttled_shares(readings: SparseReadings | None, window: Interval) -> dict[str, float] | None:
    """Return the share of the window under each reason, without those at 0; None if the device does not report it."""
    found = during(readings, window)
    if found is None or found[1].sum() <= 0:
        return None
    masks, seconds = found
    shares: dict[str, float] = {}
    for bit in range(int(masks.max()).bit_length()):
        share = float(seconds[(masks >> bit) & 1 == 1].sum() / seconds.sum())
        if share > 0:
            shares[THROTTLE_REASONS.get(1 << bit, f"bit_{bit}")] = share
    return shares


def violated_shares(readings: Mapping[str, SparseReadings], window: Interval) -> dict[str, float] | None:
    """Return the share of the window under each policy by the driver's counters of time; None if it has none.

    A counter also counts what happens between two readings; at the ends of the window it is interpolated. Readings come
    about every 200 ms and may end a little before the window: the share is that of the part that they cover.
    """
    shares: dict[str, float] = {}
    reported = False
    for name in VIOLATIONS:
        found = readings.get(name)
        if found is None:
            continue
        begin_ns, end_ns = max(window.begin_ns, int(found.times_ns[0])), min(window.end_ns, int(found.times_ns[-1]))
        if end_ns - begin_ns < COVERED * (window.end_ns - window.begin_ns):
            continue
        first, last = np.interp([begin_ns, end_ns], found.times_ns, found.values)
        if last < first:  # the driver was loaded again
            continue
        reported = True
        # The ends are interpolated, so a share may come out above the whole by a rounding.
        if share := min(1.0, float(last - first) / (end_ns - begin_ns)):
            shares[name.removesuffix("_violation_ns")] = share
    return shares if reported else None


def _device(uuid: str, readings: Mapping[str, SparseReadings], window: Interval) -> DeviceTelemetry:
    def mean(name: str, unit: str) -> Figure:
        found = during(readings.get(name), window)
        if found is None or found[1].sum() <= 0:
            return Figure.of(None, unit, _NO_READING)
        values, seconds = found
        return Figure(value=float(values @ seconds / seconds.sum()), unit=unit)

    def highest(name: str, unit: str, scale: float = 1.0) -> Figure:
        found = during(readings.get(name), window)
        return Figure.of(None if found is None else int(found[0].max()) / scale, unit, _NO_READING)

    return DeviceTelemetry(
        uuid=uuid,
        temperature_start_c=_at_begin(readings.get("temperature_c"), window, "°C"),
        temperature_mean_c=mean("temperature_c", "°C"),
        temperature_max_c=highest("temperature_c", "°C"),
        sm_clock_mean_mhz=mean("sm_clock_mhz", "MHz"),
        memory_clock_mean_mhz=mean("memory_clock_mhz", "MHz"),
        gpu_utilisation_mean_percent=mean("gpu_percent", "%"),
        memory_utilisation_mean_percent=mean("memory_percent", "%"),
        memory_peak_mb=highest("memory_used_bytes", "MB", _B_PER_MB),
        throttled=throttled_shares(readings.get("throttle_reasons"), window),
        violated=violated_shares(readings, window),
    )


def _at_begin(readings: SparseReadings | None, window: Interval, unit: str) -> Figure:
    """The last reading before the window, else the first in it."""
    value = None
    if readings is not None:
        index = max(0, int(np.searchsorted(readings.times_ns, window.begin_ns, side="right")) - 1)
        value = float(readings.values[index]) if readings.times_ns[index] <= window.end_ns else None
    return Figure.of(value, unit, _NO_READING)


def _memory(process: str, summary: Mapping[str, JsonValue]) -> ProcessMemory:
    unknown = summary.get("unknown")

    def reported(name: str, unit: str, scale: float = 1.0) -> Figure:
        reason = unknown.get(name) if isinstance(unknown, Mapping) else None
        return _figure(finite_number(summary.get(name)), unit, scale, reason if isinstance(reason, str) else None)

    return ProcessMemory(
        process=process,
        device_peak_mb=reported("peak_device_memory_bytes", "MB", _B_PER_MB),
        rss_peak_mb=reported("peak_rss_bytes", "MB", _B_PER_MB),
        kv_cache_peak=reported("peak_kv_cache_usage", "1"),
    )


def _sampler(record: SamplerRecord) -> SamplerTelemetry:
    cpu_s, duration_s = record.number("cpu_s"), record.number("duration_s")
    share = cpu_s / duration_s if cpu_s is not None and duration_s else None
    return SamplerTelemetry(
        interval_ms=_figure(record.number("interval_ns"), "ms", 1e6),
        late_or_missed=_figure(late_share(record), "1"),
        cpu_share=_figure(share, "1"),
    )


def late_share(record: SamplerRecord) -> float | None:
    """Return the share of the sampler's ticks that were late or missed."""
    ticks, late, missed = (record.number(name) for name in ("ticks", "late", "missed"))
    if ticks is None or late is None or missed is None or ticks + missed <= 0:
        return None
    return (late + missed) / (ticks + missed)


def _figure(value: float | None, unit: str, scale: float = 1.0, reason: str | None = None) -> Figure:
    return Figure.of(None if value is None else value / scale, unit, reason or "the process did not report it")
