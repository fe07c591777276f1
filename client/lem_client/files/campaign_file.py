"""From a campaign file to what is submitted: read and merge, replace named files, validate, expand; each step once.

The server expands the submitted campaign again, because it must not trust its clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic.types import JsonValue

from lem_client.errors import FileError, InvalidRequest
from lem_client.files.layer_reader import read_layers
from lem_client.files.layers import Layer
from lem_client.files.named_files import PromptSet, replace_named_files
from lem_domain.config.campaign import CampaignSpec, campaign_from_document
from lem_domain.config.documents import flattened, overlaps, pointer
from lem_domain.config.expansion import Plan, expand, preview
from lem_domain.config.presets import DECODING_PRESETS
from lem_domain.config.provenance import Origin
from lem_domain.config.sweep import RESERVED, ZIP
from lem_domain.errors import ConfigurationError, FieldProblem
from lem_domain.prompt_sets import builtin_prompt_sets
from lem_domain.wire.campaigns import CampaignPlan


@dataclass(frozen=True)
class CampaignFile:
    """A campaign file without any error that is visible on the client."""

    spec: CampaignSpec
    """The submitted campaign, with digests instead of file names."""
    plan: Plan
    prompt_sets: tuple[PromptSet, ...]
    where: Callable[[str], str]
    """From a JSON pointer into the spec to `file:line`, or to the option that set the value."""

    def problems(self, error: InvalidRequest) -> tuple[str, ...]:
        """The server's problems as sentences with the location in the file."""
        return _sentences(self.where, error.field_problems) or (f"{self.where('')}: {error}",)

    def refusals(self, plan: CampaignPlan) -> tuple[tuple[str, ...], ...]:
        """For every combination that a plan refuses its problems, with the location in the file."""
        return tuple(_sentences(self.where, one.problems) for one in plan.refusals)


def load_campaign_file(
    path: Path | str, *, name: str | None = None, overrides: Sequence[str] = (), refused_too: bool = False
) -> CampaignFile:
    """Read a campaign file. `overrides` are `dotted.path=value` and take precedence over the file.

    With `refused_too`, invalid combinations are listed in the plan instead of raised, if at least one is valid.

    Raises:
        FileError: with every problem, each with its file and line.
    """
    path = Path(path)
    layer = read_layers(path, overrides)
    layer, prompt_sets, found = replace_named_files(layer)
    where = _finder(path, layer)
    document = layer.values if name is None else {**layer.values, "name": name}
    try:
        spec = campaign_from_document(document, default_name=path.stem)
        plan = preview(spec) if refused_too else expand(spec)
        unknown = tuple(_unknown_prompts(plan))
    except ConfigurationError as error:
        whole = FieldProblem(pointer="", message=str(error))
        raise FileError((*_sentences(where, error.field_problems or (whole,)), *found)) from None
    if unknown or found:
        raise FileError((*_sentences(where, unknown), *found))
    return CampaignFile(spec.model_copy(update={"provenance": _provenance(spec, layer)}), plan, prompt_sets, where)


def _unknown_prompts(plan: Plan) -> Iterator[FieldProblem]:
    known = builtin_prompt_sets()
    for name in dict.fromkeys(experiment.needs.builtin for experiment in plan.experiments):
        if name is not None and name not in known:
            message = f"there is no built-in prompt set {name!r}; choose one of {', '.join(known)}"
            yield FieldProblem(pointer="/prompts/builtin", message=message)


def _provenance(spec: CampaignSpec, layer: Layer) -> dict[str, Origin]:
    """The origin of every value of the base and of every axis, by the paths that `resolved_values` looks up."""
    found: dict[str, Origin] = {}
    for path, value in flattened(spec.experiment):
        setting = layer.setting(pointer(path.split(".")))
        if setting is not None:
            # A written value takes precedence over one that a text or a preset abbreviates.
            found = dict.fromkeys(_abbreviated(path, value), setting.origin) | found | {path: setting.origin}
    axes = [(f"sweep.{axis}", at) for axis, at in _axes(spec.sweep)]
    for path, at in (*axes, ("experiments", "/experiments")):
        setting = layer.setting(at)
        if setting is not None:
            found[path] = setting.origin
    return found


def _abbreviated(path: str, value: JsonValue) -> tuple[str, ...]:
    """The paths whose values the text at a path abbreviates."""
    if path == "model" and isinstance(value, str):
        return ("model.id",)
    if path in ("decoding", "decoding.preset") and isinstance(value, str):
        return tuple(f"decoding.{key}" for key in DECODING_PRESETS.get(value, ()))
    return ()


def _finder(path: Path, layer: Layer) -> Callable[[str], str]:
    """From a JSON pointer to the `file:line` or option that set the value in the submitted campaign."""
    sweep = layer.values.get("sweep")
    swept = tuple(_axes(sweep)) if isinstance(sweep, dict) else ()

    def where(at: str) -> str:
        dotted = _dotted(at)
        # The value of a swept path comes from its axis, whatever the base has.
        axes = (axis_at for axis, axis_at in swept if dotted and overlaps(dotted, axis))
        return layer.where(next(axes, at)) or str(path)

    return where


def _axes(sweep: Mapping[str, JsonValue] | Mapping[str, list[JsonValue]]) -> Iterator[tuple[str, str]]:
    """Every swept path with the JSON pointer of its values."""
    for path, values in sweep.items():
        if path not in RESERVED:
            yield path, pointer(("sweep", path))
        elif path == ZIP and isinstance(values, list):
            for index, group in enumerate(values):
                if isinstance(group, dict):
                    yield from ((one, pointer(("sweep", ZIP, index, one))) for one in group)


def _sentences(where: Callable[[str], str], problems: Iterable[FieldProblem]) -> tuple[str, ...]:
    """`file:line: dotted.path: message` for each problem; the path only if the message does not begin with it."""
    found = []
    for problem in problems:
        # The server's pointers have the base in `/experiment`; a file has its keys at the top level.
        at = problem.pointer
        at = at.removeprefix("/experiment") if at == "/experiment" or at.startswith("/experiment/") else at
        dotted, message = _dotted(at), problem.message
        shown = message if not dotted or message.startswith(dotted) else f"{dotted}: {message}"
        found.append(f"{where(at)}: {shown}")
    return tuple(dict.fromkeys(found))


def _dotted(at: str) -> str:
    return ".".join(part.replace("~1", "/").replace("~0", "~") for part in at.split("/")[1:])
