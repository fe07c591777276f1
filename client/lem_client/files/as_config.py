"""Writes an experiment as a campaign file that submits it again with the same hash.

Defaults are written too, because a later version may have others. Unset values remain unset: the engine decides them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import ValidationError
from pydantic.types import JsonValue

from lem_client.files.yaml_dialect import as_line
from lem_domain.config.documents import flattened, with_value
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import config_hash
from lem_domain.config.keys import keys_of
from lem_domain.errors import LemError
from lem_domain.wire.campaigns import CampaignView, ExperimentView
from lem_domain.wire.runs import AttemptView, RunView

Values = dict[str, JsonValue]

_DEFAULTS: Final = {key.path: key.default for key in keys_of(ExperimentConfig)}


def document(experiment: ExperimentView, campaign: CampaignView, run: RunView | None) -> Values:
    """Return the campaign file's values: one cycle for a run, else the campaign's number of cycles.

    Raises:
        LemError: this client's version gives the configuration another hash.
    """
    values = _set_values(experiment.config)
    try:
        same = config_hash(ExperimentConfig.model_validate(values)) == experiment.config_hash
    except ValidationError:
        same = False
    if not same:
        raise LemError(
            f"this version of lemctl gives {experiment.id} another configuration hash than the server; "
            "use the server's version."
        )
    execution: Values = {} if run is not None else campaign.execution.model_dump(mode="json", exclude_defaults=True)
    return {"name": campaign.name, **({"execution": execution} if execution else {}), **values}


def origin_lines(
    server: str, experiment: ExperimentView, campaign: CampaignView, run: RunView | None, attempt: AttemptView | None
) -> list[str]:
    """Return the comment lines at the top: origin, engine and devices."""
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
        lines += _apparatus(attempt)
    if experiment.config.prompts.dataset is not None:
        lines.append(
            "prompts     prompts.dataset names prompts on this server; upload them to another server first "
            "(`lemctl export … --bundle` includes them)"
        )
    return lines


def yaml_text(values: Values, comments: list[str]) -> str:
    """Return the file's text, with a comment at every default."""
    head = [f"# {line}" for line in comments]
    return "\n".join([*head, "", *_lines(values)]) + "\n"


def _apparatus(attempt: AttemptView) -> Iterator[str]:
    if attempt.effective_config is not None:
        yield f"engine      {attempt.effective_config.engine}"
    yield f"devices     {', '.join(attempt.devices)} of worker {attempt.worker_name}"
    lem = (attempt.environment or {}).get("lem")
    if isinstance(lem, dict):
        yield f"lem         {lem.get('version')}, commit {lem.get('commit') or 'not known'}"


def _set_values(config: ExperimentConfig) -> Values:
    """Return every value that is set; a null counts as set where the default is not null."""
    found: Values = {}
    for path, value in flattened(config.model_dump(mode="json")):
        if value is not None or _DEFAULTS[path] is not None:
            found = with_value(found, path, value)
    return found


def _lines(values: Mapping[str, JsonValue], indent: str = "", section: str = "") -> Iterator[str]:
    for key, value in values.items():
        path = f"{section}{key}"
        if isinstance(value, dict) and value:
            yield f"{indent}{as_line(key)}:"
            yield from _lines(value, indent + "  ", f"{path}.")
            continue
        mark = "  # the default" if path in _DEFAULTS and _DEFAULTS[path] == value else ""
        yield f"{indent}{as_line(key)}: {as_line(value)}{mark}"
