"""A layer: values with the origin of each, and how layers merge."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic.types import JsonValue

from lem_domain.config.documents import SHORTHAND, merged, pointer
from lem_domain.config.provenance import Origin

Values = dict[str, JsonValue]


class Setting(NamedTuple):
    """Where a value was set."""

    origin: Origin
    folder: Path
    """The folder that relative paths in the value refer to."""


@dataclass(frozen=True)
class Layer:
    """Values with the setting of each, by JSON pointer."""

    values: Values = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def setting(self, at: str) -> Setting | None:
        """The setting of a value, or of the nearest value around it."""
        while at and at not in self.settings:
            at = at.rpartition("/")[0]
        return self.settings.get(at)

    def where(self, at: str) -> str:
        """`file:line`, preset or option that set a value; empty if it was not set."""
        setting = self.setting(at)
        return setting.origin.detail if setting is not None else ""

    def folder(self, at: str) -> Path:
        """The folder that a relative path at a pointer refers to."""
        setting = self.setting(at)
        return setting.folder if setting is not None else Path()

    def with_settings(self, settings: Mapping[str, Setting]) -> Layer:
        """The layer with further settings; a text that abbreviates a map also sets the key inside the map."""
        both = {**self.settings, **settings}
        for key, inner in SHORTHAND.items():
            if isinstance(self.values.get(key), str) and f"/{key}" in both:
                both[f"/{key}/{inner}"] = both[f"/{key}"]
        return Layer(self.values, both)

    def without(self, keys: Collection[str]) -> Layer:
        """The layer without top-level keys."""
        return Layer({key: value for key, value in self.values.items() if key not in keys}, self.settings)


def merged_layers(layers: Sequence[Layer]) -> Layer:
    """Each layer merged over the one before it."""
    result = Layer()
    for layer in layers:
        # Pointers of replaced values may remain; they are never looked up, since each layer has one for each value.
        result = Layer(merged(result.values, layer.values), {**result.settings, **layer.settings})
    return result


def pointers(value: JsonValue, location: tuple[str | int, ...] = ()) -> Iterator[str]:
    """The JSON pointer of a value and of every value inside it; none for the whole document."""
    if location:
        yield pointer(location)
    members: Sequence[tuple[str | int, JsonValue]] = ()
    if isinstance(value, dict):
        members = list(value.items())
    elif isinstance(value, list):
        members = list(enumerate(value))
    for key, inner in members:
        yield from pointers(inner, (*location, key))
