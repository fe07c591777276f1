"""Reads a campaign file with the files that it extends, its presets and the command line, merged into one layer.

Precedence: command line, file, preset.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lem_client.errors import FileError
from lem_client.files.layers import Layer, Setting, merged_layers, pointers
from lem_client.files.overrides import with_overrides
from lem_client.files.yaml_reader import read_document
from lem_domain.backends.registry import BackendName
from lem_domain.config.combinations import backends_in
from lem_domain.config.presets import builtin_presets
from lem_domain.config.provenance import Origin, Source

EXTENDS: Final = "_extends"
PRESETS: Final = "presets"
PROJECT_MARKS: Final = (".git", "lem.toml", "pyproject.toml")
"""A folder with one of these is a project; only files inside the project are read."""
MAX_FILES: Final = 50
_FILE_SUFFIXES: Final = (".yaml", ".yml", ".json", ".toml")


def read_layers(path: Path, overrides: Sequence[str] = ()) -> Layer:
    """The merged layers of a campaign file; `overrides` are `dotted.path=value`.

    Raises:
        FileError: a file, a preset or an override can't be used; with its line.
    """
    choices = [override for override in overrides if override.partition("=")[0].strip() == PRESETS]
    reader = _LayerReader(path)
    file = with_overrides(reader.read(path), choices)
    presets = [reader.preset(name, file) for name in _texts(file, PRESETS, "a name or a list of names")]
    # The other overrides apply to the merged layers, because they also fix what a preset varies.
    result = with_overrides(merged_layers([*presets, file]), [one for one in overrides if one not in choices])
    # A preset has sections of several backends; those of unused ones are dropped, unless something else set them too.
    written = {at.split("/")[1] for at, one in result.settings.items() if one.origin.source is not Source.PRESET}
    return result.without({PRESETS, *(set(BackendName) - backends_in(result.values) - written)})


def project_folder(path: Path) -> Path:
    """The nearest marked folder above a file, or the file's own folder; symbolic links are resolved."""
    folder = path.resolve().parent
    marked = (one for one in (folder, *folder.parents) if any((one / mark).exists() for mark in PROJECT_MARKS))
    return next(marked, folder)


class _LayerReader:
    """Reads files inside the project of a campaign file, at most `MAX_FILES` of them."""

    def __init__(self, path: Path) -> None:
        self._root = project_folder(path)
        self._count = 0

    def read(self, path: Path, chain: tuple[Path, ...] = (), named_at: str = "") -> Layer:
        """A file merged over the files that it extends; `chain` are the files that extend it."""
        own = self._document(path, Source.FILE, "", named_at)
        where = f"{own.where(f'/{EXTENDS}')}: {EXTENDS}"
        layers = []
        for name in _texts(own, EXTENDS, "a file or a list of files"):
            target = self._inside(path.parent, name, own.where(f"/{EXTENDS}"), (*chain, path))
            layers.append(self.read(target, (*chain, path), where))
        return merged_layers([*layers, own.without({EXTENDS})])

    def preset(self, name: str, layer: Layer) -> Layer:
        """A built-in preset by its name, or a user's preset from a file."""
        known = builtin_presets()
        where = layer.where(f"/{PRESETS}")
        if "/" not in name and not name.endswith(_FILE_SUFFIXES):
            if name not in known:
                raise FileError(
                    (f"{where}: there is no preset {name!r}; choose one of {', '.join(known)}, or give a file",)
                )
            values = dict(known[name].values)
            setting = Setting(Origin(source=Source.PRESET, detail=name), Path())
            return Layer(values).with_settings(dict.fromkeys(pointers(values), setting))
        target = self._inside(layer.folder(f"/{PRESETS}"), name, where, ())
        preset = self._document(target, Source.PRESET, f"{name}, ", f"{where}: {PRESETS}")
        for key in (EXTENDS, PRESETS):
            if key in preset.values:
                where = preset.where(f"/{key}").removeprefix(f"{name}, ")
                raise FileError((f"{where}: a preset can't have {key}; write its values here",))
        return preset

    def _document(self, path: Path, source: Source, prefix: str, named_at: str) -> Layer:
        self._count += 1
        if self._count > MAX_FILES + 1:
            raise FileError((f"{named_at}: more than {MAX_FILES} files are read in all; extend fewer",))
        try:
            document = read_document(path)
        except FileError as error:
            raise FileError(tuple(f"{named_at}: {one}" if named_at else one for one in error.problems)) from None
        settings = {
            at: Setting(Origin(source=source, detail=f"{prefix}{path}:{line}"[:1000]), path.parent)
            for at, line in document.lines.items()
        }
        return Layer(document.values).with_settings(settings)

    def _inside(self, folder: Path, name: str, where: str, chain: tuple[Path, ...]) -> Path:
        """The path of a named file, if it is inside the project and does not extend itself."""
        target = folder / name
        try:
            resolved = target.resolve()
        except (OSError, ValueError, RuntimeError):
            raise FileError((f"{where}: {name!r} is not a valid path; correct it",)) from None
        if not resolved.is_relative_to(self._root):
            raise FileError(
                (
                    f"{where}: {name} is outside the project folder {self._root}; move it there, or mark a higher "
                    "folder as the project with an empty file lem.toml",
                )
            )
        earlier = [one.resolve() for one in chain]
        if resolved in earlier:
            circle = [*chain[earlier.index(resolved) :], target]
            raise FileError(
                (f"{where}: files extend each other in a circle, {' → '.join(map(str, circle))}; break it",)
            )
        return target


def _texts(layer: Layer, key: str, form: str) -> list[str]:
    value = layer.values.get(key)
    listed = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) and one for one in listed):
        raise FileError((f"{layer.where(f'/{key}')}: {key} must be {form}; correct it",))
    return [one for one in listed if isinstance(one, str)]
