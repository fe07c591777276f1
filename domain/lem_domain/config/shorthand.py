"""Two values may be written as a text instead of a map: a model's is its id, a decoding's the name of its values.

Where one layer writes the text and another the map, both count.
"""

from __future__ import annotations

from typing import Final

from pydantic.types import JsonValue

SHORT: Final = {"model": "id", "decoding": "preset"}
"""By path of the value: the key that its text stands for."""


def opened(path: str, value: JsonValue) -> JsonValue:
    """The map that a text stands for; anything else stays."""
    return {SHORT[path]: value} if path in SHORT and isinstance(value, str) else value


def to_be_merged(path: str, below: JsonValue, above: JsonValue) -> tuple[JsonValue, JsonValue]:
    """What is at a path in a lower and an upper layer, as maps where both are to count.

    A decoding by its name begins anew: of what was below it nothing is left.
    """
    if path == "decoding" and (isinstance(above, str) or (isinstance(above, dict) and SHORT[path] in above)):
        return None, above
    if isinstance(above, dict):
        return opened(path, below), above
    return below, opened(path, above) if isinstance(below, dict) else above
