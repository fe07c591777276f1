"""Reads values from JSON that a worker wrote freely, such as completion markers and the details of events.

No figure may fail on such a value: anything of another type reads as missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from pydantic.types import JsonValue


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


def integer(value: JsonValue) -> int | None:
    """Return an integer, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def string(value: JsonValue) -> str | None:
    """Return a string, else None."""
    return value if isinstance(value, str) else None
