"""Reads values from JSON that a worker wrote freely, such as completion markers and the details of events.

No figure may fail on such a value: anything of another type reads as missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic.types import JsonValue

T = TypeVar("T")


def _none_if_invalid(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        return None


Maybe = Annotated[T | None, WrapValidator(_none_if_invalid)]
"""A field that is None where the worker wrote a value of another type."""


class Recorded(BaseModel):
    """A record that a worker wrote. Numbers are finite; fields that it does not know are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def of(cls, value: object) -> Self | None:
        """Read a record; None if the value is not an object, or if a field that is not a `Maybe` is invalid."""
        try:
            return cls.model_validate(value)
        except ValidationError:
            return None


R = TypeVar("R", bound=Recorded)


def records(model: type[R], values: object) -> tuple[R, ...]:
    """Read the records of a list that can be read; none if the value is not a list."""
    entries: Iterable[object] = values if isinstance(values, list) else ()
    return tuple(found for entry in entries if (found := model.of(entry)) is not None)


def json_object(text: str | None) -> Mapping[str, JsonValue]:
    """Parse a JSON object; empty if the text is anything else."""
    try:
        value: JsonValue = json.loads(text or "null")
    except ValueError:
        return {}
    return value if isinstance(value, Mapping) else {}


def finite_number(value: JsonValue) -> float | None:
    """Return a finite number as float, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
