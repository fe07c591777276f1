"""From a campaign to its experiments and runs: a pure function, the same for the preview and for the queue."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic.types import JsonValue

from lem_domain.config.campaign import MAX_RUNS_PER_CAMPAIGN, CampaignSpec
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import config_hash
from lem_domain.config.validation import model_or_problems
from lem_domain.errors import ConfigurationError, FieldProblem


class PlannedExperiment(NamedTuple):
    """One distinct configuration and what distinguishes it within its campaign."""

    config: ExperimentConfig
    config_hash: str
    display_name: str
    varied: dict[str, JsonValue]


class PlannedRun(NamedTuple):
    """One execution: which experiment (index), which cycle (from 1), which place in the order (from 0)."""

    experiment: int
    cycle: int
    position: int


class Plan(NamedTuple):
    """What would be queued."""

    experiments: tuple[PlannedExperiment, ...]
    runs: tuple[PlannedRun, ...]
    duplicates: int
    """Combinations that resolved to an experiment that was there already."""


def expand(spec: CampaignSpec) -> Plan:
    """Every experiment and run of a campaign.

    Raises:
        ConfigurationError: with every problem of every combination, or when there are more than 100,000 runs.
    """
    empty = [path for path, values in spec.sweep.items() if not values]
    if empty:
        raise ConfigurationError(f"sweep.{empty[0]} has no values; give at least one or remove it")
    combinations = math.prod(len(values) for values in spec.sweep.values())
    if combinations * spec.execution.cycles > MAX_RUNS_PER_CAMPAIGN:
        raise ConfigurationError(
            f"the campaign has {combinations * spec.execution.cycles} runs; the limit is {MAX_RUNS_PER_CAMPAIGN}, "
            "so split it or drop values"
        )
    experiments: dict[str, PlannedExperiment] = {}
    problems: dict[tuple[str, str], FieldProblem] = {}
    duplicates = 0
    for varied in _combinations(spec.sweep):
        try:
            config = model_or_problems(ExperimentConfig, _with_values(spec.experiment, varied))
        except ConfigurationError as error:
            found = error.findings or (FieldProblem(pointer="", message=str(error)),)
            problems.update({(one.pointer, one.message): one for one in found})
            continue
        digest = config_hash(config)
        if digest in experiments:
            duplicates += 1
        else:
            experiments[digest] = PlannedExperiment(config, digest, _display_name(spec.name, varied), varied)
    if problems:
        listed = tuple(problems.values())
        place = listed[0].pointer.lstrip("/").replace("/", ".")
        raise ConfigurationError(f"{place}: {listed[0].message}" if place else listed[0].message, listed)
    ordered = tuple(experiments.values())
    return Plan(ordered, order_runs(len(ordered), spec.execution.cycles, spec.execution.order), duplicates)


def order_runs(experiments: int, cycles: int, order: str) -> tuple[PlannedRun, ...]:
    """Every experiment once per cycle, in the chosen order."""
    pairs: Iterator[tuple[int, int]]
    if order == "grouped":
        pairs = ((experiment, cycle) for experiment in range(experiments) for cycle in range(1, cycles + 1))
    else:
        pairs = ((experiment, cycle) for cycle in range(1, cycles + 1) for experiment in range(experiments))
    return tuple(PlannedRun(experiment, cycle, position) for position, (experiment, cycle) in enumerate(pairs))


def _combinations(sweep: Mapping[str, Sequence[JsonValue]]) -> Iterator[dict[str, JsonValue]]:
    paths = list(sweep)
    for values in itertools.product(*sweep.values()):
        yield dict(zip(paths, values, strict=True))


def _with_values(base: Mapping[str, JsonValue], varied: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    result: dict[str, JsonValue] = dict(base)
    for path, value in varied.items():
        _set_path(result, path.split("."), value, path)
    return result


def _set_path(target: dict[str, JsonValue], parts: list[str], value: JsonValue, path: str) -> None:
    """Set a dotted path, copying every map on the way so that the base stays as it was."""
    head, *rest = parts
    if not rest:
        target[head] = value
        return
    inner = target.get(head)
    if inner is None:
        inner = {}
    elif head == "model" and isinstance(inner, str):
        inner = {"id": inner}
    if not isinstance(inner, dict):
        raise ConfigurationError(f"sweep path {path!r} goes through {head!r}, which is a plain value; correct the path")
    copy = dict(inner)
    target[head] = copy
    _set_path(copy, rest, value, path)


def _display_name(name: str, varied: Mapping[str, JsonValue]) -> str:
    if not varied:
        return name
    return ", ".join(f"{path.rpartition('.')[2]}={value}" for path, value in varied.items())
