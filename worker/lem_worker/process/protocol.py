"""Control messages between the daemon and the processes of an attempt: JSON lines over a pair of pipes.

A process is started as `python -m <module> JOB_FILE` with the numbers of its pipe ends in the environment
(`LEM_CONTROL_IN`, `LEM_CONTROL_OUT`). Evidence is not sent over the pipes: each process writes its own to the spool.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import PhaseName, StreamManifest
from lem_domain.states import FailureReason
from lem_domain.wire.runs import EffectiveConfig
from lem_domain.wire.workers import Device

CONTROL_IN = "LEM_CONTROL_IN"
CONTROL_OUT = "LEM_CONTROL_OUT"
CONTROL_SOCKET = "LEM_CONTROL_SOCKET"
"""Path of the socket that a rank connects to instead, when accelerate starts it and it inherits no pipes."""
ACCELERATE_MISSING = 3
"""Exit code of the launcher when accelerate is not installed."""


class ControlMessage(BaseModel):
    """Base of all messages: frozen, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RankJob(ControlMessage):
    """Job file of a rank."""

    attempt_id: str
    rank: int = Field(ge=0)
    world_size: int = Field(ge=1)
    config: ExperimentConfig
    model_path: str = Field(description="Folder or Hugging Face id that the engine loads.")
    model_files: dict[str, str] = Field(default_factory=dict, description="SHA-256 by file name of a local folder.")
    adapter_path: str | None = Field(default=None, description="Folder or id of `model.adapter`.")
    assistant_path: str | None = Field(default=None, description="Folder or id of the assistant model.")
    prompts: tuple[str, ...] = Field(description="All prompts of the experiment in order; rank r of n sends r, r+n, …")
    arrivals_s: tuple[float, ...] = Field(default=(), description="Arrival times of a replayed trace, in seconds.")
    spool: str = Field(description="The attempt's folder in the spool.")
    devices: tuple[Device, ...] = Field(description="The leased devices, in order.")


class IdlePower(ControlMessage):
    """Power of a GPU at rest when the worker started, without and with sampling; null with a reason if not measured."""

    uuid: str
    unsampled_w: float | None = None
    sampled_w: float | None = None
    uncertainty_w: float | None = Field(
        default=None,
        description="Of their difference: what changed from the first to the last span without sampling, and what the "
        "ends of the spans leave open.",
    )
    reason: str | None = None


class SamplerJob(ControlMessage):
    """Job file of the sampler."""

    attempt_id: str
    config: ExperimentConfig
    spool: str
    devices: tuple[Device, ...]
    idle_power: tuple[IdlePower, ...] = ()


BaselineContext = Literal["idle", "ready", "ready_after"]
"""Before the engine is loaded; with it loaded and idle before the window; the same after the window."""


# --- from a process to the daemon -------------------------------------------------------------------------------------


class Joined(ControlMessage):
    """First line of a rank that connects to the socket: its number and the world size that it sees."""

    rank: int = Field(ge=0)
    world_size: int = Field(ge=1)
    pid: int


class PhaseEdge(ControlMessage):
    """A phase began or ended in this process, as the evidence records it too; `time_ns` is CLOCK_MONOTONIC."""

    type: Literal["phase"] = "phase"
    phase: PhaseName
    edge: Literal["begin", "end"]
    time_ns: int


class Loaded(ControlMessage):
    """The engine is loaded and waits for `WarmUp`; has the configuration read back from it."""

    type: Literal["loaded"] = "loaded"
    effective_config: EffectiveConfig


class Measured(ControlMessage):
    """The last request is complete; the engine is still loaded and waits for `Finish`."""

    type: Literal["measured"] = "measured"


class Ready(ControlMessage):
    """The warm-up is complete; the rank waits for `Go` before the first measured request."""

    type: Literal["ready"] = "ready"


class Tick(ControlMessage):
    """Progress so far, at most about twice a second; a rank without any for `limits.silence_s` ends the attempt."""

    type: Literal["tick"] = "tick"
    phase: PhaseName
    requests_ended: int = 0
    generated_tokens: int = 0
    fraction: float | None = None
    output_rate_tok_s: float | None = None
    power_w: float | None = None
    power_slope: float | None = Field(
        default=None,
        description="Change of power over one trend (process/power_trend.py) as a fraction of its mean.",
    )


