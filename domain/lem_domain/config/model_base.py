"""The strict, frozen base of every configuration model, and how a key of one is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, Self, TypedDict, TypeVar, Unpack

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic.types import JsonValue
from pydantic_core import PydanticCustomError

T = TypeVar("T")

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


def refuse_if(wrong: Callable[[Any], bool], message: str) -> Rule:
    """The rule that refuses a model for which `wrong` holds."""
    return lambda model: message if wrong(model) else None


def not_above(lower: str, upper: str) -> Rule:
    """The rule that the value of one key is at most that of another, where both are set."""

    def check(model: ConfigModel) -> str | None:
        low, high = getattr(model, lower), getattr(model, upper)
        if low is None or high is None or low <= high:
            return None
        return f"{lower} {low:g} is above {upper} {high:g}; lower it"

    return check


class EngineModel(ConfigModel):
    """A part of an engine's section. Its keys have the engine's names below `prefix`; `engine=` gives another name."""

    def __init_subclass__(cls, *, prefix: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, field in vars(cls).items():
            if isinstance(field, FieldInfo) and isinstance(field.json_schema_extra, dict):
                field.json_schema_extra.setdefault("x-engine-parameter", f"{prefix}{name}")


class Bounds(TypedDict, total=False):
    """Bounds of a key's value, as pydantic's `Field` takes them."""

    ge: float
    gt: float
    le: float
    lt: float
    min_length: int
    max_length: int
    pattern: str


def key(
    default: T, description: str, *, unit: str | None = None, engine: str | None = None, **bounds: Unpack[Bounds]
) -> T:
    """A field of a configuration model with its default; `engine` is the engine's own name of the parameter."""
    field: T = Field(
        default=default, description=description, json_schema_extra=extras(unit=unit, engine=engine), **bounds
    )
    return field


def extras(*, unit: str | None = None, engine: str | None = None) -> dict[str, JsonValue]:
    """Schema extras of a field: the engine's own name of the parameter, and the unit of a quantity."""
    given = {"x-engine-parameter": engine, "x-unit": unit}
    return {name: value for name, value in given.items() if value is not None}
