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

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        if (self.value is None) == (self.reason is None):
            raise ValueError("a figure needs either a value or a reason for its absence")
        return self


class EnergyFigure(ResultModel):
    """An energy over the measured window, or null with a reason."""

    joules: float | None
    method: EnergyMethod | None = None
    source: str | None = Field(default=None, description="The energy source of the samples, for example codecarbon.")
    bound_j: float | None = Field(
        default=None,
        ge=0,
        description="The true value is within joules ± bound_j: the error of sampling, plus the sensor's accuracy if "
        "its maker states it; null if the method has no bound (a modelled figure has none).",
    )
    sensor_bound_j: float | None = Field(
        default=None,
        ge=0,
        description="The part of bound_j that is the sensor's accuracy over that time, as its maker states it; null if "
        "it is not stated, and then bound_j covers the error of sampling only.",
    )
    reason: str | None = Field(default=None, description="Why the value is null.")

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        if (self.joules is None) == (self.reason is None):
            raise ValueError("an energy needs either a value or a reason for its absence")
        if self.joules is not None and self.method is None:
            raise ValueError("an energy needs a method")
        return self


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
