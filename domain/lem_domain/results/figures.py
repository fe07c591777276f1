"""Numbers of a result: each has a unit, method and bound, or is null with a reason; never 0 for a missing value."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ResultModel(BaseModel):
    """Base of all parts of a result: frozen, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EnergyMethod(StrEnum):
    """How an energy figure was obtained. A sum of several methods has the weakest and states the mixture."""

    COUNTER = "counter"
    INTEGRATED = "integrated"
    MODELLED = "modelled"


class Figure(ResultModel):
    """One number with its unit, or null with a reason; never 0 for a missing value."""

    value: float | None
    unit: str
    reason: str | None = Field(default=None, description="Why the value is null.")

    @classmethod
    def of(cls, value: float | None, unit: str, reason: str | None) -> Self:
        """Return a value, or null with the reason that applies then."""
        return cls(value=value, unit=unit, reason=reason if value is None else None)

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        if (self.value is None) == (self.reason is None):
            raise ValueError("a figure needs either a value or a reason for its absence")
        return self


def is_absent(value: object) -> bool:
    """Whether a field is left out of a result's text, so that results of `m1` have the bytes that they always had."""
    return value is None or value == ()


class BoundParts(ResultModel):
    """The parts of an energy's bound (method `m2`); figures are compared by those parts that they don't share.

    bound_j = sensor_gain × |joules| + sensor_offset_w × time + sampling_j + coverage_j + disagreement_j. In a sum every
    part is the sum of the parts in J: errors of devices with the same calibration source are fully correlated, so that
    this is exact for them, and between sources nothing is known of the correlation, so that it is safe.
    """

    sensor_gain: float | None = Field(
        ge=0,
        description="Largest error of the sensor that is proportional to power, relative to the figure; in a sum, the "
        "mean over the parts, weighted by energy. Null if it is not published: then the bound holds the rest only.",
    )
    sensor_offset_w: float | None = Field(
        ge=0, description="Largest error of the sensor that is constant, in W; in a sum, that of all parts together."
    )
    sampling_j: float = Field(ge=0, description="What the times of the samples leave open, at both ends and in gaps.")
    coverage_j: float = Field(
        ge=0, description="95 % of the energy in the time that a part-time sensor does not see, if it is by chance."
    )
    disagreement_j: float = Field(
        default=0.0, ge=0, description="By how much the bound was widened to hold counter and integral both."
    )
    calibration: str | None = Field(description="Source of gain and offset; several are separated by semicolons.")


class EnergyFigure(ResultModel):
    """An energy over the measured window, or null with a reason."""

    joules: float | None
    method: EnergyMethod | None = None
    source: str | None = Field(default=None, description="The energy source of the samples, for example codecarbon.")
    bound_j: float | None = Field(
        default=None,
        ge=0,
        description="The true value is within joules ± bound_j: the error of sampling, plus the sensor's accuracy if "
        "it is known; null if the method has no bound (a modelled figure has none).",
    )
    sensor_bound_j: float | None = Field(
        default=None,
        ge=0,
        description="The part of bound_j that is the sensor's accuracy over that time (under `m2` gain and offset); "
        "null if it is not known, and then bound_j covers the error of sampling only.",
    )
    bound_parts: BoundParts | None = Field(
        default=None, exclude_if=is_absent, description="The parts of bound_j; absent under `m1` and without a bound."
    )
    bound_reason: str | None = Field(
        default=None, exclude_if=is_absent, description="Why there is no bound; absent under `m1`."
    )
    reason: str | None = Field(default=None, description="Why the value is null.")

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        if (self.joules is None) == (self.reason is None):
            raise ValueError("an energy needs either a value or a reason for its absence")
        if self.joules is not None and self.method is None:
            raise ValueError("an energy needs a method")
        return self

    def per(self, amount: float, unit: str, none: str) -> Figure:
        """Return the energy per amount of time or work; null without energy, or for the reason `none` if it is 0."""
        ratio = self.joules / amount if self.joules is not None and amount else None
        return Figure.of(ratio, unit, self.reason or none)


class Distribution(ResultModel):
    """A distribution over the concatenated values of all processes; percentiles interpolate linearly (type 7)."""

    unit: str
    count: int = Field(ge=0)
    mean: float | None
    sd: float | None = Field(description="Sample standard deviation (n - 1); null below two values.")
    min: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None
    reason: str | None = Field(default=None, description="Why there are no values.")
