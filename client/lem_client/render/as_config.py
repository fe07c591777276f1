"""An experiment that was run, as a campaign file that submits it again: equal hash, whatever the defaults are by then.

Every value is written out, defaults too, because a later version's defaults may be others; what is unset stays unset,
because then the engine decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ValidationError
from pydantic.types import JsonValue

from lem_client.files.yaml_dialect import as_line
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import config_hash
from lem_domain.errors import LemError
from lem_domain.wire.campaigns import CampaignView, ExperimentView
from lem_domain.wire.runs import AttemptView, RunView

Values = dict[str, JsonValue]


def document(experiment: ExperimentView, campaign: CampaignView, run: RunView | None) -> Values:
    """The campaign file's values: one run of the experiment, or as many cycles as its campaign gave it.

    Raises:
        LemError: this version of the client reads the configuration as another experiment.
    """
    values = _set_values(experiment.config)
    try:
        same = config_hash(ExperimentConfig.model_validate(values)) == experiment.config_hash
    except ValidationError:
        same = False
    if not same:
        raise LemError(
            f"this version of lemctl reads {experiment.id} as another configuration than the server does; "
            "use the version that the server has."
        )
    execution: Values = {} if run is not None else campaign.execution.model_dump(mode="json", exclude_defaults=True)
    return {"name": campaign.name, **({"execution": execution} if execution else {}), **values}


def origin(
    server: str, experiment: ExperimentView, campaign: CampaignView, run: RunView | None, attempt: AttemptView | None
) -> list[str]:
    """Where the file came from, a line each."""
    what = f"run {run.id} (cycle {run.cycle})" if run is not None else f"experiment {experiment.id}"
    lines = [
        f"The configuration of {what}, to be submitted again with `lemctl run`.",
        f"server      {server}",
        f"campaign    {campaign.name} ({campaign.id}), submitted {campaign.created_at:%Y-%m-%d %H:%M} UTC",
        f"experiment  {experiment.display_name} ({experiment.id})",
        f"hash        {experiment.config_hash}",
    ]
    lines += [f"varied      {path} = {value}" for path, value in experiment.varied.items()]
    if attempt is not None:
        lines += _measured_with(attempt)
    if experiment.config.prompts.dataset is not None:
        lines.append(
            "prompts     prompts.dataset names prompts that this server holds; elsewhere upload them first "
            "(`lemctl export … --bundle` takes them along)"
        )
    return lines


def yaml_text(values: Values, experiment: ExperimentView, comments: list[str]) -> str:
    """The file, with a comment at every value that is the default."""
    head = [f"# {line}" for line in comments]
    own = {key: value for key, value in values.items() if key not in ExperimentConfig.model_fields}
    rest = {key: value for key, value in values.items() if key in ExperimentConfig.model_fields}
    body = [*_lines(own, {}, ""), *_lines(rest, _defaults(experiment.config), "")]
    return "\n".join([*head, "", *body]) + "\n"


def _measured_with(attempt: AttemptView) -> Iterator[str]:
    if attempt.effective_config is not None:
        yield f"engine      {attempt.effective_config.engine}"
    yield f"devices     {', '.join(attempt.devices)} of worker {attempt.worker_name}"
    lem = (attempt.environment or {}).get("lem")
    if isinstance(lem, dict):
        yield f"lem         {lem.get('version')}, commit {lem.get('commit') or 'not known'}"


def _set_values(model: BaseModel) -> Values:
    """Every value but what is unset; a null that takes the place of a default is kept."""
    found: Values = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value is None and field.get_default(call_default_factory=True) is None:
            continue
        if isinstance(value, BaseModel):
            inner = _set_values(value)
            if inner:
                found[name] = inner
        else:
            found[name] = model.model_dump(mode="json", include={name})[name]
    return found


def _defaults(model: BaseModel) -> Values:
    """The same shape with what each value would be, were it left out; a value that must be given has none here."""
    found: Values = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found[name] = _defaults(value)
        elif not field.is_required() and not field.exclude:
            default = field.get_default(call_default_factory=True)
            found[name] = type(model).model_construct(**{name: default}).model_dump(mode="json", include={name})[name]
    return found


def _lines(values: Mapping[str, JsonValue], defaults: Mapping[str, JsonValue], indent: str) -> Iterator[str]:
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, dict) and value and isinstance(default, dict | None):
            yield f"{indent}{as_line(key)}:"
            yield from _lines(value, default or {}, indent + "  ")
            continue
        mark = "  # the default" if key in defaults and default == value else ""
        yield f"{indent}{as_line(key)}: {as_line(value)}{mark}"
