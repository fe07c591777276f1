"""From a campaign to its experiments and runs: a pure function, the same for the preview and for the queue.

Combinations are made, checked and forgotten one after another; of each distinct one only what differs from the
defaults is kept, so that 100,000 of them take little memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from pydantic.types import JsonValue

from lem_domain.backends.registry import BackendName
from lem_domain.config.campaign import MAX_RUNS_PER_CAMPAIGN, CampaignSpec
from lem_domain.config.combinations import NAME, Combination, Combinations, value_at
from lem_domain.config.experiment import DevicesConfig, ExperimentConfig
from lem_domain.config.hashing import hash_of_changes
from lem_domain.config.ordering import PlannedRun, order_runs
from lem_domain.config.validation import bounded, key_problems, model_or_problems, pointer, sentence
from lem_domain.errors import ConfigurationError, FieldProblem

_DIGEST: Final = re.compile("[0-9a-f]{64}")
SHOWN_DIGITS: Final = 12
MAX_TOLD: Final = 100
"""Refused and merged combinations that are told one by one; of more there is the number."""


class Needs(NamedTuple):
    """What is looked at of each experiment of a campaign; most have the same, which is held once."""

    backend: BackendName
    devices: DevicesConfig
    window_s: float
    """The least that is measured."""
    builtin: str | None
    """A built-in set of prompts."""
    prompts_file: str | None
    dataset: str | None
    trace_file: str | None
    trace: str | None


@dataclass(frozen=True, slots=True)
class PlannedExperiment:
    """One distinct configuration and what distinguishes it within its campaign."""

    document: str
    """The configuration without what is the default, as JSON."""
    config_hash: str
    display_name: str
    varied: dict[str, JsonValue]
    needs: Needs

    @property
    def config(self) -> ExperimentConfig:
        """The whole configuration, made anew from the document."""
        return ExperimentConfig.model_validate_json(self.document)


class Refused(NamedTuple):
    """A combination that is no experiment, and why."""

    display_name: str
    varied: dict[str, JsonValue]
    problems: tuple[FieldProblem, ...]


class Merged(NamedTuple):
    """A combination that is the same experiment as an earlier one."""

    display_name: str
    same_as: str
    """The earlier one's name."""


class Plan(NamedTuple):
    """What would be queued."""

    experiments: tuple[PlannedExperiment, ...]
    runs: tuple[PlannedRun, ...]
    duplicates: int = 0
    """Combinations that resolved to an experiment that was there already."""
    merged: tuple[Merged, ...] = ()
    """The first of them."""
    refused: int = 0
    """Combinations that are no experiments."""
    refusals: tuple[Refused, ...] = ()
    """The first of them."""


def expand(spec: CampaignSpec) -> Plan:
    """Every experiment and run of a campaign that may be queued as it stands.

    Raises:
        ConfigurationError: with every problem of every combination, unless `on_refused` says to leave those out; when
            nothing is left; or when there are more than 100,000 runs.
    """
    plan = preview(spec)
    if plan.refused and spec.on_refused != "skip":
        raise refusal(plan)
    return plan


def preview(spec: CampaignSpec) -> Plan:
    """What `expand` gives, and beside it what is refused, whatever `on_refused` says.

    Raises:
        ConfigurationError: nothing could be queued at all, or there are more than 100,000 runs.
    """
    try:
        combinations = Combinations(spec)
    except ConfigurationError as error:
        raise ConfigurationError(str(error), bounded(iter((*error.findings, *key_problems_of(spec))))) from None
    _refuse_too_many(combinations, spec)
    found = _Found(spec)
    for combination in combinations:
        found.add(combination)
    unmatched = tuple(
        FieldProblem(
            pointer=pointer(("sweep", "exclude", index)),
            message="this leaves out no combination; correct its values or remove it",
        )
        for index in combinations.unmatched()
    )
    plan = found.plan()
    if unmatched:
        refused = refusal(plan).findings if plan.refused and spec.on_refused == "stop" else ()
        raise ConfigurationError(unmatched[0].message, (*unmatched, *refused))
    if not plan.experiments:
        if plan.refused:
            raise refusal(plan)
        raise ConfigurationError("every combination of the sweep is excluded; exclude fewer")
    return plan


def key_problems_of(spec: CampaignSpec) -> Iterator[FieldProblem]:
    """What is wrong with keys of the base and of listed experiments, whatever is made of them."""
    yield from key_problems(ExperimentConfig, spec.experiment)
    for index, entry in enumerate(spec.experiments):
        own = {key: value for key, value in entry.items() if key != NAME}
        for problem in key_problems(ExperimentConfig, own):
            yield problem.model_copy(update={"pointer": pointer(("experiments", index)) + problem.pointer})


def refusal(plan: Plan) -> ConfigurationError:
    """Every problem of what a plan refuses, each once."""
    listed = tuple(dict.fromkeys(problem for one in plan.refusals for problem in one.problems))
    return ConfigurationError(sentence(listed[0]), listed)


class _Found:
    """Collects experiments, and what is none."""

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
            if len(self._refusals) < MAX_TOLD:
                problems = error.findings or (FieldProblem(pointer="", message=str(error)),)
                placed = tuple(_placed(problem, combination, self._spec) for problem in problems)
                self._refusals.append(Refused(name, combination.varied, placed))
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
        if len(self._merged) < MAX_TOLD:
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


def _refuse_too_many(combinations: Combinations, spec: CampaignSpec) -> None:
    """What is excluded counts too: every combination has to be looked at."""
    count = combinations.count() * spec.execution.cycles
    if count > MAX_RUNS_PER_CAMPAIGN:
        raise ConfigurationError(
            f"the campaign has {count} runs; the limit is {MAX_RUNS_PER_CAMPAIGN}, so split it or drop values"
        )


def _placed(problem: FieldProblem, combination: Combination, spec: CampaignSpec) -> FieldProblem:
    """The problem at the entry of `experiments` that set the value, where one did."""
    if combination.entry is None:
        return problem
    parts = problem.pointer.split("/")[1:]
    entry = spec.experiments[combination.entry]
    if not parts or (parts[0] not in entry) or value_at(entry, parts) is None:
        return problem
    return FieldProblem(pointer=f"/experiments/{combination.entry}{problem.pointer}", message=problem.message)


def _display_name(name: str, combination: Combination) -> str:
    """The entry's name and what is swept; without a name all that distinguishes it."""
    swept = combination.varied
    if combination.name is not None:
        swept = {path: value for path, value in swept.items() if path not in combination.own}
    shown = _shown(swept)
    parts = [part for part in (combination.name, shown) if part]
    return (", ".join(parts) or name)[:500]


def _shown(varied: Mapping[str, JsonValue]) -> str:
    """By the last part of each path, or the whole of it where two end alike."""
    ends = [path.rpartition(".")[2] for path in varied]
    return ", ".join(
        f"{end if ends.count(end) == 1 else path}={_as_written(value)}"
        for end, (path, value) in zip(ends, varied.items(), strict=True)
    )


def _as_written(value: JsonValue) -> str:
    """As a file has it; of a digest the beginning."""
    if isinstance(value, str):
        return value[:SHOWN_DIGITS] if _DIGEST.fullmatch(value) else value
    return json.dumps(value, ensure_ascii=False)
