"""A campaign as its user writes it: a base experiment, what is varied, how often and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal

from pydantic import Field, ValidationError
from pydantic.types import JsonValue

from lem_domain.config.documents import pointer
from lem_domain.config.execution import ExecutionConfig
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.keys import unknown_key_message
from lem_domain.config.model_base import ConfigModel, key
from lem_domain.config.provenance import Origin
from lem_domain.config.validation import BETWEEN_KEYS, problems_of, refused
from lem_domain.errors import FieldProblem

MAX_RUNS_PER_CAMPAIGN: Final = 100_000

NAME: Final = "name"
"""The key of an entry of `experiments` that is its display name, not a key of the experiment."""


class CampaignSpec(ConfigModel):
    """A submitted campaign. The base may be incomplete: each combination of the sweep is validated, not the base."""

    name: str = Field(min_length=1, max_length=200, description="Shown in every list.")
    experiment: dict[str, JsonValue] = Field(description="The base: keys of one experiment (see ExperimentConfig).")
    sweep: dict[str, list[JsonValue]] = Field(
        default_factory=dict,
        description="Dotted path to its values; several paths give every combination. `zip` lists groups of "
        "paths that change together, `include` further combinations, `exclude` those to leave out. With several "
        "backends, a path in the section of one backend is varied for that backend only.",
    )
    experiments: list[dict[str, JsonValue]] = Field(
        default_factory=list,
        max_length=10_000,
        description="Experiments that differ from the base by the keys of each entry, which may have a `name`; the "
        "sweep applies to every one of them. Without any, the base is the only one.",
    )
    on_refused: Literal["stop", "skip"] = key(
        "stop", "`stop`: one invalid combination refuses the campaign; `skip`: the other combinations run."
    )
    execution: ExecutionConfig = Field(default_factory=ExecutionConfig, description="Cycles, order, gaps, placement.")
    priority: int = key(0, "Higher is claimed first.", ge=-100, le=100, unit="1")
    metadata: dict[str, JsonValue] = Field(
        default_factory=dict,
        max_length=64,
        description="Any values to keep and show with the campaign; not part of any hash.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        max_length=64,
        description="Labels to find the campaign by (`lemctl list --label KEY=VALUE`); not part of any hash.",
    )
    provenance: dict[str, Origin] = Field(
        default_factory=dict,
        max_length=1000,
        description="Where the base's values were set, by dotted path, and the axes (`sweep.` before their path); "
        "`lemctl` fills it in.",
    )


CAMPAIGN_KEYS = frozenset(CampaignSpec.model_fields) - {"experiment", "provenance"}
"""Top-level keys of a campaign file that are not keys of the experiment."""


def campaign_from_document(document: Mapping[str, JsonValue], *, default_name: str) -> CampaignSpec:
    """Split a file's top level into the campaign's own keys and those of its base experiment.

    Raises:
        ConfigurationError: a key is unknown (the most similar known one is named) or a campaign key has an invalid
            value; together with the problems of single keys of its experiments.
    """
    known = CAMPAIGN_KEYS | set(ExperimentConfig.model_fields)
    base = {key: value for key, value in document.items() if key in ExperimentConfig.model_fields}
    own = {key: value for key, value in document.items() if key in CAMPAIGN_KEYS}

    def problems() -> Iterator[FieldProblem]:
        for given in document:
            if given not in known:
                yield FieldProblem(pointer=pointer((given,)), message=unknown_key_message(str(given), known))
        if invalid is not None:
            yield from problems_of(CampaignSpec, invalid)
        yield from key_problems(base, own.get("experiments"))

    invalid: ValidationError | None = None
    try:
        spec = CampaignSpec.model_validate({"name": default_name, **own, "experiment": base})
    except ValidationError as error:
        invalid = error
    if invalid is not None or len(base) + len(own) < len(document):
        raise refused(problems())
    return spec


def key_problems(base: Mapping[str, JsonValue], entries: JsonValue) -> Iterator[FieldProblem]:
    """Problems of single keys of the base and of listed experiments, whatever the sweep makes of them.

    Rules between keys and missing keys are left out, since the sweep may satisfy them.
    """
    parts = [("", dict(base))]
    if isinstance(entries, list):
        parts += [
            (pointer(("experiments", index)), {key: value for key, value in entry.items() if key != NAME})
            for index, entry in enumerate(entries)
            if isinstance(entry, dict)
        ]
    for prefix, values in parts:
        try:
            ExperimentConfig.model_validate(values)
        except ValidationError as error:
            for problem in problems_of(ExperimentConfig, error, without=BETWEEN_KEYS):
                yield problem.model_copy(update={"pointer": prefix + problem.pointer})
