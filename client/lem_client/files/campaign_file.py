"""From a campaign file to what is submitted: read, overridden, expanded for early errors, its prompt files read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from pydantic.types import JsonValue

from lem_client.errors import FileError, InvalidRequest
from lem_client.files.layered_values import Layered
from lem_client.files.layers import read_layers
from lem_client.files.named_files import NamedFiles, PromptSet
from lem_client.files.prompt_files import KINDS
from lem_domain.config.campaign import CampaignSpec, campaign_from_document
from lem_domain.config.combinations import flattened
from lem_domain.config.decoding_presets import DECODING_PRESETS
from lem_domain.config.expansion import Plan, preview, refusal
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.file_problems import problems_of_document
from lem_domain.config.provenance import Origin
from lem_domain.config.sweep import RESERVED, overlaps
from lem_domain.config.validation import pointer
from lem_domain.errors import ConfigurationError, FieldProblem
from lem_domain.prompt_sets import builtin_prompt_sets
from lem_domain.wire.campaigns import CampaignPlan


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
        return _sentences(self.where, error.findings) or (f"{self.where('')}: {error}",)

    def refusals(self, plan: CampaignPlan) -> tuple[tuple[str, ...], ...]:
        """Of every combination that a plan refuses, why, with the place in the file."""
        return tuple(_sentences(self.where, one.problems) for one in plan.refusals)


def load_campaign_file(
    path: Path | str, *, name: str | None = None, overrides: Sequence[str] = (), refused_too: bool = False
) -> CampaignFile:
    """Read a campaign file. `overrides` are `dotted.path=value`, which go before the file.

    With `refused_too`, combinations that are no experiments are in the plan and no error, as long as others are left.

    Raises:
        FileError: with every problem, each with its file and line.
    """
    path = Path(path)
    layers = read_layers(path, overrides)
    if name is not None:
        layers.values["name"] = name
    where = _Where(path, layers)
    try:
        written = campaign_from_document(layers.values, default_name=path.stem)
        plan = _planned(written, refused_too=refused_too)
    except ConfigurationError:
        raise FileError(_all_problems(layers.values, path.stem, where)) from None
    problems = _unknown_prompts(plan, where)
    spec, sets = written, list[PromptSet]()
    for files in (NamedFiles(kind, where) for kind in KINDS):
        spec = files.replace_in(spec)
        problems += files.problems
        sets += files.sets.values()
    if problems:
        raise FileError(tuple(problems))
    if sets:
        plan = _planned(spec, refused_too=refused_too)
    return CampaignFile(spec.model_copy(update={"provenance": _provenance(written, layers)}), plan, tuple(sets), where)


def _planned(spec: CampaignSpec, *, refused_too: bool) -> Plan:
    plan = preview(spec)
    if plan.refused and spec.on_refused == "stop" and not refused_too:
        raise refusal(plan)
    return plan


def _all_problems(values: Mapping[str, JsonValue], default_name: str, where: _Where) -> tuple[str, ...]:
    """Also of files that it names, as far as it can be seen which these are."""
    base = {key: value for key, value in values.items() if key in ExperimentConfig.model_fields}
    named = CampaignSpec(name="campaign", experiment=base)
    with contextlib.suppress(ValidationError):
        varied = {key: values[key] for key in ("sweep", "experiments") if key in values}
        named = CampaignSpec.model_validate({"name": "campaign", "experiment": base, **varied})
    found = list(_sentences(where, problems_of_document(values, default_name=default_name)))
    for kind in KINDS:
        files = NamedFiles(kind, where)
        files.replace_in(named)
        found += files.problems
    return tuple(found)


def _provenance(spec: CampaignSpec, layers: Layered) -> dict[str, Origin]:
    """Where each value of the base was set and each axis stands. What a text or a name stands for was set where it is,
    and so was a digest where its file is named."""
    found: dict[str, Origin] = {}
    for path, value in flattened(spec.experiment):
        origin = layers.origin(pointer(path.split(".")))
        if origin is not None:
            found = dict.fromkeys(_stands_for(path, value), origin) | found | {path: origin}
    axes = [(f"sweep.{axis}", place) for axis, place in _axes(spec.sweep)]
    for name, place in (*axes, ("experiments", "/experiments")):
        origin = layers.origin(place)
        if origin is not None:
            found[name] = origin
    digests = {f"{kind.section}.{kind.digest}": pointer((kind.section, kind.file)) for kind in KINDS}
    return found | {path: layers.origins[place] for path, place in digests.items() if place in layers.origins}


def _stands_for(path: str, value: JsonValue) -> tuple[str, ...]:
    if path == "model" and isinstance(value, str):
        return ("model.id",)
    if path in ("decoding", "decoding.preset") and isinstance(value, str):
        return tuple(f"decoding.{key}" for key in DECODING_PRESETS.get(value, ()))
    return ()


# --- problems ---------------------------------------------------------------------------------------------------------


class _Where:
    """Where a value of the specification was written."""

    def __init__(self, path: Path, layers: Layered) -> None:
        self._path = path
        self._layers = layers
        sweep = layers.values.get("sweep")
        self._axes = tuple(_axes(sweep)) if isinstance(sweep, dict) else ()

    def __call__(self, place: str) -> str:
        dotted = _dotted(place)
        for axis, swept_at in self._axes:
            if dotted and overlaps(dotted, axis):
                place = swept_at
                break
        origin = self._layers.origin(place)
        return str(self._path) if origin is None else origin.detail

    def folder(self, place: str) -> Path:
        """What a path that is written there is relative to."""
        return self._layers.folder(place) or self._path.parent


def _axes(sweep: Mapping[str, JsonValue]) -> Iterator[tuple[str, str]]:
    """Every swept path with the pointer to where it is."""
    for path, values in sweep.items():
        if path not in RESERVED:
            yield path, pointer(("sweep", path))
        elif path == "zip" and isinstance(values, list):
            for index, group in enumerate(values):
                if isinstance(group, dict):
                    yield from ((one, pointer(("sweep", "zip", index, one))) for one in group)


def _sentences(where: Callable[[str], str], findings: Sequence[FieldProblem]) -> tuple[str, ...]:
    found = []
    for finding in findings:
        place = finding.pointer
        if place == "/experiment" or place.startswith("/experiment/"):  # and not what is in /experiments
            place = place.removeprefix("/experiment")
        dotted = _dotted(place)
        message = finding.message
        shown = message if not dotted or message.startswith(dotted) else f"{dotted}: {message}"
        found.append(f"{where(place)}: {shown}")
    return tuple(dict.fromkeys(found))


def _dotted(place: str) -> str:
    return ".".join(part.replace("~1", "/").replace("~0", "~") for part in place.split("/")[1:])


# --- prompts ----------------------------------------------------------------------------------------------------------


def _unknown_prompts(plan: Plan, where: Callable[[str], str]) -> list[str]:
    known = builtin_prompt_sets()
    wanted = dict.fromkeys(experiment.needs.builtin for experiment in plan.experiments)
    return [
        f"{where('/prompts/builtin')}: prompts.builtin: there is no built-in set of prompts {name!r}; "
        f"choose one of {', '.join(known)}"
        for name in wanted
        if name is not None and name not in known
    ]
