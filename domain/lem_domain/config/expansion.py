"""From a campaign to its experiments and runs: a pure function, used by the client's preview and by the server's queue.

Each combination is generated, validated and dropped; of a distinct one only its differences from the defaults are kept,
so that 100,000 of them need little memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from pydantic.types import JsonValue

from lem_domain.backends.registry import BackendName
from lem_domain.config.campaign import MAX_RUNS_PER_CAMPAIGN, CampaignSpec, key_problems
from lem_domain.config.combinations import Combination, Combinations
from lem_domain.config.devices import DevicesConfig
from lem_domain.config.documents import pointer, value_at
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import hash_of_changes
from lem_domain.config.ordering import PlannedRun, order_runs
from lem_domain.config.validation import model_or_problems, refused
from lem_domain.errors import ConfigurationError, FieldProblem

_DIGEST: Final = re.compile("[0-9a-f]{64}")
SHOWN_DIGITS: Final = 12
MAX_LISTED: Final = 100
"""Refused and merged combinations that are listed; all of them are counted."""


class Needs(NamedTuple):
    """The values of an experiment that scheduling and the check of prompts read; equal ones share one object."""

    backend: BackendName
    devices: DevicesConfig
    window_s: float
    """The shortest measured window."""
    builtin: str | None
    """Name of a built-in prompt set."""
    prompts_file: str | None
    dataset: str | None
    trace_file: str | None
    trace: str | None


@dataclass(frozen=True, slots=True)
class PlannedExperiment:
    """One distinct configuration and what distinguishes it within its campaign."""

    document: str
    """The configuration without default values, as JSON."""
    config_hash: str
    display_name: str
    varied: dict[str, JsonValue]
    needs: Needs

    @property
    def config(self) -> ExperimentConfig:
        """The whole configuration, parsed again at every access: kept parsed, it would take 9 kB."""
        return ExperimentConfig.model_validate_json(self.document)


class Refused(NamedTuple):
    """An invalid combination and its problems."""

    display_name: str
    varied: dict[str, JsonValue]
    problems: tuple[FieldProblem, ...]


class Merged(NamedTuple):
    """A combination that resolves to the same experiment as an earlier one."""

    display_name: str
    same_as: str
    """Display name of the earlier one."""


class Plan(NamedTuple):
    """The experiments and runs of a campaign."""

    experiments: tuple[PlannedExperiment, ...]
    runs: tuple[PlannedRun, ...]
    duplicates: int = 0
    """Number of merged combinations."""
    merged: tuple[Merged, ...] = ()
    """The first `MAX_LISTED` of them."""
    refused: int = 0
    """Number of invalid combinations."""
    refusals: tuple[Refused, ...] = ()
    """The first `MAX_LISTED` of them."""


def expand(spec: CampaignSpec) -> Plan:
    """Every experiment and run of a campaign that may be queued.

    Raises:
        ConfigurationError: with every problem of every combination, unless `on_refused` skips those; if nothing is
            left; or if there are more than 100,000 runs.
    """
    plan = preview(spec)
    if plan.refused and spec.on_refused != "skip":
        raise refused(_refusal_problems(plan))
    return plan


def preview(spec: CampaignSpec) -> Plan:
    """The same plan as `expand`, but refused combinations are only listed, whatever `on_refused` says.

    Raises:
        ConfigurationError: no combination is valid, or there are more than 100,000 runs.
    """
    try:
        combinations = Combinations(spec)
    except ConfigurationError as error:
        raise refused((*error.field_problems, *key_problems(spec.experiment, list(spec.experiments)))) from None
    # Excluded combinations count too: each has to be generated.
    if (count := combinations.count() * spec.execution.cycles) > MAX_RUNS_PER_CAMPAIGN:
        raise ConfigurationError(
            f"the campaign has {count} runs; the limit is {MAX_RUNS_PER_CAMPAIGN}, so split it or drop values"
        )
    builder = _PlanBuilder(spec)
    for combination in combinations:
        builder.add(combination)
    plan = builder.plan()
    if unmatched := combinations.unmatched():
        message = "this excludes no combination; correct its values or remove it"
        problems = [FieldProblem(pointer=pointer(("sweep", "exclude", index)), message=message) for index in unmatched]
        raise refused([*problems, *(_refusal_problems(plan) if spec.on_refused == "stop" else ())])
    if not plan.experiments:
        if plan.refused:
            raise refused(_refusal_problems(plan))
        raise ConfigurationError("every combination of the sweep is excluded; exclude fewer")
    return plan


def _refusal_problems(plan: Plan) -> Iterator[FieldProblem]:
    return (problem for one in plan.refusals for problem in one.problems)


class _PlanBuilder:
    """Validates combinations and collects distinct experiments, merged and refused combinations."""

    def __init__(self, spec: CampaignSpec) -> None:
        self._spec = spec
        self._experiments: dict[str, PlannedExperiment] = {}
        self._merged: list[Merged] = []
        self._refusals: list[Refused] = []
        self._needs: dict[Needs, Needs] = {}
        self._duplicates = self._refused = 0

    def add(self, combination: Combination) -> None:
        name = _display_name(self._spec.name, combination)
        try:
            config = model_or_problems(ExperimentConfig, combination.document)
        except ConfigurationError as error:
            self._refused += 1
            if len(self._refusals) < MAX_LISTED:
                located = tuple(_located(problem, combination, self._spec) for problem in error.field_problems)
                self._refusals.append(Refused(name, combination.varied, located))
            return
        changed = config.model_dump(mode="json", exclude_defaults=True)
        digest = hash_of_changes(changed)
        same = self._experiments.get(digest)
        if same is None:
            needs = _needs(config)
            needs = self._needs.setdefault(needs, needs)
            self._experiments[digest] = PlannedExperiment(json.dumps(changed), digest, name, combination.varied, needs)
            return
        self._duplicates += 1
        if len(self._merged) < MAX_LISTED:
            self._merged.append(Merged(name, same.display_name))

    def plan(self) -> Plan:
        experiments = tuple(self._experiments.values())
        execution = self._spec.execution
        return Plan(
            experiments,
            order_runs(len(experiments), execution.cycles, execution.order, execution.seed),
            self._duplicates,
            tuple(self._merged),
            self._refused,
            tuple(self._refusals),
        )


def _needs(config: ExperimentConfig) -> Needs:
    prompts, traffic = config.prompts, config.traffic
    return Needs(
        backend=config.backend,
        devices=config.devices,
        window_s=config.window.min_duration_s,
        builtin=prompts.builtin,
        prompts_file=prompts.file,
        dataset=prompts.dataset,
        trace_file=traffic.trace_file,
        trace=traffic.trace,
    )


def _located(problem: FieldProblem, combination: Combination, spec: CampaignSpec) -> FieldProblem:
    """The problem at the entry of `experiments` that set the value, if one did."""
    parts = problem.pointer.split("/")[1:]
    if combination.entry is None or not parts or value_at(spec.experiments[combination.entry], parts) is None:
        return problem
    return FieldProblem(pointer=f"/experiments/{combination.entry}{problem.pointer}", message=problem.message)


def _display_name(name: str, combination: Combination) -> str:
    """The entry's name and the swept values; without a name, everything that distinguishes it."""
    swept = combination.varied
    if combination.name is not None:
        swept = {path: value for path, value in swept.items() if path not in combination.own}
    parts = [part for part in (combination.name, _shown(swept)) if part]
    return (", ".join(parts) or name)[:500]


def _shown(varied: Mapping[str, JsonValue]) -> str:
    """`max_tokens=8, seed=1`; the whole path if two paths have the same last part."""
    ends = [path.rpartition(".")[2] for path in varied]
    return ", ".join(
        f"{end if ends.count(end) == 1 else path}={_shown_value(value)}"
        for end, (path, value) in zip(ends, varied.items(), strict=True)
    )


def _shown_value(value: JsonValue) -> str:
    """As in a file; of a digest the first digits."""
    if isinstance(value, str):
        return value[:SHOWN_DIGITS] if _DIGEST.fullmatch(value) else value
    return json.dumps(value, ensure_ascii=False)
