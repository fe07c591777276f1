"""Replaces the prompt files that a campaign names by the digests of their prompts, wherever in it they are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic.types import JsonValue

from lem_client.documents import read_text
from lem_client.errors import FileError
from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.sweep import EXCLUDE, INCLUDE, ZIP
from lem_domain.prompt_sets import (
    DEFAULT_COLUMN,
    PromptFileError,
    parse_jsonl_prompts,
    parse_text_prompts,
    prompts_digest,
)
from lem_domain.wire.datasets import MAX_DATASET_BYTES

FILE, COLUMN, DATASET = "prompts.file", "prompts.column", "prompts.dataset"


class PromptSet(NamedTuple):
    """The prompts of a file, to be uploaded before the campaign is submitted."""

    name: str
    sha256: str
    prompts: tuple[str, ...]


class Places(Protocol):
    """Where what is at a JSON pointer was written, and what paths there are relative to."""

    def __call__(self, place: str) -> str: ...

    def folder(self, place: str) -> Path: ...


class PromptFiles:
    """Reads the prompt files that a campaign names, each once."""

    def __init__(self, where: Places) -> None:
        self.sets: dict[tuple[Path, str | None], PromptSet] = {}
        self._where = where

    def replace_in(self, spec: CampaignSpec) -> CampaignSpec:
        """The specification with digests in place of files: in the base, in listed experiments and along the sweep.

        Raises:
            FileError: a file can't be used, or a column is varied without its file.
        """
        base = dict(spec.experiment)
        column = _text(base.get("prompts"), "column")
        varied = {path for path in spec.sweep if path not in (ZIP, INCLUDE, EXCLUDE)}
        varied |= {path for group in _maps(spec.sweep.get(ZIP, ())) for path in group}
        if COLUMN in varied:
            place = self._where(f"/sweep/{COLUMN}")
            raise FileError((f"{place}: prompts.column can't be swept; sweep `prompts` with a file and a column each",))
        if "prompts" in base:
            base["prompts"] = self._resolved(base["prompts"], "/prompts", None)
        if FILE in varied and isinstance(base.get("prompts"), dict):
            base["prompts"] = _without(base["prompts"], "column")
        entries = [
            {**entry, "prompts": self._resolved(entry["prompts"], f"/experiments/{index}/prompts", None)}
            if "prompts" in entry
            else entry
            for index, entry in enumerate(spec.experiments)
        ]
        sweep = self._axes(spec.sweep, "/sweep", column)
        if ZIP in spec.sweep:
            sweep[ZIP] = [
                {**self._axes(group, f"/sweep/zip/{index}", column)} if isinstance(group, dict) else group
                for index, group in enumerate(spec.sweep[ZIP])
            ]
        if INCLUDE in spec.sweep:
            sweep[INCLUDE] = [
                self._row(row, f"/sweep/include/{index}", column) if isinstance(row, dict) else row
                for index, row in enumerate(spec.sweep[INCLUDE])
            ]
        return spec.model_copy(update={"experiment": base, "experiments": entries, "sweep": sweep})

    def _axes(self, axes: Mapping[str, Any], at: str, column: str | None) -> dict[str, list[JsonValue]]:
        found: dict[str, list[JsonValue]] = {}
        for path, values in axes.items():
            listed = values if isinstance(values, list) else []
            rows = [self._row({path: value}, f"{at}/{path}", column) for value in listed]
            found[DATASET if path == FILE else path] = [next(iter(row.values())) for row in rows]
        return found

    def _row(self, row: Mapping[str, JsonValue], at: str, column: str | None) -> dict[str, JsonValue]:
        found: dict[str, JsonValue] = {}
        for path, value in row.items():
            if path == FILE and isinstance(value, str):
                found[DATASET] = self._digest(value, at, column)
            elif path == "prompts":
                found[path] = self._resolved(value, at, None)
            else:
                found[path] = value
        return found

    def _resolved(self, prompts: JsonValue, at: str, column: str | None) -> JsonValue:
        name = _text(prompts, "file")
        if name is None or not isinstance(prompts, dict):
            return prompts
        digest = self._digest(name, f"{at}/file", _text(prompts, "column") or column)
        return {**{key: value for key, value in prompts.items() if key not in ("file", "column")}, "dataset": digest}

    def _digest(self, name: str, at: str, column: str | None) -> str:
        path = self._where.folder(at) / name
        if (path, column) not in self.sets:
            prompts = self._read(path, at, column)
            self.sets[path, column] = PromptSet(Path(name).name[:200], prompts_digest(prompts), prompts)
        return self.sets[path, column].sha256

    def _read(self, path: Path, at: str, column: str | None) -> tuple[str, ...]:
        place = f"{self._where(at)}: prompts.file"
        try:
            # Every prompt is sent as JSON, so the limit of what is sent is one for the file, too.
            text = read_text(path, MAX_DATASET_BYTES, "a file of prompts")
            if path.suffix.lower() in (".jsonl", ".ndjson"):
                return parse_jsonl_prompts(text, column or DEFAULT_COLUMN)
            if column is not None:
                raise PromptFileError("a text file has no columns; remove prompts.column or name a .jsonl file")
            return parse_text_prompts(text)
        except PromptFileError as error:
            raise FileError((f"{place}: {path}: {error}",)) from None
        except FileError as error:
            raise FileError((f"{place}: {error}",)) from None


def _maps(values: Sequence[JsonValue]) -> list[dict[str, JsonValue]]:
    return [value for value in values if isinstance(value, dict)]


def _text(prompts: JsonValue, key: str) -> str | None:
    value = prompts.get(key) if isinstance(prompts, dict) else None
    return value if isinstance(value, str) else None


def _without(prompts: JsonValue, key: str) -> JsonValue:
    return {name: value for name, value in prompts.items() if name != key} if isinstance(prompts, dict) else prompts
