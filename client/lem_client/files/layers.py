"""A campaign file with all that it extends, its presets and the command line: one document that knows where each of
its values came from. Precedence: command line, file, preset, default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic.types import JsonValue

from lem_client.errors import FileError
from lem_client.files.documents import Document, read_document
from lem_client.files.layered_values import Layered, lay, note_all
from lem_client.files.overrides import set_value
from lem_domain.backends.registry import BackendName
from lem_domain.config.combinations import backends_in
from lem_domain.config.presets import builtin_presets
from lem_domain.config.provenance import Origin, Source

EXTENDS: Final = "_extends"
PRESETS: Final = "presets"
PROJECT_MARKS: Final = (".git", "lem.toml", "pyproject.toml")
"""What marks the project folder: the nearest one above the file, else the file's own folder."""
MAX_FILES: Final = 50
_PRESET_NAMES: Final = "a name or a list of names"


def read_layers(path: Path, overrides: Sequence[str] = ()) -> Layered:
    """Everything that a campaign file means; `overrides` are `dotted.path=value`.

    Raises:
        FileError: a file, a preset or an override can't be used; says where and why.
    """
    reader = _Reader(path)
    top = reader.read(path, read_document(path), ())
    # What the command line says of presets and backends counts before presets are laid below the file. All that it
    # says counts once more after it, since a preset may hold axes and listed experiments, too.
    chosen = Layered(dict(top.values), dict(top.origins), dict(top.folders))
    for override in overrides:
        set_value(chosen, override)
    names = chosen.values.get(PRESETS)
    place = _shown(chosen, f"/{PRESETS}", path)
    folder = chosen.folder(f"/{PRESETS}") or path.parent
    presets = [reader.preset(name, place, folder) for name in _texts(names, f"{place}: {PRESETS}", _PRESET_NAMES)]
    backends = backends_in(_laid(*presets, chosen).values)
    for preset in presets:
        for foreign in (one.value for one in BackendName if one.value not in backends):
            preset.values.pop(foreign, None)
    result = _laid(*presets, top)
    for override in overrides:
        set_value(result, override)
    result.values.pop(PRESETS, None)
    return result


def _laid(*layers: Layered) -> Layered:
    """One over the other, the last one at the top."""
    result = Layered()
    for layer in layers:
        lay(result, layer)
    return result


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
        note_all(own, values, (), lambda at: Origin(source=Source.FILE, detail=_place(document, at)), path.parent)
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
            note_all(made, made.values, (), lambda _: origin, None)
            return made
        target = self._inside(folder, name, place, ())
        document = self._document(target, f"{place}: {PRESETS}")
        for key in (EXTENDS, PRESETS):
            if key in document.values:
                raise FileError((f"{_place(document, f'/{key}')}: a preset has no {key}; write its values here",))
        made = Layered(dict(document.values))
        note_all(
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
