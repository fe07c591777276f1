"""Wire models of campaigns: experiments, plans, placements, aggregation and results over cycles."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic.types import JsonValue

from lem_domain.config.calibration import DeviceCalibration, named_twice
from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.execution import ExecutionConfig, Placement
from lem_domain.config.expansion import Plan
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.gaps import least_duration
from lem_domain.config.provenance import Source
from lem_domain.errors import FieldProblem, ProblemCode
from lem_domain.ids import CampaignId, ExperimentId, RunId, Sha256
from lem_domain.results.findings import Verdict
from lem_domain.results.run import CycleSummary, PublicationCondition
from lem_domain.states import CampaignState, RunState
from lem_domain.wire.base import AnswerModel, RequestModel
from lem_domain.wire.workers import DeviceKind


class RunCounts(AnswerModel):
    """Number of runs in each state."""

    queued: int = 0
    initialised: int = 0
    running: int = 0
    completed: int = 0
    aggregated: int = 0
    failed: int = 0
    interrupted: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        """Number of all runs of the campaign."""
        return sum(getattr(self, state.value) for state in RunState)

    def in_states(self, *states: RunState) -> int:
        """Return the number of runs in any of the given states."""
        return sum(getattr(self, state.value) for state in states)


class PauseCampaign(RequestModel):
    """Request to pause a campaign."""

    live_runs: Literal["finish", "stop"] = Field(
        default="finish",
        description="finish: live runs are measured to their end; stop: workers stop them within seconds and they "
        "are queued again, without a charge to their retries.",
    )


class AggregationRequest(RequestModel):
    """What an aggregation computes with, where that is not the configuration's."""

    calibration: tuple[DeviceCalibration, ...] | None = Field(
        default=None,
        max_length=64,
        description="Calibrations instead of `energy.calibration`; an empty list computes without any.",
    )

    @model_validator(mode="after")
    def _each_device_once(self) -> Self:
        if (problem := named_twice(self.calibration or ())) is not None:
            raise ValueError(problem)
        return self


class AggregationProblem(AnswerModel):
    """A run that an aggregation of its campaign could not aggregate."""

    run_id: RunId
    display_name: str
    cycle: int
    code: ProblemCode = Field(description="The code that aggregating this run alone answers with.")
    message: str


class AggregatedCampaign(AnswerModel):
    """Outcome of aggregating a campaign's completed runs."""

    aggregated: int = Field(description="Runs that this request aggregated.")
    failed: int = Field(description="Runs that could not be aggregated.")
    problems: tuple[AggregationProblem, ...] = Field(description="Which runs and why; the first 1,000.")


class RetriedRuns(AnswerModel):
    """The runs that a retry queued again."""

    run_ids: tuple[RunId, ...]


class ImportOrigin(AnswerModel):
    """Origin of an imported campaign."""

    bundle_sha256: Sha256 = Field(description="Digest of the bundle's SHA256SUMS, which covers the whole bundle.")
    lem_version: str = Field(description="The version of LEM that wrote the bundle.")
    imported_at: datetime
    imported_by: str = Field(description="Name of the token that imported it.")


class PlaceCampaign(RequestModel):
    """Releases a campaign's devices for its remaining runs."""

    placement: Placement | None = Field(default=None, description="New rule; unchanged if omitted.")


class PlaceView(AnswerModel):
    """The devices of a campaign's runs, current or former."""

    devices: tuple[str, ...] = Field(description="UUIDs: of the first run and, under same_device, of every run.")
    kind: DeviceKind
    name: str
    placed_at: datetime
    ended_at: datetime | None = Field(description="When the campaign was moved to other devices.")
    ended_by: str | None = Field(description="Name of the token that moved it.")


class WaitReason(StrEnum):
    """Why an active campaign has no live run."""

    NO_WORKER = "no_worker"
    DEVICE_GONE = "device_gone"
    """Its device belongs to no online worker; the campaign waits without limit."""
    BUSY = "busy"
    GAP = "gap"
    COOLING = "cooling"
    TURN = "turn"
    ORDER = "order"
    WORKER_SILENT = "worker_silent"
    """The worker is online but does not claim runs: it pauses after failures, or cleans up."""
    FAIL_FAST = "fail_fast"


class WaitView(AnswerModel):
    """The reason why a campaign waits."""

    reason: WaitReason
    message: str
    until: datetime | None = Field(default=None, description="Latest end of the wait, if it is known.")


class CampaignView(AnswerModel):
    """A campaign."""

    id: CampaignId
    name: str
    state: CampaignState
    created_at: datetime
    submitted_by: str = Field(description="Name of the token that submitted it.")
    execution: ExecutionConfig = Field(description="As it was submitted.")
    placement: Placement = Field(default="any", description="In force; a `:place` may have replaced the submitted one.")
    places: tuple[PlaceView, ...] = Field(default=(), description="Current and former devices of its runs.")
    priority: int
    labels: dict[str, str]
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    experiments: int
    runs: RunCounts
    imported: ImportOrigin | None = Field(
        default=None, description="Set for an imported campaign, which was measured through another server."
    )
    waiting: WaitView | None = Field(
        default=None,
        description="Why the active campaign has no live run; only in the answer for a single campaign.",
    )


