"""The sensor behind a part's readings: its error, and the time that it sees (method `m2`)."""

from __future__ import annotations

from typing import NamedTuple

from lem_domain.gpu_sensors import HIGHEST_POWER_W, LEAST_OFFSET_W, PowerReading, sensor_error, sensor_times
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.energy.sampler_record import DeviceFacts

_SIMULATED_W = 0.0005
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

    @property
    def is_part_time(self) -> bool:
        """Whether the sensor does not look at the device for a part of every period."""
        return self.averaged_s < self.period_s


def device_sensor(device: Device, facts: DeviceFacts | None, limit_w: float | None) -> Sensor:
    """Return the sensor of a device by its model's rows in `lem_domain.gpu_sensors`; `limit_w` is its highest limit."""
    if device.kind is not DeviceKind.GPU:
        return Sensor(gain=0.0, offset_w=_SIMULATED_W, calibration="exact: the power is simulated")
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
