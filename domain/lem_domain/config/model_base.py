"""The strict, frozen base of every configuration model, and the schema extras for units and engine parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.types import JsonValue
from pydantic_core import PydanticCustomError

Rule = Callable[[Any], str | None]
"""Checks a model whose fields are valid; returns what is wrong and the remedy, or None."""

BROKEN_RULES: Final = "broken_rules"
"""Type of the pydantic error; `messages` in its context has one message per broken rule."""


class ConfigModel(BaseModel):
    """Rejects unknown keys and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules between keys of this model; all broken ones are reported together."""

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [message for rule in self.rules if (message := rule(self)) is not None]
        if broken:
            # One error with all messages: an exception per rule would report only the first.
            raise PydanticCustomError(BROKEN_RULES, "{text}", {"text": "; ".join(broken), "messages": broken})
        return self


def engine_parameter(name: str, *, unit: str | None = None) -> dict[str, JsonValue]:
    """Schema extras of a field: the engine's own `name` of the parameter and, if it has one, its unit."""
    extras: dict[str, JsonValue] = {"x-engine-parameter": name}
    if unit is not None:
        extras["x-unit"] = unit
    return extras


def unit(name: str) -> dict[str, JsonValue]:
    """Schema extras of a field that has a unit."""
    return {"x-unit": name}
