"""Wire models of runs: attempts, transitions, lease events, logs, streams and progress."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field
from pydantic.types import JsonValue

from lem_domain.evidence.streams import ProcessName, StreamManifest, StreamName
from lem_domain.ids import AttemptId, CampaignId, ExperimentId, RunId, Sha256, WorkerId
from lem_domain.states import ActorKind, FailureReason, RunState
from lem_domain.wire.base import AnswerModel, RequestModel


class Progress(RequestModel):
    """Progress of a live attempt, as its worker last reported it. Rates are momentary and no results."""

    phase: str = Field(max_length=40)
    requests_done: int = Field(default=0, ge=0, description="Requests that ended, failed ones included.")
    generated_tokens: int = Field(default=0, ge=0)
    elapsed_s: float = Field(default=0, ge=0, description="Since the start of the phase.")
    fraction: float | None = Field(
        default=None, ge=0, le=1, description="Estimated part of the measured window that is done."
    )
    output_rate_tok_s: float | None = Field(default=None, ge=0)
    power_w: float | None = Field(default=None, ge=0)


class RunView(AnswerModel):
    """A run."""

    id: RunId
    campaign_id: CampaignId
    experiment_id: ExperimentId
    display_name: str
    backend: str
    cycle: int
    position: int
    state: RunState
    reason: FailureReason | None = Field(default=None, description="Why it failed, was interrupted or cancelled.")
    message: str | None = Field(default=None, description="The reason in one sentence.")
    attempts: int
    current_attempt: AttemptId | None
    cancel_requested: bool
    created_at: datetime
    updated_at: datetime
    progress: Progress | None = Field(default=None, description="Set while a worker executes the run.")


class AttemptView(AnswerModel):
    """One worker's execution of a run."""

    id: AttemptId
    run_id: RunId
    number: int
    worker_id: WorkerId
    worker_name: str
    devices: tuple[str, ...] = Field(description="UUIDs of the leased devices.")
    claimed_at: datetime
    started_at: datetime | None = Field(description="When the measured window opened.")
    ended_at: datetime | None
    outcome: Literal["completed", "failed", "interrupted", "cancelled"] | None
    reason: FailureReason | None
    message: str | None
    environment: dict[str, JsonValue] | None
    effective_config: EffectiveConfig | None
    manifest: tuple[StreamManifest, ...] | None


class TransitionView(AnswerModel):
    """One entry of a run's append-only log of transitions."""

    source: RunState | None
    target: RunState
    at: datetime
    actor: ActorKind
    actor_name: str
    reason: str | None
    message: str | None
    attempt_id: AttemptId | None


class LeaseEventKind(StrEnum):
    """An event of a lease that does not change the state of its run."""

    SUSPECT = "suspect"
    """It expired without a heartbeat; the run waits until the grace ends."""
    RECOVERED = "recovered"
    """A heartbeat of the same attempt arrived before the grace ended; the attempt continues."""


class LeaseEventView(AnswerModel):
    """One entry of the append-only log of leases."""

    attempt_id: AttemptId
    kind: LeaseEventKind
    at: datetime
    silent_s: float = Field(description="Since the last heartbeat.")


class LogChunk(AnswerModel):
    """A piece of a process's output."""

    attempt_id: AttemptId
    process: ProcessName
    seq: int
    received_at: datetime
    text: str


class ChunkView(AnswerModel):
    """A stored chunk without its body."""

    seq: int
    rows: int
    bytes: int
    sha256: Sha256


class StreamView(AnswerModel):
    """The stored chunks of one stream of one process."""

    process: ProcessName
    stream: StreamName
    chunks: tuple[ChunkView, ...]


class EffectiveParameter(RequestModel):
    """One parameter: the requested value and the one that the loaded engine reports."""

    name: str = Field(max_length=200, description="Dotted path, for example pytorch.batch_size.")
    requested: JsonValue
    effective: JsonValue
    confirmed: bool = Field(description="The engine's value equals the requested one, or no value was requested.")


class EffectiveConfig(RequestModel):
    """The configuration that was read back from the loaded engine."""

    engine: str = Field(max_length=100, description="Package and version, for example transformers 5.23.0.")
    parameters: tuple[EffectiveParameter, ...]


AttemptView.model_rebuild()
