"""Campaigns, their experiments, the preview of a plan, and results over cycles."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field
from pydantic.types import JsonValue

from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.execution import ExecutionConfig, Placement
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.provenance import Source
from lem_domain.errors import FieldProblem, ProblemCode
from lem_domain.ids import CampaignId, ExperimentId, RunId, Sha256
from lem_domain.results.run import CycleSummary, Verdict
from lem_domain.states import CampaignState, RunState
from lem_domain.wire.base import AnswerModel, RequestModel
from lem_domain.wire.workers import DeviceKind

__all__ = [
    "AggregatedCampaign",
    "AggregationProblem",
    "CampaignPlan",
    "CampaignResults",
    "CampaignSpec",
    "CampaignView",
    "ExperimentResults",
    "ExperimentView",
    "ImportOrigin",
    "ImportedBundle",
    "PauseCampaign",
    "PlaceCampaign",
    "PlaceView",
    "PlannedExperimentView",
    "PlannedRunView",
    "RetriedRuns",
    "RunOutcome",
    "WaitReason",
    "WaitView",
]


class RunCounts(AnswerModel):
    """How many runs are in each state."""

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
        """All runs of the campaign."""
        return sum(getattr(self, state.value) for state in RunState)

    def in_states(self, *states: RunState) -> int:
        """Runs in any of the given states."""
        return sum(getattr(self, state.value) for state in states)


class PauseCampaign(RequestModel):
    """How a campaign is paused."""

    live_runs: Literal["finish", "stop"] = Field(
        default="finish",
        description="finish: what is being measured goes on to its end; stop: its worker stops it within seconds, and "
        "it waits with the others, without cost to its retries.",
    )


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
    """What a retry queued again."""

    run_ids: tuple[RunId, ...]


class ImportOrigin(AnswerModel):
    """Where a campaign that was not measured through this server came from."""

    bundle_sha256: Sha256 = Field(description="Of the bundle's SHA256SUMS, and so of all that it held.")
    lem_version: str = Field(description="The version of LEM that wrote the bundle.")
    imported_at: datetime
    imported_by: str = Field(description="Name of the token that imported it.")


class PlaceCampaign(RequestModel):
    """A new place for what a campaign has left to do."""

    placement: Placement | None = Field(default=None, description="The rule from now on; without it, it stays.")


class PlaceView(AnswerModel):
    """Where the runs of a campaign are, or were before it was moved."""

    devices: tuple[str, ...] = Field(description="UUIDs: of the first run and, under same_device, of all.")
    kind: DeviceKind
    name: str
    placed_at: datetime
    ended_at: datetime | None = Field(description="When the campaign was moved from there.")
    ended_by: str | None = Field(description="Name of the token that moved it.")


class WaitReason(StrEnum):
    """Why nothing of an active campaign runs."""

    NO_WORKER = "no_worker"
    DEVICE_GONE = "device_gone"
    """Its device is at no worker that is online; it waits for it, for ever if need be."""
    BUSY = "busy"
    GAP = "gap"
    COOLING = "cooling"
    TURN = "turn"
    ORDER = "order"
    WORKER_SILENT = "worker_silent"
    """The worker is online and does not ask for work: it pauses after failures, or cleans up."""
    FAIL_FAST = "fail_fast"


class WaitView(AnswerModel):
    """What a campaign waits for."""

    reason: WaitReason
    message: str
    until: datetime | None = Field(default=None, description="At the latest, where that is known.")


class CampaignView(AnswerModel):
    """A campaign."""

    id: CampaignId
    name: str
    state: CampaignState
    created_at: datetime
    submitted_by: str = Field(description="Name of the token that submitted it.")
    execution: ExecutionConfig = Field(description="As it was submitted.")
    placement: Placement = Field(
        default="any", description="In force; another than the submitted one after a `:place`."
    )
    places: tuple[PlaceView, ...] = Field(default=(), description="Where its runs are, and were before it was moved.")
    priority: int
    labels: dict[str, str]
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    experiments: int
    runs: RunCounts
    imported: ImportOrigin | None = Field(
        default=None, description="Set where it was imported: it is a record of what was measured elsewhere."
    )
    waiting: WaitView | None = Field(
        default=None,
        description="Why nothing of it runs though it is active; told where one campaign is asked for, not in lists.",
    )


class ImportedBundle(AnswerModel):
    """What an import brought."""

    campaign: CampaignView
    new: bool = Field(description="False when the same bundle had been imported before; nothing was changed then.")
    experiments: int
    runs: int
    attempts: int
    chunks: int
    evidence_bytes: int


class ValueView(AnswerModel):
    """One value of an experiment, and where it came from."""

    path: str
    value: JsonValue
    source: Source
    detail: str = Field(description="File and line, name of a preset, or option.")


class ExperimentView(AnswerModel):
    """An experiment of a campaign."""

    id: ExperimentId
    campaign_id: CampaignId
    display_name: str = Field(description="What distinguishes it within its campaign.")
    varied: dict[str, JsonValue] = Field(description="The sweep's values that made it.")
    config: ExperimentConfig
    config_hash: Sha256
    provenance: tuple[ValueView, ...] | None = Field(
        default=None, description="Of every value where it came from; null in lists."
    )


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
    """A combination that is the same experiment as an earlier one."""

    display_name: str
    same_as: str = Field(description="Display name of the earlier one.")


class RefusedView(AnswerModel):
    """A combination that is no experiment, and why."""

    display_name: str
    varied: dict[str, JsonValue]
    problems: tuple[FieldProblem, ...]


class CampaignPlan(AnswerModel):
    """What submitting would queue."""

    name: str
    experiment_count: int = Field(description="How many experiments there are, however many are listed.")
    run_count: int = Field(description="How many runs there are.")
    duplicates: int = Field(description="Combinations that are the same experiment as an earlier one.")
    merged: tuple[MergedView, ...] = Field(default=(), description="Which ones; the first 100.")
    refused: int = Field(
        default=0, description="Combinations that are no experiments; unless `on_refused` is `skip` nothing is queued."
    )
    refusals: tuple[RefusedView, ...] = Field(default=(), description="Which ones and why; the first 100.")
    execution: ExecutionConfig = Field(description="Order, gaps and placement, defaults included.")
    minimum_duration_s: float = Field(
        description="Lower bound on one device: the measured windows, and the gaps by time between them."
    )
    minimum_gap_s: float = Field(description="How much of it are gaps.")
    notes: tuple[str, ...] = Field(
        default=(), description="What registered workers can't run, why, and how much they can."
    )
    # The last two, because they are sent piece by piece.
    experiments: tuple[PlannedExperimentView, ...] = Field(description="All of them, or as many as were asked for.")
    runs: tuple[PlannedRunView, ...] = Field(description="The same of the runs, in their order.")


class RunOutcome(AnswerModel):
    """One cycle of an experiment in a result table."""

    run_id: RunId
    cycle: int
    state: RunState
    verdict: Verdict | None = None
    reason: str | None = Field(default=None, description="Why there is no result: failure reason or state.")
    message: str | None = Field(default=None, description="The same in one sentence, where an attempt ended so.")


class ExperimentResults(AnswerModel):
    """An experiment over its cycles."""

    experiment_id: ExperimentId
    display_name: str
    varied: dict[str, JsonValue]
    outcomes: tuple[RunOutcome, ...]
    verdict: Verdict | None = Field(description="The worst of its cycles; null without any result.")
    energy_method: str | None = Field(description="Method of the energy figures; `mixed` where cycles differ.")
    energy_includes: tuple[str, ...]
    findings: tuple[str, ...] = Field(description="Distinct findings over its cycles, as sentences.")
    metrics: tuple[CycleSummary, ...]


class CampaignResults(AnswerModel):
    """Results of a campaign, from the runs aggregated so far."""

    campaign_id: CampaignId
    name: str
    state: CampaignState
    runs: RunCounts
    experiments: tuple[ExperimentResults, ...]
