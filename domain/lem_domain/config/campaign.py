"""A campaign as its user writes it: a base experiment, what is varied, how often and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from pydantic.types import JsonValue

from lem_domain.config.execution import ExecutionConfig
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.model_base import ConfigModel, unit
from lem_domain.config.provenance import Origin
from lem_domain.errors import ConfigurationError, FieldProblem

__all__ = ["MAX_RUNS_PER_CAMPAIGN", "CampaignSpec", "ExecutionConfig", "campaign_from_document"]

MAX_RUNS_PER_CAMPAIGN = 100_000


class CampaignSpec(ConfigModel):
    """What is submitted. The base may be incomplete: it is checked after each combination of the sweep is put in."""

    name: str = Field(min_length=1, max_length=200, description="Shown in every list.")
    experiment: dict[str, JsonValue] = Field(description="The base: keys of one experiment (see ExperimentConfig).")
    sweep: dict[str, list[JsonValue]] = Field(
        default_factory=dict,
        description="Dotted path to the values it takes; several paths give every combination. `zip` lists groups of "
        "paths that change together, `include` further combinations, `exclude` those to leave out. With several "
        "backends, a path of one of them is varied where it is the backend.",
    )
    experiments: list[dict[str, JsonValue]] = Field(
        default_factory=list,
        max_length=10_000,
        description="Experiments that differ from the base by the keys of each entry, which may have a `name`; the "
        "sweep applies to every one of them. Without any, the base is the only one.",
    )
    on_refused: Literal["stop", "skip"] = Field(
        default="stop",
        description="`stop`: one combination that is no experiment refuses the campaign; `skip`: the others run.",
    )
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig, description="Cycles, order, gaps, placement.")
    priority: int = Field(
        default=0, ge=-100, le=100, description="Higher is claimed first.", json_schema_extra=unit("1")
    )
    metadata: dict[str, JsonValue] = Field(
        default_factory=dict,
        max_length=64,
        description="Anything that is to be kept with the campaign and shown with it; not part of any hash.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        max_length=64,
        description="To find the campaign by (`lemctl list --label KEY=VALUE`); not part of any hash.",
    )
    provenance: dict[str, Origin] = Field(
        default_factory=dict,
        max_length=1000,
        description="Where the base's values were set, by dotted path, and the axes (`sweep.` before their path); "
        "`lemctl` fills it in.",
    )


CAMPAIGN_KEYS = frozenset(CampaignSpec.model_fields) - {"experiment", "provenance"}
"""What may stand in a campaign file beside the keys of an experiment."""


def campaign_from_document(document: Mapping[str, JsonValue], *, default_name: str) -> CampaignSpec:
    """Split a file's top level into the campaign's own keys and those of its base experiment.

    Raises:
        ConfigurationError: a key is unknown (the nearest known one is named) or a campaign key has a wrong value.
    """
    from lem_domain.config import validation  # noqa: PLC0415 - cycle of siblings

    known = CAMPAIGN_KEYS | set(ExperimentConfig.model_fields)
    problems = validation.bounded(
        FieldProblem(pointer=validation.pointer((key,)), message=validation.unknown_key_message(str(key), known))
        for key in document
        if key not in known
    )
    if problems:
        raise ConfigurationError(problems[0].message, problems)
    base = {key: value for key, value in document.items() if key not in CAMPAIGN_KEYS}
    own = {key: value for key, value in document.items() if key in CAMPAIGN_KEYS}
    return validation.model_or_problems(CampaignSpec, {"name": default_name, **own, "experiment": base})