class SourceReport(ControlMessage):
    """One energy source, opened or not."""

    name: str
    opened: bool
    method: str | None = None
    domains: tuple[str, ...] = ()
    reason: str | None = Field(default=None, description="Why it could not be opened, or why it stopped.")


class SamplingStarted(ControlMessage):
    """The sampler has its first samples, so the ranks may start."""

    type: Literal["sampling"] = "sampling"
    sources: tuple[SourceReport, ...]
    devices: tuple[dict[str, JsonValue], ...] = Field(
        default=(), description="Facts of each leased device with its `uuid`: limits, clocks, versions."
    )


class BaselineTaken(ControlMessage):
    """The sampler's answer to `TakeBaseline`: the phase has ended."""

    type: Literal["baselined"] = "baselined"
    context: BaselineContext
    stationary: bool
    power_w: float | None = None
    parts_w: dict[str, float] = Field(default_factory=dict, description="Mean power by device UUID or host domain.")


class Settled(ControlMessage):
    """The sampler's answer to `Settle`: the conditions hold, or the time limit is reached."""

    type: Literal["settled"] = "settled"
    settled: bool


class Done(ControlMessage):
    """The process has sealed all its evidence and ends; has its manifest and summary."""

    type: Literal["done"] = "done"
    streams: tuple[StreamManifest, ...]
    summary: dict[str, JsonValue]


class Failed(ControlMessage):
    """The process ends because of an error; its evidence so far is sealed."""

    type: Literal["failed"] = "failed"
    reason: FailureReason
    message: str
    streams: tuple[StreamManifest, ...] = ()


FromProcess = Annotated[
    PhaseEdge | Loaded | Ready | Measured | Tick | SamplingStarted | BaselineTaken | Settled | Done | Failed,
    Field(discriminator="type"),
]

# --- from the daemon to a process -------------------------------------------------------------------------------------


class WarmUp(ControlMessage):
    """To a rank: the baseline is taken; warm up. `PowerSlope` follows with each sample of the sampler meanwhile."""

    type: Literal["warm_up"] = "warm_up"
    power_known: bool = Field(default=False, description="Whether any source measures power.")


class PowerSlope(ControlMessage):
    """To a rank that warms up: change of power over the last trend (process/power_trend.py) as a fraction of its mean.

    None before the first trend is known, and after the sampler has ended.
    """

    type: Literal["trend"] = "trend"
    slope: float | None


class Finish(ControlMessage):
    """To a rank: seal the evidence, unload the engine and end."""

    type: Literal["finish"] = "finish"


class Go(ControlMessage):
    """To a rank: the server has accepted the start of the window; send the first request."""

    type: Literal["go"] = "go"


class Stop(ControlMessage):
    """To the sampler: take a last sample, seal the evidence and end."""

    type: Literal["stop"] = "stop"


class TakeBaseline(ControlMessage):
    """To the sampler: no requests run now; measure power until it is stationary."""

    type: Literal["baseline"] = "baseline"
    context: BaselineContext


class ReuseBaseline(ControlMessage):
    """To the sampler: record an idle baseline of an earlier attempt, measured `age_s` seconds ago, as this one's."""

    type: Literal["reuse_baseline"] = "reuse_baseline"
    parts_w: dict[str, float]
    age_s: float
    taken_by: str


class Settle(ControlMessage):
    """To the sampler: answer when the conditions of `settle` hold."""

    type: Literal["settle"] = "settle"


ToProcess = Annotated[
    WarmUp | PowerSlope | Go | Finish | Stop | TakeBaseline | ReuseBaseline | Settle, Field(discriminator="type")
]

from_process: TypeAdapter[FromProcess] = TypeAdapter(FromProcess)
to_process: TypeAdapter[ToProcess] = TypeAdapter(ToProcess)


def encode(message: ControlMessage) -> bytes:
    """Encode a message as one JSON line."""
    return message.model_dump_json().encode() + b"\n"
