"""Values set on the command line: `dotted.path=value`, with precedence over every file.

An overridden value is fixed: axes, rows of the sweep and listed experiments no longer vary it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic.types import JsonValue

from lem_client.errors import FileError
from lem_client.files.layers import Layer, Setting, Values, pointers
from lem_client.files.yaml_reader import parse_value
from lem_domain.config.documents import as_map, overlaps, value_at, with_value
from lem_domain.config.provenance import Origin, Source
from lem_domain.config.sweep import EXCLUDE, RESERVED, ZIP


def with_overrides(layer: Layer, overrides: Sequence[str]) -> Layer:
    """The layer with every override applied in order.

    Raises:
        FileError: an override is malformed, or its path leads through a value that is not a map.
    """
    for override in overrides:
        layer = _with_override(layer, override)
    return layer


def _with_override(layer: Layer, override: str) -> Layer:
    path, separator, text = override.partition("=")
    path = path.strip()
    if not separator or not all(path.split(".")):
        raise FileError((f"--set {override}: write it as path=value, for example pytorch.batch_size=8",))
    try:
        value = parse_value(text)
    except FileError as error:
        raise FileError((f"--set {path}: {error}",)) from None
    setting = Setting(Origin(source=Source.COMMAND_LINE, detail=f"--set {path}"[:1000]), Path())
    location = tuple(path.split("."))
    try:
        if path.startswith("sweep."):
            # The keys of a sweep are dotted paths themselves.
            location = ("sweep", path.removeprefix("sweep."))
            sweep = layer.values.get("sweep", {})
            if not isinstance(sweep, dict):
                raise ValueError("sweep")
            values = {**layer.values, "sweep": {**sweep, location[1]: value}}
        else:
            values = with_value(layer.values, path, value)
            if path == "model" and isinstance(value, str):
                path, location = "model.id", ("model", "id")
            values = _fixed_values(values, path, value)
    except ValueError as error:
        raise FileError((_path_problem(layer, path, str(error)),)) from None
    return Layer(values, layer.settings).with_settings(dict.fromkeys(pointers(value, location), setting))


def _path_problem(layer: Layer, path: str, through: str) -> str:
    if isinstance(value_at(layer.values, through.split(".")), list):
        return f"--set {path}: {through!r} is a list, which is set as a whole; write --set {through}=[…]"
    return f"--set {path}: {through!r} is a plain value in the file; correct the path"


def _fixed_values(values: Values, path: str, value: JsonValue) -> Values:
    """The document with everything removed that would vary the value at a path."""
    result = dict(values)
    sweep, entries = values.get("sweep"), values.get("experiments")
    if isinstance(sweep, dict):
        axes = {name: listed for name, listed in sweep.items() if name not in RESERVED}
        fixed = _fixed_axes(axes, path, value)
        for name in RESERVED:
            rows = sweep.get(name)
            if isinstance(rows, list):
                changed = [_fixed_row(name, row, path, value) for row in rows]
                fixed[name] = [row for row in changed if row != {}]
            elif name in sweep:
                fixed[name] = rows
        result["sweep"] = fixed
    if isinstance(entries, list):
        result["experiments"] = [_fixed_entry(entry, path) for entry in entries]
    return result


def _fixed_row(name: str, row: JsonValue, path: str, value: JsonValue) -> JsonValue:
    """An entry of `zip`, `include` or `exclude`; empty if nothing of it is left."""
    if not isinstance(row, dict):
        return row
    if name == ZIP:
        return _fixed_axes(row, path, value)
    if name == EXCLUDE:  # a row for another value could no longer exclude anything, which would be refused
        return {} if path in row and row[path] != value else row
    columns = _fixed_axes({axis: [one] for axis, one in row.items()}, path, value)
    return {axis: listed[0] for axis, listed in columns.items() if isinstance(listed, list)}


def _fixed_axes(axes: Values, path: str, value: JsonValue) -> Values:
    """Axes without those of the path or below it; in the values of an axis around it, the path is set."""
    kept: Values = {}
    for axis, listed in axes.items():
        options = listed if isinstance(listed, list) else []
        texts = axis == "model" and all(isinstance(option, str) for option in options)
        varied = "model.id" if texts else axis
        if not overlaps(varied, path):
            kept[axis] = listed
        elif path.startswith(f"{varied}."):
            kept[axis] = [_with_inner(axis, option, path, value) for option in options]
    return kept


def _with_inner(axis: str, option: JsonValue, path: str, value: JsonValue) -> JsonValue:
    option = as_map(axis, option)
    return with_value(option, path.removeprefix(f"{axis}."), value) if isinstance(option, dict) else option


def _fixed_entry(entry: JsonValue, path: str) -> JsonValue:
    if isinstance(entry, dict) and path == "model.id" and isinstance(entry.get("model"), str):
        path = "model"
    return _without(entry, path.split("."))


def _without(value: JsonValue, parts: Sequence[str]) -> JsonValue:
    if not isinstance(value, dict) or parts[0] not in value:
        return value
    head, *rest = parts
    if not rest:
        return {key: inner for key, inner in value.items() if key != head}
    return {**value, head: _without(value[head], rest)}
