"""From a campaign file to what is submitted: read, overridden, expanded for early errors, its prompt files read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic.types import JsonValue

from lem_client.documents import Document, parse_value, read_document, read_text
from lem_client.errors import FileError, InvalidRequest
from lem_client.trace_files import TraceFiles
from lem_domain.config.campaign import CampaignSpec, campaign_from_document
from lem_domain.config.expansion import Plan, expand
from lem_domain.errors import ConfigurationError, FieldProblem
from lem_domain.prompt_sets import (
    DEFAULT_COLUMN,
    PromptFileError,
    builtin_prompt_sets,
    parse_jsonl_prompts,
    parse_text_prompts,
    prompts_digest,
)
from lem_domain.wire.datasets import MAX_DATASET_BYTES


class PromptSet(NamedTuple):
    """The prompts of a file, to be uploaded before the campaign is submitted."""

    name: str
    sha256: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class CampaignFile:
    """A campaign file that holds no error that can be seen from here."""

    spec: CampaignSpec
    """What is submitted: prompt files are replaced by their digests."""
    plan: Plan
    prompt_sets: tuple[PromptSet, ...]
    where: Callable[[str], str]
    """From a JSON pointer into the spec to `file:line`, or to the option that set the value."""

    def problems(self, error: InvalidRequest) -> tuple[str, ...]:
        """The server's findings as sentences that name the place in the file."""
        return _sentences(self.where, error.findings, str(error))


def load_campaign_file(path: Path | str, *, name: str | None = None, overrides: Sequence[str] = ()) -> CampaignFile:
    """Read a campaign file. `overrides` are `dotted.path=value`, which go before the file.

    Raises:
        FileError: with every problem, each with its file and, in YAML, its line.
    """
    path = Path(path)
    document = read_document(path)
    values, overridden = _overridden(document.values, overrides)
    if name is not None:
        values["name"] = name
    where = _Where(document, values, overridden)
    try:
        written = campaign_from_document(values, default_name=path.stem)
        plan = expand(written)
    except ConfigurationError as error:
        raise FileError(_sentences(where, error.findings, str(error))) from None
    _check_builtin_prompts(plan, where)
    reader, traces = _PromptFiles(path.parent, where), TraceFiles(path.parent, where)
    spec = traces.replace_in(reader.replace_in(written))
    sets = (
        *reader.sets.values(),
        *(PromptSet(Path(name).name[:200], prompts_digest(lines), lines) for name, lines in traces.lines.items()),
    )
    return CampaignFile(spec, expand(spec) if sets else plan, sets, where)


# --- overrides --------------------------------------------------------------------------------------------------------


def _overridden(
    values: Mapping[str, JsonValue], overrides: Sequence[str]
) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    result = dict(values)
    paths = []
    for override in overrides:
        path, separator, text = override.partition("=")
        path = path.strip()
        if not separator or not all(path.split(".")):
            raise FileError((f"--set {override}: write it as path=value, for example pytorch.batch_size=8",))
        try:
            value = parse_value(text)
        except FileError as error:
            raise FileError((f"--set {path}: {error}",)) from None
        _set(result, ["sweep", path.removeprefix("sweep.")] if path.startswith("sweep.") else path.split("."), value)
        sweep = result.get("sweep")
        if isinstance(sweep, dict) and path in sweep:
            result["sweep"] = {axis: listed for axis, listed in sweep.items() if axis != path}
        paths.append(path)
    return result, tuple(paths)


def _set(target: dict[str, JsonValue], parts: Sequence[str], value: JsonValue) -> None:
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


# --- problems ---------------------------------------------------------------------------------------------------------


class _Where:
    """Where a value of the specification was written."""

    def __init__(self, document: Document, values: Mapping[str, JsonValue], overridden: Sequence[str]) -> None:
        self._document = document
        sweep = values.get("sweep")
        self._axes = tuple(sweep) if isinstance(sweep, dict) else ()
        self._overridden = overridden

    def __call__(self, place: str) -> str:
        dotted = _dotted(place)
        for path in self._overridden:
            if dotted == path or dotted.startswith(f"{path}."):
                return f"--set {path}"
        for axis in self._axes:
            if dotted == axis or dotted.startswith(f"{axis}.") or axis.startswith(f"{dotted}."):
                place = "/sweep/" + axis.replace("~", "~0").replace("/", "~1")
                break
        line = self._document.line_of(place)
        return f"{self._document.path}:{line}" if line else str(self._document.path)


