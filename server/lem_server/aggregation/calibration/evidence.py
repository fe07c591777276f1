"""Compares a meter's log with the stored evidence of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from lem_domain.gpu_sensors import HIGHEST_POWER_W, sensor_error
from lem_domain.wire.calibration import CalibrationFit, Interval95, MeterLogOptions
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.calibration.alignment import Power, by_correlation, by_time_stamps, paired
from lem_server.aggregation.calibration.fit import entry_of, fitted
from lem_server.aggregation.calibration.meter_log import MeterLog, read_meter_log, utc_text
from lem_server.aggregation.energy.plausibility import plausible
from lem_server.aggregation.energy.power_traces import DeviceSamples, read_devices
from lem_server.aggregation.energy.sampler_record import ClockReading, read_sampler
from lem_server.aggregation.errors import CalibrationRefused
from lem_server.aggregation.evidence_reader import NULL, EvidenceReader, IntArray
from lem_server.aggregation.inputs import AggregationInput, ChunkSource

LEAST_COVERED = 0.5
_J_PER_MJ = 1e-3


def fit_to_log(inputs: AggregationInput, chunks: ChunkSource, body: bytes, options: MeterLogOptions) -> CalibrationFit:
    """Fit a device's calibration to a meter's log.

    Raises:
        CalibrationRefused: the log, the evidence or their comparison does not allow it; the text says why.
        EvidenceCorrupt, EvidenceInvalid: the evidence can't be read.
    """
    log = read_meter_log(body, options)
    reader = EvidenceReader(inputs.held, chunks, allow_partial=True)
    samples, record = read_devices(reader, inputs.devices), read_sampler(reader, inputs.summaries)
    device = _metered(inputs.devices, samples, options.device)
    if not record.clocks:
        raise CalibrationRefused("the run's evidence has no reading of the clocks, so its times can't be compared.")
    limit_w = record.highest_limit_w(device.uuid, inputs.devices) or HIGHEST_POWER_W
    trace = plausible(samples[device.uuid].trace, _J_PER_MJ, limit_w).trace
    use = trace.power_mw != NULL
    if use.sum() < 2:
        raise CalibrationRefused(f"the evidence has no power readings of {device.uuid}, only its counter or nothing.")
    times_ns = _utc_ns(trace.times_ns[use], record.clocks)
    origin_ns = int(times_ns[0])
    readings = Power((times_ns - origin_ns) / 1e9, trace.power_mw[use] / 1e3)
    covered = _covered(log, times_ns, options.search_s if options.clock == "correlation" else 0.0)
    meter = Power((log.times_ns - origin_ns) / 1e9, log.watts)
    pairs = paired(_around(meter, readings, options.search_s), readings)
    if options.clock == "correlation":
        clock = by_correlation(pairs, options.search_s)
    else:
        uncertainty_s = max(one.uncertainty_ns for one in record.clocks) / 1e9
        clock = by_time_stamps(pairs, uncertainty_s, options.search_s, meter.period_s)
    line = fitted(pairs, clock, options.fit, sensor_error(device.name).gain)
    digest = hashlib.sha256(body).hexdigest()
    low_w, high_w = np.percentile(line.meter_w, [5, 95])
    return CalibrationFit(
        run_id=inputs.run_id,
        attempt_id=inputs.attempt_id,
        device=device.uuid,
        device_name=device.name,
        fit=options.fit,
        gain=line.gain,
        gain_interval=_interval(line.gain, line.gain_half),
        offset_w=line.offset_w,
        offset_interval_w=_interval(line.offset_w, line.offset_half_w),
        pairs=len(line.meter_w),
        pair_s=pairs.pair_s,
        low_w=low_w,
        high_w=high_w,
        residual_w=line.residual_w,
        misfit_w=line.misfit_w,
        covered=covered,
        clock=options.clock,
        clock_offset_s=clock.seconds,
        clock_uncertainty_s=clock.uncertainty_s,
        rows=len(log.times_ns),
        empty_rows=log.empty_rows,
        log_sha256=digest,
        calibration=entry_of(device.uuid, line, options.meter_accuracy, _source(inputs, options, digest)),
    )


def _source(inputs: AggregationInput, options: MeterLogOptions, digest: str) -> str:
    given = f"{options.source}; " if options.source else ""
    return (
        f"{given}meter log sha256:{digest[:16]} against {inputs.run_id}, meter accurate to "
        f"{100 * options.meter_accuracy:.3g} %"
    )


def _interval(value: float, half: float) -> Interval95:
    return Interval95(low=value - half, high=value + half)


def _metered(devices: Sequence[Device], samples: Mapping[str, DeviceSamples], wanted: str | None) -> Device:
    able = [one for one in devices if one.kind is not DeviceKind.CPU and one.uuid in samples]
    listed = ", ".join(f"{one.uuid} ({one.name})" for one in devices)
    if wanted is not None:
        able = [one for one in able if one.uuid == wanted]
        if not able:
            raise CalibrationRefused(f"the run has no samples of a GPU {wanted}; it used {listed}.")
    if not able:
        raise CalibrationRefused(f"the run has no samples of a GPU; it used {listed}.")
    if len({one.uuid for one in able}) > 1:
        raise CalibrationRefused(f"the run used several devices, {listed}; name the metered one (device).")
    return able[0]


def _utc_ns(times_ns: IntArray, clocks: Sequence[ClockReading]) -> IntArray:
    """Return times of the worker's clock as ns since 1970, between the instants at which both clocks were read."""
    known = sorted(clocks, key=lambda one: one.monotonic_ns)
    at = np.array([one.monotonic_ns for one in known], dtype=np.int64)
    ahead = np.array([one.utc_ns - one.monotonic_ns for one in known], dtype=np.int64)
    moved = np.interp(times_ns - at[0], at - at[0], ahead - ahead[0])  # small enough to be exact in a float
    found: IntArray = times_ns + ahead[0] + np.rint(moved).astype(np.int64)
    return found


def _covered(log: MeterLog, times_ns: IntArray, search_s: float) -> float:
    """Return the share of the time with readings that the log covers, if their clocks agree."""
    open_ns = round(search_s * 1e9)
    begin, end = int(times_ns[0]), int(times_ns[-1])
    first, last = int(log.times_ns[0]), int(log.times_ns[-1])
    if max(0, min(end, last + open_ns) - max(begin, first - open_ns)) < LEAST_COVERED * (end - begin):
        raise CalibrationRefused(
            f"the log covers {utc_text((first, last))}, less than half of the run's readings, "
            f"{utc_text((begin, end))}; use the log of that time, and check its time zone."
        )
    return min(1.0, max(0, min(end, last) - max(begin, first)) / max(1, end - begin))


def _around(meter: Power, readings: Power, search_s: float) -> Power:
    """Leave out what is further from the readings than the clocks may differ."""
    use = (meter.times_s >= readings.times_s[0] - search_s - 1) & (meter.times_s <= readings.times_s[-1] + search_s + 1)
    if use.sum() < 2:
        return meter
    return Power(meter.times_s[use], meter.watts[use])
