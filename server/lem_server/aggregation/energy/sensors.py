"""The sensor behind a part's readings: its error, and the time that it sees (method `m2`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lem_domain.config.calibration import DeviceCalibration, calibration_for
from lem_domain.gpu_sensors import HIGHEST_POWER_W, LEAST_OFFSET_W, PowerReading, sensor_error, sensor_times
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.energy.plausibility import PlausibleTrace
from lem_server.aggregation.energy.sampler_record import DeviceFacts
from lem_server.aggregation.energy.traces import Trace
from lem_server.aggregation.evidence_reader import NULL

_ROUNDING_W = 0.0005
"""Exact except for rounding to whole milliwatts."""


class Sensor(NamedTuple):
    """A sensor: true power = reading × (1 ± gain) ± offset_w, None if that is not published; and when it looks.

    A reading is renewed every `period_s` and is the mean over `averaged_s` before that. `limit_w` is the power that the
    device can't exceed for long, None if readings of any size are plausible.
    """

    gain: float | None = None
    offset_w: float | None = None
    calibration: str | None = None
    period_s: float = 0.0
    averaged_s: float = 0.0
    times: str | None = None
    """Source of the times."""
    assumed: bool = False
    """Whether no measurement of the times of this model is published."""
    limit_w: float | None = None
    correction: DeviceCalibration | None = None
    """The user's calibration; `gain` and `offset_w` are what remains of the error after it."""

    @property
    def is_part_time(self) -> bool:
        """Whether the sensor does not look at the device for a part of every period."""
        return self.averaged_s < self.period_s

    @property
    def slope(self) -> float:
        """Readings per true power; 1 without a calibration."""
        return 1.0 if self.correction is None else self.correction.gain

    @property
    def counted_offset_w(self) -> float:
        """The constant power that a counter adds, in W of corrected power."""
        return 0.0 if self.correction is None else self.correction.offset_w / self.correction.gain

    def corrected_w(self, reading_w: float) -> float:
        """Return the power behind a reading."""
        return reading_w if self.correction is None else self.correction.corrected_w(reading_w)

    def corrected(self, found: PlausibleTrace) -> PlausibleTrace:
        """Return a trace with corrected power readings, to whole mW; a counter's energy is corrected per interval."""
        if self.correction is None:
            return found
        trace = found.trace
        watts = (trace.power_mw - self.correction.offset_w * 1e3) / self.correction.gain
        power = np.where(trace.power_mw == NULL, NULL, np.rint(watts).astype(np.int64))
        return found._replace(trace=Trace(trace.times_ns, trace.counts, power))


def device_sensor(
    device: Device,
    facts: DeviceFacts | None,
    limit_w: float | None,
    calibration: Sequence[DeviceCalibration] = (),
) -> Sensor:
    """Return the sensor of a device: its error by the user's calibration, else by its model; `limit_w` is its limit.

    What is known of models is in `lem_domain.gpu_sensors`.
    """
    sensor = _model_sensor(device, facts, limit_w)
    parent = facts.mig_parent_uuid if facts is not None else None
    own = calibration_for(calibration, (device.uuid, parent), device.name)
    if own is None:
        return sensor
    return sensor._replace(
        gain=own.gain_bound,
        offset_w=own.offset_bound_w + _ROUNDING_W,  # rounding to whole milliwatts
        calibration=f"calibration of {own.device}: {own.source}",
        correction=own,
    )


def _model_sensor(device: Device, facts: DeviceFacts | None, limit_w: float | None) -> Sensor:
    if device.kind is not DeviceKind.GPU:
        return Sensor(gain=0.0, offset_w=_ROUNDING_W, calibration="exact: the power is simulated")
    reading: PowerReading = "average" if facts is not None and facts.power_reading == "average" else "instant"
    error, times = sensor_error(device.name), sensor_times(device.name, reading)
    return Sensor(
        gain=error.gain,
        offset_w=max(error.offset_w, LEAST_OFFSET_W),
        calibration=error.source,
        period_s=times.period_s,
        averaged_s=times.averaged_s,
        times=times.source,
        assumed=times.assumed,
        limit_w=limit_w or HIGHEST_POWER_W,
    )
