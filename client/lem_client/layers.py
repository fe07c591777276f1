"""A campaign file with all that it extends, its presets and the command line: one document that knows where each of
its values came from. Precedence: command line, file, preset, default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from pydantic.types import JsonValue

from lem_client.documents import Document, parse_value, read_document
from lem_client.errors import FileError
from lem_domain.config.combinations import backends_in
from lem_domain.config.experiment import BackendName
from lem_domain.config.presets import builtin_presets
from lem_domain.config.provenance import Origin, Source
from lem_domain.config.validation import pointer

EXTENDS: Final = "_extends"
PRESETS: Final = "presets"
PROJECT_MARKS: Final = (".git", "lem.toml", "pyproject.toml")
"""What marks the project folder: the nearest one above the file, else the file's own folder."""
MAX_FILES: Final = 50

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


def read_layers(path: Path, overrides: Sequence[str] = ()) -> Layered:
    """Everything that a campaign file means; `overrides` are `dotted.path=value`.

    Raises:
        FileError: a file, a preset or an override can't be used; says where and why.
    """
    reader = _Reader(path)
    top = reader.read(path, read_document(path), ())
    for override in overrides:
        _override(top, override)
    names = top.values.pop(PRESETS, None)
    place = _shown(top, f"/{PRESETS}", path)
    result = Layered()
    backends = backends_in(top.values)
    for name in _texts(names, f"{place}: {PRESETS}", "a name or a list of names"):
        preset = reader.preset(name, place, top.folder(f"/{PRESETS}") or path.parent)
        foreign = [one.value for one in BackendName if one.value not in backends]
        for section in foreign:
            preset.values.pop(section, None)
        lay(result, preset)
    lay(result, top)
    return result


def lay(lower: Layered, upper: Layered) -> None:
    """Put one layer over another: maps merge deeply, everything else is replaced."""
    _lay(lower, upper, lower.values, upper.values, ())


def project_folder(path: Path) -> Path:
    """The nearest folder above a file that is marked as a project, else the file's own; symbolic links followed."""
    folder = path.resolve().parent
    marked = (one for one in (folder, *folder.parents) if any((one / mark).exists() for mark in PROJECT_MARKS))
    return next(marked, folder)


class _Reader:
    def __init__(self, path: Path) -> None:
        self._root = project_folder(path)
        self._read = 0

    def read(self, path: Path, document: Document, chain: tuple[Path, ...]) -> Layered:
        """A file over those that it extends."""
        chain = (*chain, path)
        values = dict(document.values)
        place = _place(document, f"/{EXTENDS}")
        result = Layered()
        for name in _texts(values.pop(EXTENDS, None), f"{place}: {EXTENDS}", "a file or a list of files"):
            target = self._inside(path.parent, name, place, chain)
            lay(result, self.read(target, self._document(target, f"{place}: {EXTENDS}"), chain))
        own = Layered(values)
        _note_all(own, values, (), lambda at: Origin(source=Source.FILE, detail=_place(document, at)), path.parent)
        lay(result, own)
        return result

    def preset(self, name: str, place: str, folder: Path) -> Layered:
        """A built-in preset by its name, or a user's own from a file."""
        known = builtin_presets()
        if "/" not in name and not name.endswith((".yaml", ".yml", ".toml", ".json")):
            if name not in known:
                raise FileError(
                    (f"{place}: there is no preset {name!r}; choose one of {', '.join(known)}, or name a file",)
                )
            made = Layered(dict(known[name].values))
            origin = Origin(source=Source.PRESET, detail=name)
            _note_all(made, made.values, (), lambda _: origin, None)
            return made
        target = self._inside(folder, name, place, ())
        document = self._document(target, f"{place}: {PRESETS}")
        for key in (EXTENDS, PRESETS):
            if key in document.values:
                raise FileError((f"{_place(document, f'/{key}')}: a preset has no {key}; write its values here",))
        made = Layered(dict(document.values))
        _note_all(
            made,
            made.values,
            (),
            lambda at: Origin(source=Source.PRESET, detail=f"{name}, {_place(document, at)}"),
            target.parent,
        )
        return made

    def _document(self, path: Path, place: str) -> Document:
        self._read += 1
        if self._read > MAX_FILES:
            raise FileError((f"{place}: more than {MAX_FILES} files are read in all; extend fewer",))
        try:
            return read_document(path)
        except FileError as error:
            raise FileError(tuple(f"{place}: {one}" for one in error.problems)) from None

    def _inside(self, folder: Path, name: str, place: str, chain: tuple[Path, ...]) -> Path:
        """The named file, if it lies in the project and is not being read already."""
        target = folder / name
        try:
            resolved = target.resolve()
        except (OSError, ValueError, RuntimeError):
            raise FileError((f"{place}: {name!r} is no path of a file; correct it",)) from None
        if not resolved.is_relative_to(self._root):
            raise FileError(
                (
                    f"{place}: {name} lies outside the project folder {self._root}; move it there, or mark a higher "
                    "folder as the project's with an empty file lem.toml",
                )
            )
        earlier = [one.resolve() for one in chain]
        if resolved in earlier:
            circle = [*chain[earlier.index(resolved) :], target]
            raise FileError(
                (f"{place}: files extend each other in a circle, {' → '.join(map(str, circle))}; break it",)
            )
        return target


