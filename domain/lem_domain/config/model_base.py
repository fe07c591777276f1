"""The strict, frozen base of every configuration model, and how a field names its unit and its engine's parameter."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.types import JsonValue

from lem_domain.config.rules import Rule, broken_rules


class ConfigModel(BaseModel):
    """Rejects unknown keys and never changes after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Between keys of this model and of those below it."""

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        if (error := broken_rules(self.rules, self)) is not None:
            raise error
        return self


def engine_parameter(name: str, *, unit: str | None = None) -> dict[str, JsonValue]:
    """Schema extras of a field: the engine's own `name` for it and, where it has one, its unit."""
    extras: dict[str, JsonValue] = {"x-engine-parameter": name}
    if unit is not None:
        extras["x-unit"] = unit
    return extras


def unit(name: str) -> dict[str, JsonValue]:
    """Schema extras of a field that has a unit."""
    return {"x-unit": name}