class ImportedBundle(AnswerModel):
    """Result of an import."""

    campaign: CampaignView
    new: bool = Field(description="False if the same bundle was imported before; nothing changed then.")
    experiments: int
    runs: int
    attempts: int
    chunks: int
    evidence_bytes: int


class ValueView(AnswerModel):
    """One value of an experiment and its source."""

    path: str
    value: JsonValue
    source: Source
    detail: str = Field(description="File and line, name of a preset, or option.")


class ExperimentView(AnswerModel):
    """An experiment of a campaign."""

    id: ExperimentId
    campaign_id: CampaignId
    display_name: str = Field(description="Distinguishes it within its campaign.")
    varied: dict[str, JsonValue] = Field(description="Its values of the sweep.")
    config: ExperimentConfig
    config_hash: Sha256
    provenance: tuple[ValueView, ...] | None = Field(default=None, description="Source of every value; null in lists.")


class PlannedExperimentView(AnswerModel):
    """An experiment that would be queued."""

    display_name: str
    varied: dict[str, JsonValue]
    config: ExperimentConfig
    config_hash: Sha256


class PlannedRunView(AnswerModel):
    """A run that would be queued."""

    experiment: int = Field(description="Index into `experiments`.")
    cycle: int
    position: int


class MergedView(AnswerModel):
    """A combination that resolves to the same experiment as an earlier one."""

    display_name: str
    same_as: str = Field(description="Display name of the earlier one.")


class RefusedView(AnswerModel):
    """An invalid combination and its problems."""

    display_name: str
    varied: dict[str, JsonValue]
    problems: tuple[FieldProblem, ...]


class CampaignPlan(AnswerModel):
    """What a submission would queue."""

    name: str
    experiment_count: int = Field(description="Number of experiments, listed or not.")
    run_count: int = Field(description="Number of runs, listed or not.")
    duplicates: int = Field(description="Combinations that are the same experiment as an earlier one.")
    merged: tuple[MergedView, ...] = Field(default=(), description="The first 100 of them.")
    refused: int = Field(
        default=0, description="Invalid combinations; unless `on_refused` is `skip`, nothing is queued."
    )
    refusals: tuple[RefusedView, ...] = Field(default=(), description="The first 100 of them, with their problems.")
    execution: ExecutionConfig = Field(description="Order, gaps and placement, including defaults.")
    minimum_duration_s: float = Field(
        description="Lower bound on one device: the measured windows and the timed gaps between them."
    )
    minimum_gap_s: float = Field(description="The part of it that is gaps.")
    notes: tuple[str, ...] = Field(
        default=(), description="What registered workers cannot run and why, and how many runs they can."
    )
    # The last two fields, because the server sends them in pieces.
    experiments: tuple[PlannedExperimentView, ...] = Field(description="All of them, or as many as `listed` allows.")
    runs: tuple[PlannedRunView, ...] = Field(description="The runs in their order, all or as many as `listed` allows.")

    @classmethod
    def without_lists(cls, spec: CampaignSpec, plan: Plan, notes: Sequence[str]) -> CampaignPlan:
        """Build the view of a plan with empty `experiments` and `runs`."""
        least = least_duration(plan.runs, [one.needs.window_s for one in plan.experiments], spec.execution.gaps)
        return cls(
            name=spec.name,
            experiment_count=len(plan.experiments),
            run_count=len(plan.runs),
            duplicates=plan.duplicates,
            merged=tuple(map(MergedView.of, plan.merged)),
            refused=plan.refused,
            refusals=tuple(map(RefusedView.of, plan.refusals)),
            execution=spec.execution,
            minimum_duration_s=least.total_s,
            minimum_gap_s=least.gaps_s,
            notes=tuple(notes),
            experiments=(),
            runs=(),
        )


class RunOutcome(AnswerModel):
    """One cycle of an experiment in a result table."""

    run_id: RunId
    cycle: int
    state: RunState
    verdict: Verdict | None = None
    reason: str | None = Field(default=None, description="Why there is no result: failure reason or state.")
    message: str | None = Field(default=None, description="The failure in one sentence.")


class ExperimentResults(AnswerModel):
    """An experiment over its cycles."""

    experiment_id: ExperimentId
    display_name: str
    varied: dict[str, JsonValue]
    outcomes: tuple[RunOutcome, ...]
    verdict: Verdict | None = Field(description="The worst verdict of its cycles; null without a result.")
    method: str | None = Field(
        default=None, description="Version of the formulas; `mixed` where cycles differ, null without a result."
    )
    energy_method: str | None = Field(description="Method of the energy figures; `mixed` where cycles differ.")
    energy_includes: tuple[str, ...]
    findings: tuple[str, ...] = Field(description="Distinct findings over its cycles, as sentences.")
    metrics: tuple[CycleSummary, ...]
    publication: tuple[PublicationCondition, ...] = Field(
        default=(), description="The conditions of the publication profile, each met or not."
    )


class CampaignResults(AnswerModel):
    """Results of a campaign, from the runs aggregated so far."""

    campaign_id: CampaignId
    name: str
    state: CampaignState
    runs: RunCounts
    experiments: tuple[ExperimentResults, ...]