def _sentences(where: Callable[[str], str], findings: Sequence[FieldProblem], otherwise: str) -> tuple[str, ...]:
    if not findings:
        return (f"{where('')}: {otherwise}",)
    found = []
    for finding in findings:
        place = finding.pointer.removeprefix("/experiment")
        dotted = _dotted(place)
        message = finding.message
        found.append(f"{where(place)}: {f'{dotted}: ' if dotted else ''}{message}")
    return tuple(dict.fromkeys(found))


def _dotted(place: str) -> str:
    return ".".join(part.replace("~1", "/").replace("~0", "~") for part in place.split("/")[1:])


# --- prompts ----------------------------------------------------------------------------------------------------------


def _check_builtin_prompts(plan: Plan, where: Callable[[str], str]) -> None:
    known = builtin_prompt_sets()
    wanted = dict.fromkeys(experiment.config.prompts.builtin for experiment in plan.experiments)
    problems = tuple(
        f"{where('/prompts/builtin')}: prompts.builtin: there is no built-in set of prompts {name!r}; "
        f"choose one of {', '.join(known)}"
        for name in wanted
        if name is not None and name not in known
    )
    if problems:
        raise FileError(problems)


class _PromptFiles:
    """Reads the prompt files that a campaign names, each once."""

    def __init__(self, folder: Path, where: Callable[[str], str]) -> None:
        self.sets: dict[tuple[str, str | None], PromptSet] = {}
        self._folder = folder
        self._where = where

    def replace_in(self, spec: CampaignSpec) -> CampaignSpec:
        """The specification with digests in place of files, in the base and along the sweep."""
        if "prompts.column" in spec.sweep:
            place = self._where("/sweep/prompts.column")
            raise FileError((f"{place}: prompts.column can't be swept; sweep `prompts` with a file and a column each",))
        base = dict(spec.experiment)
        column = _text(base.get("prompts"), "column")
        if "prompts" in base:
            base["prompts"] = self._resolved(base["prompts"], None)
        if isinstance(base.get("prompts"), dict) and "prompts.file" in spec.sweep:
            base["prompts"] = _without(base["prompts"], "column")
        sweep: dict[str, list[JsonValue]] = {}
        for path, values in spec.sweep.items():
            if path == "prompts.file":
                sweep["prompts.dataset"] = [
                    self._digest(value, column) if isinstance(value, str) else value for value in values
                ]
            elif path == "prompts":
                sweep[path] = [self._resolved(value, None) for value in values]
            else:
                sweep[path] = values
        return spec.model_copy(update={"experiment": base, "sweep": sweep})

    def _resolved(self, prompts: JsonValue, column: str | None) -> JsonValue:
        name = _text(prompts, "file")
        if name is None or not isinstance(prompts, dict):
            return prompts
        digest = self._digest(name, _text(prompts, "column") or column)
        return {**{key: value for key, value in prompts.items() if key not in ("file", "column")}, "dataset": digest}

    def _digest(self, name: str, column: str | None) -> str:
        if (name, column) not in self.sets:
            prompts = self._read(name, column)
            self.sets[name, column] = PromptSet(Path(name).name[:200], prompts_digest(prompts), prompts)
        return self.sets[name, column].sha256

    def _read(self, name: str, column: str | None) -> tuple[str, ...]:
        place = f"{self._where('/prompts/file')}: prompts.file"
        path = self._folder / name
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


def _text(prompts: JsonValue, key: str) -> str | None:
    value = prompts.get(key) if isinstance(prompts, dict) else None
    return value if isinstance(value, str) else None


def _without(prompts: JsonValue, key: str) -> JsonValue:
    return {name: value for name, value in prompts.items() if name != key} if isinstance(prompts, dict) else prompts
