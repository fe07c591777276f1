"""Plain JSON documents: dotted paths, JSON pointers, and how one document is merged over another.

`model` and `decoding` may be written as text: the text is the model's id, or the name of a decoding preset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pydantic.types import JsonValue

Document = dict[str, JsonValue]

SHORTHAND: Final = {"model": "id", "decoding": "preset"}
"""Keys that may be written as text, with the key inside the map that the text sets."""


def pointer(location: Sequence[str | int]) -> str:
    """The RFC 6901 JSON pointer of a location."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def overlaps(one: str, other: str) -> bool:
    """Whether setting one dotted path changes the value at the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def flattened(document: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Every value that is not a map (or is an empty one), with its dotted path."""
    for key, value in document.items():
        if isinstance(value, dict) and value:
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def value_at(document: Mapping[str, JsonValue], parts: Sequence[str]) -> JsonValue:
    """The value at a path; None if the path does not exist."""
    value: JsonValue = dict(document)
    for part in parts:
        value = value.get(part) if isinstance(value, dict) else None
    return value


def as_map(key: str, value: JsonValue) -> JsonValue:
    """The map that a text at `key` abbreviates; any other value unchanged."""
    return {SHORTHAND[key]: value} if key in SHORTHAND and isinstance(value, str) else value


def merged(lower: Mapping[str, JsonValue], upper: Mapping[str, JsonValue], *, top: bool = True) -> Document:
    """`upper` merged over `lower`: maps merge deeply, every other value is replaced.

    A decoding preset replaces the whole lower decoding, so that no value of another preset remains.
    """
    result: Document = dict(lower)
    for key, above in upper.items():
        below = result.get(key)
        if top and key in SHORTHAND:
            preset = key == "decoding" and (isinstance(above, str) or (isinstance(above, dict) and "preset" in above))
            below = as_map(key, below) if isinstance(above, dict) and not preset else None if preset else below
            above = as_map(key, above) if isinstance(below, dict) else above  # noqa: PLW2901 - spelled out
        if isinstance(below, dict) and isinstance(above, dict):
            result[key] = merged(below, above, top=False)
        else:
            result[key] = above
    return result


def with_value(document: Mapping[str, JsonValue], path: str, value: JsonValue) -> Document:
    """A copy of the document with the value at a dotted path set; missing maps on the way are created.

    A model given as text sets its id and keeps the rest of `model`.

    Raises:
        ValueError: the path leads through a value that is not a map; its argument is the path of that value.
    """
    if path == "model" and isinstance(value, str):
        path = "model.id"
    result: Document = dict(document)
    target = result
    *parents, last = path.split(".")
    for depth, part in enumerate(parents):
        inner = as_map(part, target.get(part)) if depth == 0 else target.get(part)
        if inner is not None and not isinstance(inner, dict):
            raise ValueError(".".join(parents[: depth + 1]))
        inner = dict(inner or {})
        target[part] = inner
        target = inner
    target[last] = value
    return result
