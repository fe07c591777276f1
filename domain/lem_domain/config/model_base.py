"""The strict, frozen base of every configuration model, and how a field names its unit and its engine's parameter."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.types import JsonValue


class ConfigModel(BaseModel):
    """Rejects unknown keys and never changes after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def engine_parameter(name: str, *, unit: str | None = None) -> dict[str, JsonValue]:
    """Schema extras of a field: the engine's own `name` for it and, where it has one, its unit."""
    extras: dict[str, JsonValue] = {"x-engine-parameter": name}
    if unit is not None:
        extras["x-unit"] = unit
    return extras


def unit(name: str) -> dict[str, JsonValue]:
    """Schema extras of a field that has a unit."""
    return {"x-unit": name}
