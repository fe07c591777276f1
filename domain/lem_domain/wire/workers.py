"""Workers: registration, claims, heartbeats, and the start and end of attempts."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import ProcessName, StreamManifest
from lem_domain.ids import AttemptId, CampaignId, RunId, Sha256, WorkerId
from lem_domain.states import FailureReason
from lem_domain.wire.base import AnswerModel, RequestModel
from lem_domain.wire.runs import EffectiveConfig, Progress


class DeviceKind(StrEnum):
    """Kinds of devices."""

    GPU = "gpu"
    CPU = "cpu"
    SIMULATED = "simulated"


DeviceUuid = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9._:-]+$")]


class Device(RequestModel):
    """A device of a worker, identified by its UUID."""

    uuid: DeviceUuid
    kind: DeviceKind
    name: str = Field(max_length=200)


class WorkerState(StrEnum):
    """States of a worker. `offline`: it signed off, or sent nothing for longer than a lease lasts."""

    ONLINE = "online"
    DRAINING = "draining"
    OFFLINE = "offline"


class RegisterWorker(RequestModel):
    """Registration of a worker. Its `id` persists; `boot_id` is new at every start."""

    id: WorkerId
    boot_id: UUID
    name: str = Field(min_length=1, max_length=200)
    host: str = Field(max_length=255)
    backend: str = Field(min_length=1, max_length=40)
    devices: tuple[Device, ...] = Field(min_length=1, max_length=64)
    versions: dict[str, str] = Field(default_factory=dict, max_length=64, description="Package to version.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)


class Registered(AnswerModel):
    """The server's terms for a worker."""

    id: WorkerId
    beat_interval_s: float
    lease_ttl_s: float


class WorkerView(AnswerModel):
    """A worker."""

    id: WorkerId
    name: str
    host: str
    backend: str
    state: WorkerState
    devices: tuple[Device, ...]
    versions: dict[str, str]
    labels: dict[str, str]
    registered_at: datetime
    last_seen_at: datetime
    current_attempts: tuple[AttemptId, ...]
    current_runs: tuple[RunId, ...]


class ClaimRequest(RequestModel):
    """A request for a run. Repeated with the same `claim_id`, it returns the same attempt."""

    claim_id: UUID
    boot_id: UUID
    devices: tuple[str, ...] = Field(min_length=1, max_length=64, description="UUIDs of idle devices.")
    temperatures_c: dict[DeviceUuid, Annotated[float, Field(ge=-100, le=200)]] = Field(
        default_factory=dict, max_length=64, description="Temperatures of the devices that report one, by UUID."
    )
    wait_s: float = Field(default=0, ge=0, le=30, description="How long the server may hold the request open.")


class Assignment(AnswerModel):
    """A claimed run, with everything that its worker needs."""

    attempt_id: AttemptId
    run_id: RunId
    campaign_id: CampaignId
    display_name: str
    cycle: int
    number: int = Field(description="Number of this attempt of the run, from 1.")
    config: ExperimentConfig
    config_hash: Sha256
    devices: tuple[str, ...] = Field(description="UUIDs of the leased devices, in order.")
    lease_s: float = Field(description="Duration of the lease from now; heartbeats renew it.")
    beat_interval_s: float


class AttemptHeartbeat(RequestModel):
    """An attempt in a heartbeat."""

    attempt_id: AttemptId
    progress: Progress | None = None


class Heartbeat(RequestModel):
    """A heartbeat for all attempts of a worker."""

    boot_id: UUID
    attempts: tuple[AttemptHeartbeat, ...] = Field(default=(), max_length=64)


class HeartbeatVerdict(StrEnum):
    """The action that a worker must take for an attempt."""

    OK = "ok"
    CANCEL = "cancel"
    PAUSE = "pause"
    """Stop the attempt and return its run, which is queued until its campaign is resumed."""
    LOST = "lost"


class AttemptVerdict(AnswerModel):
    """The server's answer for one attempt."""

    attempt_id: AttemptId
    verdict: HeartbeatVerdict
    lease_s: float | None = Field(description="Duration of the renewed lease from now; null without a lease.")


class HeartbeatAnswer(AnswerModel):
    """The answer to a heartbeat."""

    attempts: tuple[AttemptVerdict, ...]
    next_beat_s: float
    drain: bool = Field(description="Finish the current attempts and claim nothing more.")


class StartAttempt(RequestModel):
    """Sent when the backend is loaded and warmed up, before the measured window opens."""

    environment: dict[str, JsonValue] = Field(description="The environment snapshot.")
    effective_config: EffectiveConfig


class ProcessCompletion(RequestModel):
    """The completion marker of a process: all of its evidence is sent."""

    streams: tuple[StreamManifest, ...]
    summary: dict[str, JsonValue] = Field(default_factory=dict, description="Summary that the process reports.")


class CompleteAttempt(RequestModel):
    """The manifest of the whole attempt, which the server compares with the stored chunks."""

    processes: tuple[ProcessName, ...] = Field(min_length=1, max_length=1025)
    manifest: tuple[StreamManifest, ...] = Field(min_length=1)


class MissingChunks(AnswerModel):
    """A member of `manifest_incomplete`: chunks to send again."""

    process: ProcessName
    stream: str
    seqs: tuple[int, ...]


class EndAttempt(RequestModel):
    """An attempt that ended without a result; its partial evidence is kept."""

    outcome: Literal["failed", "interrupted", "cancelled"]
    reason: FailureReason
    message: str = Field(max_length=4000)
    environment: dict[str, JsonValue] | None = None
    effective_config: EffectiveConfig | None = None


class LogText(RequestModel):
    """A piece of a process's output."""

    text: str = Field(max_length=65_536)
