"""Values that know where each of them was set, and how one layer of them is laid over another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic.types import JsonValue

from lem_domain.config.provenance import Origin
from lem_domain.config.shorthand import SHORT, to_be_merged
from lem_domain.config.validation import pointer

Values = dict[str, JsonValue]
T = TypeVar("T")


@dataclass
class Layered:
    """Values, and by JSON pointer where each was set."""

    values: Values = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    """By pointer the folder of the file that set it, which paths in it are relative to."""

    def origin(self, place: str) -> Origin | None:
        """Where a value, or the nearest one that holds it, was set."""
        return _nearest(self.origins, place)

    def folder(self, place: str) -> Path | None:
        """The folder of the file that set a value."""
        return _nearest(self.folders, place)


def lay(lower: Layered, upper: Layered) -> None:
    """Put one layer over another: maps merge deeply, everything else is replaced."""
    changes = _Changes(lower, upper)
    changes.lay(lower.values, upper.values, ())
    changes.move()


def note_all(
    layer: Layered, value: JsonValue, at: tuple[str | int, ...], origin: Callable[[str], Origin], folder: Path | None
) -> None:
    """Say of every value below a place where it was set."""
    members: list[tuple[str | int, JsonValue]] = []
    if isinstance(value, dict):
        members = list(value.items())
    elif isinstance(value, list):
        members = list(enumerate(value))
    if at:
        place = pointer(at)
        layer.origins[place] = origin(place)
        if folder is not None:
            layer.folders[place] = folder
    for key, inner in members:
        note_all(layer, inner, (*at, key), origin, folder)


class _Changes:
    """What laying one layer over another did to the places: known once all is laid, so that each is looked at once."""

    def __init__(self, lower: Layered, upper: Layered) -> None:
        self._lower = lower
        self._upper = upper
        self._replaced: set[str] = set()
        self._merged: set[str] = set()

    def lay(self, below: Values, above: Mapping[str, JsonValue], at: tuple[str, ...]) -> None:
        for key, value in above.items():
            place = pointer((*at, key))
            held = below.get(key)
            put = value
            if not at and key in SHORT:
                held, put = to_be_merged(key, held, put)
                _note_opened(self._lower, key, below.get(key), held)
                _note_opened(self._upper, key, value, put)
            if isinstance(held, dict) and isinstance(put, dict):
                inner = dict(held)
                below[key] = inner
                self._merged.add(place)
                self.lay(inner, put, (*at, key))
            else:
                below[key] = put
                self._replaced.add(place)

    def move(self) -> None:
        for ours, theirs in (
            (self._lower.origins, self._upper.origins),
            (self._lower.folders, self._upper.folders),
        ):
            for gone in [place for place in ours if self._is_replaced(place)]:
                del ours[gone]
            new = {place: what for place, what in theirs.items() if place in self._merged or self._is_replaced(place)}
            ours.update(new)  # type: ignore[arg-type]

    def _is_replaced(self, place: str) -> bool:
        """Whether it, or what holds it, is."""
        while place:
            if place in self._replaced:
                return True
            place = place.rpartition("/")[0]
        return False


def _note_opened(layer: Layered, key: str, written: JsonValue, used: JsonValue) -> None:
    """What a text stands for was set where the text is."""
    if isinstance(written, str) and isinstance(used, dict):
        place = pointer((key,))
        for places in (layer.origins, layer.folders):
            if place in places:
                places[f"{place}/{SHORT[key]}"] = places[place]  # type: ignore[assignment]


def _nearest(places: Mapping[str, T], place: str) -> T | None:
    while place:
        if place in places:
            return places[place]
        place = place.rpartition("/")[0]
    return None
