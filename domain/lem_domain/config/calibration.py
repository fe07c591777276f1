"""A user's calibration of a device's power sensor against an external meter."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from lem_domain.config.model_base import ConfigModel, extras, key


class DeviceCalibration(ConfigModel):
    """What a device's readings show of its power: reading = gain × true power + offset_w, as published meters state it.

    So the corrected power is (reading - offset_w) / gain; true power = corrected × (1 ± gain_bound) ± offset_bound_w.
    """

    device: str = Field(
        min_length=1,
        max_length=200,
        description="UUID of a GPU (`GPU-…`; also for the MIG instances on it) or of a MIG instance, or the whole name "
        "of a model as the driver gives it (`NVIDIA H100 PCIe`) for every device of that name. An entry by UUID "
        "applies before one by name.",
    )
    gain: float = Field(
        gt=0.5,
        lt=2,
        description="Slope of the readings: their change per change of true power; 0.95 if they are too low.",
        json_schema_extra=extras(unit="1"),
    )
    gain_bound: float = key(
        0.04,
        "Largest error that remains and is proportional to power, relative to the corrected power. The default holds "
        "cards of one model, which differed by up to 3.6 %.",
        ge=0,
        le=0.5,
        unit="1",
    )
    offset_w: float = key(0.0, "What a reading shows when no power flows.", ge=-100, le=100, unit="W")
    offset_bound_w: float = key(
        5.0, "Largest constant error that remains. The default is that of nvidia-smi's manual.", ge=0, le=100, unit="W"
    )
    source: str = Field(
        min_length=1, max_length=500, description="Where the numbers come from, such as the meter and the day."
    )

    def corrected_w(self, reading_w: float) -> float:
        """Return the power behind a reading."""
        return (reading_w - self.offset_w) / self.gain


def calibration_for(
    entries: Sequence[DeviceCalibration], uuids: Sequence[str | None], name: str
) -> DeviceCalibration | None:
    """Return the entry that applies to a device by its UUIDs (the first counts first), else by its model's name."""
    by_device = {entry.device: entry for entry in entries}
    return next((by_device[one] for one in (*uuids, name) if one in by_device), None)


def named_twice(entries: Sequence[DeviceCalibration]) -> str | None:
    """Return what is wrong if a device has two entries."""
    devices = [entry.device for entry in entries]
    twice = sorted({one for one in devices if devices.count(one) > 1})
    return f"calibration names {' and '.join(twice)} twice; keep one entry of each" if twice else None
