"""Numbers of a result: with unit, method and bound, or null with a reason; never 0 for what was not measured."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ResultModel(BaseModel):
    """Frozen and strict."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EnergyMethod(StrEnum):
    """How an energy figure came about; never mixed without saying so."""

    COUNTER = "counter"
    INTEGRATED = "integrated"
    MODELLED = "modelled"


class Figure(ResultModel):
    """One number with its unit, or null with a reason; never 0 for something that was not measured."""

    value: float | None
    unit: str
    reason: str | None = Field(default=None, description="Why the value is null.")

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        if (self.value is None) == (self.reason is None):
            raise ValueError("a figure has either a value or a reason why it has none")
        return self


class EnergyFigure(ResultModel):
    """An energy over the measured window, or null with a reason."""

    joules: float | None
    method: EnergyMethod | None = None
    source: str | None = Field(default=None, description="The source that gave the samples, for example codecarbon.")
    bound_j: float | None = Field(
        default=None,
        ge=0,
        description="The truth lies within joules ± bound_j: what the readings leave open, and what the sensor's own "
        "accuracy does where its maker states it; null where the method has no stated bound (a modelled figure has "
        "none).",
    )
    sensor_bound_j: float | None = Field(
        default=None,
        ge=0,
        description="What of bound_j is the sensor's accuracy, as its maker states it, over that time; null where none "
        "is stated, and then bound_j holds as far as sampling goes.",
    )
    reason: str | None = Field(default=None, description="Why the value is null.")

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        if (self.joules is None) == (self.reason is None):
            raise ValueError("an energy has either a value or a reason why it has none")
        if self.joules is not None and self.method is None:
            raise ValueError("an energy names its method")
        return self


class Distribution(ResultModel):
    """A distribution over the concatenated values of all processes; percentiles interpolate linearly."""

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
