"""Replaces the prompt and trace files that a campaign names by the digests of their contents.

Files may be named in the base, in listed experiments and anywhere in the sweep; each is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from pydantic.types import JsonValue

from lem_client.errors import FileError
from lem_client.files.layers import Layer, Setting, Values
from lem_client.files.yaml_reader import read_text
from lem_domain.arrivals import TraceError, trace_lines
from lem_domain.config.documents import pointer
from lem_domain.config.sweep import RESERVED, ZIP
from lem_domain.prompt_sets import (
    DEFAULT_COLUMN,
    PromptFileError,
    parse_jsonl_prompts,
    parse_text_prompts,
    prompts_digest,
)
from lem_domain.wire.datasets import MAX_DATASET_BYTES

Location = tuple[str | int, ...]


class PromptSet(NamedTuple):
    """The lines of a file, to be uploaded before the campaign is submitted."""

    name: str
    sha256: str
    prompts: tuple[str, ...]


class FileKind(NamedTuple):
    """A key that names files, and the key for their digests in the same section."""

    section: str
    file: str
    digest: str
    option: str | None
    """A key of the section that affects how the file is read."""
    read: Callable[[Path, str | None], tuple[str, ...]]
    """Reads a file with the option's value; raises a FileError without the line in the campaign."""


def _read_prompts(path: Path, column: str | None) -> tuple[str, ...]:
    text = read_text(path, MAX_DATASET_BYTES, "a file of prompts")
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            return parse_jsonl_prompts(text, column or DEFAULT_COLUMN)
        if column is not None:
            raise PromptFileError("a text file has no columns; remove prompts.column or name a .jsonl file")
        return parse_text_prompts(text)
    except PromptFileError as error:
        raise FileError((f"{path}: {error}",)) from None


def _read_arrivals(path: Path, _: str | None) -> tuple[str, ...]:
    try:
        return trace_lines(read_text(path, MAX_DATASET_BYTES, "a trace of arrivals"))
    except TraceError as error:
        raise FileError((f"{path}: {error}",)) from None


KINDS: Final = (
    FileKind("prompts", "file", "dataset", "column", _read_prompts),
    FileKind("traffic", "trace_file", "trace", None, _read_arrivals),
)


class NamedFiles(NamedTuple):
    """A campaign's values with digests instead of file names."""

    layer: Layer
    prompt_sets: tuple[PromptSet, ...]
    problems: tuple[str, ...]
    """Sentences with the location; a file with a problem has a digest, too, so that validation can continue."""


def replace_named_files(layer: Layer) -> NamedFiles:
    """Replace the named files of every kind. Values of any shape are accepted; validation follows."""
    prompt_sets: list[PromptSet] = []
    problems: dict[str, None] = {}
    for kind in KINDS:
        replacer = _Replacer(kind, layer)
        layer = replacer.replaced()
        prompt_sets += replacer.read.values()
        problems |= replacer.problems
    return NamedFiles(layer, tuple(prompt_sets), tuple(problems))


