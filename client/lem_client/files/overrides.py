"""What the command line sets: `dotted.path=value`, before everything that files say.

What is set so is one value: no axis, no row of the sweep and no listed experiment has another.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic.types import JsonValue

from lem_client.errors import FileError
from lem_client.files.documents import parse_value
from lem_client.files.layered_values import Layered, Values
from lem_domain.config.provenance import Origin, Source
from lem_domain.config.shorthand import opened
from lem_domain.config.sweep import EXCLUDE, INCLUDE, RESERVED, ZIP, overlaps
from lem_domain.config.validation import pointer


def set_value(layer: Layered, override: str) -> None:
    """Set what `path=value` says. A path leads through maps; a list is set as a whole.

    Raises:
        FileError: it is no such thing, or its path goes through what is no map.
    """
    path, separator, text = override.partition("=")
    path = path.strip()
    if not separator or not all(path.split(".")):
        raise FileError((f"--set {override}: write it as path=value, for example pytorch.batch_size=8",))
    try:
        value = parse_value(text)
    except FileError as error:
        raise FileError((f"--set {path}: {error}",)) from None
    in_sweep = path.startswith("sweep.")
    path, shown = _named("model", value) if path == "model" else path, path
    parts = ["sweep", path.removeprefix("sweep.")] if in_sweep else path.split(".")
    _set(layer.values, parts, value, path)
    place = pointer(parts)
    for places in (layer.origins, layer.folders):
        for gone in [one for one in places if one.startswith(f"{place}/")]:
            del places[gone]
    layer.origins[place] = Origin(source=Source.COMMAND_LINE, detail=f"--set {shown}")
    layer.folders[place] = Path()
    if not in_sweep:
        _stop_varying(layer.values, path, value)


def _set(target: Values, parts: Sequence[str], value: JsonValue, path: str) -> None:
    head, *rest = parts
    if not rest:
        target[head] = value
        return
    inner = target.get(head)
    if path.startswith(f"{head}."):
        inner = opened(head, inner)
    if isinstance(inner, list):
        of_list = path.removesuffix("." + ".".join(rest))
        raise FileError((f"--set {path}: {of_list!r} is a list, which is set as a whole; write --set {of_list}=[…]",))
    if inner is not None and not isinstance(inner, dict):
        raise FileError((f"--set {path}: {head!r} is a plain value in the file; correct the path",))
    copy = dict(inner or {})
    target[head] = copy
    _set(copy, rest, value, path)


def _stop_varying(values: Values, path: str, value: JsonValue) -> None:
    sweep = values.get("sweep")
    if isinstance(sweep, dict):
        kept = {name: listed for name, listed in sweep.items() if name in RESERVED}
        kept |= _axes({name: listed for name, listed in sweep.items() if name not in RESERVED}, path, value)
        for name, change in ((ZIP, _axes), (INCLUDE, _row), (EXCLUDE, _excluded)):
            listed = sweep.get(name)
            if isinstance(listed, list):
                rows = [change(row, path, value) if isinstance(row, dict) else row for row in listed]
                kept[name] = [row for row in rows if row != {}]
        values["sweep"] = kept
    entries = values.get("experiments")
    if isinstance(entries, list):
        values["experiments"] = [_of_entry(entry, path) for entry in entries]


def _axes(axes: Values, path: str, value: JsonValue) -> Values:
    """Axes without those of the path or below it; each value of one around it is a map in which it is set."""
    kept: Values = {}
    for axis, listed in axes.items():
        values = listed if isinstance(listed, list) else []
        named = _named(axis, *values)
        if not overlaps(named, path):
            kept[axis] = listed
        elif path.startswith(f"{named}."):
            kept[axis] = [_with(axis, one, path, value) for one in values]
    return kept


def _row(row: Values, path: str, value: JsonValue) -> Values:
    """The same of a row, which has a value per path."""
    kept: Values = {}
    for axis, one in row.items():
        named = _named(axis, one)
        if not overlaps(named, path):
            kept[axis] = one
        elif path.startswith(f"{named}."):
            kept[axis] = _with(axis, one, path, value)
    return kept


def _named(axis: str, *values: JsonValue) -> str:
    """What plain texts of a model set is its id."""
    return "model.id" if axis == "model" and all(isinstance(value, str) for value in values) else axis


def _excluded(row: Values, path: str, value: JsonValue) -> Values:
    """Nothing where the row is of another value, so that it could leave nothing out any more."""
    return {} if path in row and row[path] != value else row


def _with(axis: str, one: JsonValue, path: str, value: JsonValue) -> JsonValue:
    """A map with the value set in it; a model's plain text is its id."""
    one = opened(axis, one)
    if not isinstance(one, dict):
        return one
    changed = dict(one)
    _set(changed, path.removeprefix(f"{axis}.").split("."), value, path)
    return changed


def _of_entry(entry: JsonValue, path: str) -> JsonValue:
    if isinstance(entry, dict) and _named("model", entry.get("model")) == path:
        path = "model"
    return _without_path(entry, path.split("."))


def _without_path(value: JsonValue, parts: Sequence[str]) -> JsonValue:
    if not isinstance(value, dict) or parts[0] not in value:
        return value
    head, *rest = parts
    if not rest:
        return {key: inner for key, inner in value.items() if key != head}
    return {**value, head: _without_path(value[head], rest)}