# --- layers -----------------------------------------------------------------------------------------------------------


def _lay(lower: Layered, upper: Layered, below: Values, above: Mapping[str, JsonValue], at: tuple[str, ...]) -> None:
    for key, value in above.items():
        place = pointer((*at, key))
        held = below.get(key)
        put = value
        if place == "/model":
            held, put = _as_map(lower, held, value, place), _as_map(upper, value, held, place)
        if isinstance(held, dict) and isinstance(put, dict):
            inner = dict(held)
            below[key] = inner
            _move(lower, upper, place, deep=False)
            _lay(lower, upper, inner, put, (*at, key))
        else:
            below[key] = put
            for places in (lower.origins, lower.folders):
                for gone in [one for one in places if one == place or one.startswith(f"{place}/")]:
                    del places[gone]
            _move(lower, upper, place, deep=True)


def _as_map(layer: Layered, value: JsonValue, other: JsonValue, place: str) -> JsonValue:
    """A model's plain text is its id, where the other layer says more about it."""
    if not (isinstance(value, str) and isinstance(other, dict)):
        return value
    for places in (layer.origins, layer.folders):
        if place in places:
            places[f"{place}/id"] = places[place]  # type: ignore[assignment]
    return {"id": value}


def _move(lower: Layered, upper: Layered, place: str, *, deep: bool) -> None:
    for ours, theirs in ((lower.origins, upper.origins), (lower.folders, upper.folders)):
        for one, what in theirs.items():
            if one == place or (deep and one.startswith(f"{place}/")):
                ours[one] = what  # type: ignore[assignment]


def _note_all(
    layer: Layered, value: JsonValue, at: tuple[str | int, ...], origin: Callable[[str], Origin], folder: Path | None
) -> None:
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
        _note_all(layer, inner, (*at, key), origin, folder)


def _nearest(places: Mapping[str, T], place: str) -> T | None:
    while place:
        if place in places:
            return places[place]
        place = place.rpartition("/")[0]
    return None


def _place(document: Document, at: str) -> str:
    line = document.line_of(at)
    return f"{document.path}:{line}" if line else str(document.path)


def _shown(layer: Layered, at: str, path: Path) -> str:
    origin = layer.origin(at)
    return origin.detail if origin is not None else str(path)


def _texts(value: JsonValue, what: str, form: str) -> list[str]:
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) and one for one in listed):
        raise FileError((f"{what} is {form}; write it so",))
    return [one for one in listed if isinstance(one, str)]


# --- the command line -------------------------------------------------------------------------------------------------


def _override(layer: Layered, override: str) -> None:
    path, separator, text = override.partition("=")
    path = path.strip()
    if not separator or not all(path.split(".")):
        raise FileError((f"--set {override}: write it as path=value, for example pytorch.batch_size=8",))
    try:
        value = parse_value(text)
    except FileError as error:
        raise FileError((f"--set {path}: {error}",)) from None
    parts = ["sweep", path.removeprefix("sweep.")] if path.startswith("sweep.") else path.split(".")
    _set(layer.values, parts, value)
    place = pointer(parts)
    for places in (layer.origins, layer.folders):
        for gone in [one for one in places if one.startswith(f"{place}/")]:
            del places[gone]
    layer.origins[place] = Origin(source=Source.COMMAND_LINE, detail=f"--set {path}")
    layer.folders[place] = Path()
    _stop_varying(layer.values, path)


def _set(target: Values, parts: Sequence[str], value: JsonValue) -> None:
    head, *rest = parts
    if not rest:
        target[head] = value
        return
    inner = target.get(head)
    if head == "model" and isinstance(inner, str):
        inner = {"id": inner}
    if inner is not None and not isinstance(inner, dict):
        raise FileError((f"--set …{head}.{'.'.join(rest)}: {head!r} is a plain value in the file; correct the path",))
    copy = dict(inner or {})
    target[head] = copy
    _set(copy, rest, value)


def _stop_varying(values: Values, path: str) -> None:
    """What the command line sets is one value: no axis, zip group or listed experiment has another."""
    sweep = values.get("sweep")
    if isinstance(sweep, dict):
        kept = {axis: listed for axis, listed in sweep.items() if axis != path}
        groups = kept.get("zip")
        if isinstance(groups, list):
            fewer = [_without(group, path) if isinstance(group, dict) else group for group in groups]
            kept["zip"] = [group for group in fewer if group != {}]
        values["sweep"] = kept
    entries = values.get("experiments")
    if isinstance(entries, list):
        parts = path.split(".")
        values["experiments"] = [_without_path(entry, parts) for entry in entries]


def _without(group: Mapping[str, JsonValue], path: str) -> Values:
    return {key: value for key, value in group.items() if key != path}


def _without_path(value: JsonValue, parts: Sequence[str]) -> JsonValue:
    if not isinstance(value, dict) or parts[0] not in value:
        return value
    head, *rest = parts
    if not rest:
        return _without(value, head)
    return {**value, head: _without_path(value[head], rest)}
