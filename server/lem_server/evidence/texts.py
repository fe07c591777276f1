"""Replaces U+0000, which PostgreSQL's text and jsonb reject: an engine's message must not block an attempt."""

from __future__ import annotations

from pydantic.types import JsonValue


def storable_text(text: str) -> str:
    """Return the text with U+FFFD instead of U+0000."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def storable(values: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return a JSON object with every string in it replaced like that, keys included."""
    return {storable_text(key): _storable(value) for key, value in values.items()}


def _storable(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, list):
        return [_storable(one) for one in value]
    return storable(value) if isinstance(value, dict) else value