class _Replacer:
    """Replaces the files of one kind."""

    def __init__(self, kind: FileKind, layer: Layer) -> None:
        self.read: dict[tuple[Path, str | None], PromptSet] = {}
        self.problems: dict[str, None] = {}
        self._kind = kind
        self._layer = layer
        self._settings: dict[str, Setting] = {}
        self._file_path = f"{kind.section}.{kind.file}"
        self._digest_path = f"{kind.section}.{kind.digest}"
        self._option_path = f"{kind.section}.{kind.option}" if kind.option else None
        base = layer.values.get(kind.section)
        self._base: Values = base if isinstance(base, dict) else {}

    def replaced(self) -> Layer:
        kind, values = self._kind, dict(self._layer.values)
        entries, sweep = values.get("experiments"), values.get("sweep")
        if isinstance(entries, list):
            values["experiments"] = [
                self._entry(entry, ("experiments", index)) if isinstance(entry, dict) else entry
                for index, entry in enumerate(entries)
            ]
        if isinstance(sweep, dict):
            values["sweep"] = self._sweep(sweep)
        if kind.file in self._base:
            values[kind.section] = self._section(self._base, (kind.section,))
        elif self.read and kind.option in self._base:
            # The option was applied to the files of the sweep; without a file in the base it would be refused.
            values[kind.section] = {key: value for key, value in self._base.items() if key != kind.option}
        return Layer(values, {**self._layer.settings, **self._settings})

    def _entry(self, entry: Values, location: Location) -> Values:
        own = entry.get(self._kind.section)
        if not isinstance(own, dict):
            return entry
        return {**entry, self._kind.section: self._section(own, (*location, self._kind.section), self._base)}

    def _section(self, own: Values, location: Location, base: Mapping[str, JsonValue] | None = None) -> Values:
        """A section that names a file, or that changes the option of the file that the base names."""
        kind = self._kind
        both = {**(base or {}), **own}
        name, option = both.get(kind.file), both.get(kind.option or "")
        # A section with file and digest is left as it is: validation refuses it.
        if not isinstance(name, str) or not ({kind.file, kind.option} & own.keys()) or kind.digest in own:
            return own
        named_at = (*location, kind.file) if kind.file in own else (kind.section, kind.file)
        digest = self._digest(name, named_at, (*location, kind.digest), option)
        kept = {key: value for key, value in own.items() if key not in (kind.file, kind.option)}
        return {**kept, kind.digest: digest}

    def _sweep(self, sweep: Values) -> Values:
        found: Values = {}
        for name, listed in sweep.items():
            if name not in RESERVED:
                found |= self._columns({name: listed}, ("sweep",))
            elif name == ZIP:
                found[name] = self._rows(listed, name, self._columns)
            else:
                found[name] = self._rows(listed, name, self._row)
        return found

    def _rows(self, listed: JsonValue, name: str, change: Callable[[Values, Location], Values]) -> JsonValue:
        if not isinstance(listed, list):
            return listed
        return [
            change(row, ("sweep", name, index)) if isinstance(row, dict) else row for index, row in enumerate(listed)
        ]

    def _columns(self, columns: Values, location: Location) -> Values:
        """Paths that change together, as rows: a file and its option belong to one row."""
        lists = {path: values for path, values in columns.items() if isinstance(values, list)}
        lengths = {len(values) for values in lists.values()}
        if len(lists) < len(columns) or len(lengths) != 1 or lengths == {0}:
            return columns  # malformed, which validation reports
        rows = [
            self._row(dict(zip(lists, values, strict=True)), location) for values in zip(*lists.values(), strict=True)
        ]
        return {path: [row[path] for row in rows] for path in rows[0]}

    def _row(self, row: Values, location: Location) -> Values:
        kind = self._kind
        found: Values = {}
        for path, value in row.items():
            if path == self._file_path:
                option = row.get(self._option_path or "", self._base.get(kind.option or ""))
                target = (*location, self._digest_path)
                # Null and invalid values move to the digest's key too: every row of a group has the same keys.
                digest = self._digest(value, (*location, path), target, option) if isinstance(value, str) else value
                found[self._digest_path] = digest
            elif path == kind.section and isinstance(value, dict):
                found[path] = self._section(value, (*location, path))
            elif path != self._option_path:
                found[path] = value
            elif self._file_path not in row:
                where = self._layer.where(pointer((*location, path)))
                message = f"{where}: {path} is varied without its file; put both into one zip group"
                self.problems[message] = None
        return found

    def _digest(self, name: str, named_at: Location, digest_at: Location, option: JsonValue) -> str:
        at = pointer(named_at)
        setting = self._layer.setting(at)
        if setting is not None:
            self._settings[pointer(digest_at)] = setting  # problems of the digest are problems of the file
        path, option = self._layer.folder(at) / name, option if isinstance(option, str) else None
        if (path, option) not in self.read:
            lines: tuple[str, ...] = ()
            try:
                lines = self._kind.read(path, option)
            except FileError as error:
                for problem in error.problems:
                    self.problems[f"{self._layer.where(at)}: {self._file_path}: {problem}"] = None
            self.read[path, option] = PromptSet(Path(name).name[:200], prompts_digest(lines), lines)
        return self.read[path, option].sha256
