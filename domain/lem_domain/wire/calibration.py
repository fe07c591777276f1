"""The fit of a calibration to a meter's log, and how the log is read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lem_domain.config.calibration import DeviceCalibration
from lem_domain.ids import AttemptId, RunId, Sha256
from lem_domain.wire.base import AnswerModel, RequestModel

MAX_METER_LOG_BYTES = 16 * 2**20
"""A day of readings every 0.2 s."""
METER_LOG_MEDIA_TYPE = "text/csv"

PowerUnit = Literal["W", "mW", "kW"]
FittedPart = Literal["gain_and_offset", "gain", "offset"]
ClockSource = Literal["timestamps", "correlation"]


class MeterLogOptions(RequestModel):
    """How a meter's log is read and compared with a run."""

    device: str | None = Field(
        default=None, max_length=100, description="UUID of the metered device; may be omitted if the run used one."
    )
    time_column: str | None = Field(
        default=None, max_length=200, description="Column of the times; if omitted one that is named like it."
    )
    power_column: str | None = Field(
        default=None, max_length=200, description="Column of the powers; if omitted one that is named like it."
    )
    timezone: str | None = Field(
        default=None,
        max_length=100,
        description="IANA name (`Europe/Paris`, `UTC`) of the zone of times without an offset from UTC.",
    )
    unit: PowerUnit = Field(default="W", description="Unit of the powers.")
    fit: FittedPart = Field(
        default="gain_and_offset", description="What to fit. With one of them the other is taken as exact: 1 or 0 W."
    )
    clock: ClockSource = Field(
        default="timestamps",
        description="`timestamps`: the meter's clock is right; `correlation`: it may be off by up to `search_s`, and "
        "how far is found by comparing the courses of power.",
    )
    search_s: float = Field(default=60.0, gt=0, le=3600, description="Largest difference of the clocks.")
    meter_accuracy: float = Field(
        default=0.01, ge=0, le=0.2, description="The meter's own error, relative to its reading (class 1: 0.01)."
    )
    source: str | None = Field(default=None, max_length=300, description="What the entry names as its source.")


class Interval95(AnswerModel):
    """The 95 % interval of a fitted number, with what alignment and noise of the meter add."""

    low: float
    high: float


class CalibrationFit(AnswerModel):
    """Gain and offset of a device's readings against a meter: reading = gain × true power + offset_w."""

    run_id: RunId
    attempt_id: AttemptId
    device: str
    device_name: str
    fit: FittedPart
    gain: float
    gain_interval: Interval95
    offset_w: float
    offset_interval_w: Interval95
    pairs: int = Field(description="Means of meter and readings over the same times that were compared.")
    pair_s: float = Field(description="Length of each.")
    low_w: float = Field(description="5 % of the meter's powers are below.")
    high_w: float = Field(description="5 % of the meter's powers are above.")
    residual_w: float = Field(description="Robust standard deviation of what the line leaves, in W of readings.")
    misfit_w: float = Field(description="Largest mean of it over a fifth of the range of power: readings off the line.")
    covered: float = Field(description="Share of the time with readings that the log covers.")
    clock: ClockSource
    clock_offset_s: float = Field(description="The meter's times plus this are the run's.")
    clock_uncertainty_s: float
    rows: int = Field(description="Rows of the log with a power.")
    empty_rows: int = Field(description="Rows without one, which were not used.")
    log_sha256: Sha256
    calibration: DeviceCalibration = Field(description="The entry for `energy.calibration`.")
