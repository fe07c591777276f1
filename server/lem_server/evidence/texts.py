"""What PostgreSQL's text and jsonb can't hold is replaced visibly, so that no engine's words can block an attempt."""

from __future__ import annotations

from pydantic.types import JsonValue


def storable_text(text: str) -> str:
    """The text with U+FFFD in place of U+0000."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def storable(values: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """A JSON object with the same done to every string in it, keys included."""
    return {storable_text(key): _storable(value) for key, value in values.items()}


def _storable(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, list):
        return [_storable(one) for one in value]
    return storable(value) if isinstance(value, dict) else value
