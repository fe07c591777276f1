"""Replaces the files that a campaign names by the digests of what they hold, wherever in it they are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic.types import JsonValue

from lem_client.errors import FileError
from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.sweep import EXCLUDE, INCLUDE, RESERVED, ZIP
from lem_domain.config.validation import pointer
from lem_domain.prompt_sets import prompts_digest

Values = dict[str, JsonValue]


class PromptSet(NamedTuple):
    """The lines of a file, to be uploaded before the campaign is submitted."""

    name: str
    sha256: str
    prompts: tuple[str, ...]


class Places(Protocol):
    """Where what is at a JSON pointer was written, and what paths there are relative to."""

    def __call__(self, place: str) -> str: ...

    def folder(self, place: str) -> Path: ...


class FileKind(NamedTuple):
    """A key that names files, and the one beside it that their digests stand in."""

    section: str
    file: str
    digest: str
    option: str | None
    """A key beside it that says how the file is read."""
    read: Callable[[Path, str | None], tuple[str, ...]]
    """Path and option to lines; raises a FileError without the place in the campaign."""

    @property
    def path(self) -> str:
        """Of the key that names files."""
        return f"{self.section}.{self.file}"

    @property
    def option_path(self) -> str | None:
        """Of the option."""
        return None if self.option is None else f"{self.section}.{self.option}"

    def without_file(self, section: Mapping[str, JsonValue]) -> Values:
        """A section as it is submitted."""
        return {key: value for key, value in section.items() if key not in (self.file, self.option)}


class NamedFiles:
    """Reads files of one kind, each once; `sets` holds what they hold, `problems` why some can't be used."""

    def __init__(self, kind: FileKind, where: Places) -> None:
        self.sets: dict[tuple[Path, str | None], PromptSet] = {}
        self.problems: list[str] = []
        self._kind = kind
        self._where = where

    def replace_in(self, spec: CampaignSpec) -> CampaignSpec:
        """The specification with digests in place of files: in the base, in listed experiments and along the sweep.

        Where there are problems it is of no use.
        """
        kind = self._kind
        base = _map(spec.experiment.get(kind.section))
        option = _text(base, kind.option)
        entries = [
            self._entry(entry, base, pointer(("experiments", index))) for index, entry in enumerate(spec.experiments)
        ]
        sweep = self._axes(spec.sweep, ("sweep",), option)
        for name, change in ((ZIP, self._group), (INCLUDE, self._row), (EXCLUDE, self._row)):
            if name in spec.sweep:
                sweep[name] = [
                    change(one, ("sweep", name, index), option) if isinstance(one, dict) else one
                    for index, one in enumerate(spec.sweep[name])
                ]
        experiment = dict(spec.experiment)
        if kind.file in base:
            experiment[kind.section] = self._resolved(base, f"/{kind.section}")
        elif self.sets and kind.section in experiment and base:
            experiment[kind.section] = kind.without_file(base)
        return spec.model_copy(update={"experiment": experiment, "experiments": entries, "sweep": sweep})

    def _entry(self, entry: Values, base: Mapping[str, JsonValue], at: str) -> Values:
        """A listed experiment, whose keys stand over those of the base."""
        kind = self._kind
        own = _map(entry.get(kind.section))
        if kind.file not in own and kind.option not in own:
            return entry
        both = {**base, **own}
        name = both.get(kind.file)
        if not isinstance(name, str):
            return entry
        place = f"{at}/{kind.section}/{kind.file if kind.file in own else kind.option}"
        from_base = kind.file not in own
        digest = self._digest(name, f"/{kind.section}/{kind.file}" if from_base else place, _text(both, kind.option))
        return {**entry, kind.section: {**kind.without_file(own), kind.digest: digest}}

    def _axes(
        self, axes: Mapping[str, Sequence[JsonValue]], at: tuple[str | int, ...], option: str | None
    ) -> dict[str, list[JsonValue]]:
        found: dict[str, list[JsonValue]] = {}
        for path, values in axes.items():
            if path not in RESERVED:
                found |= self._columns({path: list(values)}, at, option)
        return found

    def _group(self, group: Values, at: tuple[str | int, ...], option: str | None) -> Values:
        """A zip group; one that is none stays, to be refused as such."""
        columns = {path: values for path, values in group.items() if isinstance(values, list)}
        if len(columns) < len(group) or len({len(values) for values in columns.values()}) != 1:
            return group
        return {**self._columns(columns, at, option)}

    def _columns(
        self, columns: Mapping[str, list[JsonValue]], at: tuple[str | int, ...], option: str | None
    ) -> dict[str, list[JsonValue]]:
        """Paths that change together, row by row."""
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        changed = [self._row(row, at, option) for row in rows]
        if not changed:
            return dict(columns)
        return {path: [row[path] for row in changed] for path in changed[0]}

    def _row(self, row: Values, at: tuple[str | int, ...], option: str | None) -> Values:
        kind = self._kind
        found: Values = {}
        for path, value in row.items():
            place = pointer((*at, path))
            if path == kind.path and isinstance(value, str):
                own = row.get(kind.option_path) if kind.option_path else None
                read_by = own if isinstance(own, str) else option
                found[f"{kind.section}.{kind.digest}"] = self._digest(value, place, read_by)
            elif path == kind.section:
                found[path] = self._resolved(value, place)
            elif path != kind.option_path:
                found[path] = value
            elif kind.path not in row:
                self._tell(f"{self._where(place)}: {path} is varied without its file; put both into one zip group")
        return found

    def _resolved(self, section: JsonValue, at: str) -> JsonValue:
        """A whole section."""
        kind = self._kind
        name = _text(section, kind.file)
        if name is None or not isinstance(section, dict):
            return section
        digest = self._digest(name, f"{at}/{kind.file}", _text(section, kind.option))
        return {**kind.without_file(section), kind.digest: digest}

    def _digest(self, name: str, at: str, option: str | None) -> str:
        path = self._where.folder(at) / name
        if (path, option) not in self.sets:
            try:
                lines = self._kind.read(path, option)
            except FileError as error:
                for one in error.problems:
                    self._tell(f"{self._where(at)}: {self._kind.path}: {one}")
                lines = ()
            self.sets[path, option] = PromptSet(Path(name).name[:200], prompts_digest(lines), lines)
        return self.sets[path, option].sha256

    def _tell(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def _map(value: JsonValue) -> Values:
    return value if isinstance(value, dict) else {}


def _text(section: JsonValue, key: str | None) -> str | None:
    value = section.get(key) if isinstance(section, dict) and key is not None else None
    return value if isinstance(value, str) else None
