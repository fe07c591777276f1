"""What the daemon and the processes of one attempt say to each other: JSON lines over a pair of pipes.

A process is started as `python -m <module> JOB_FILE` with the numbers of its two pipe ends in the environment
(`LEM_CONTROL_IN`, `LEM_CONTROL_OUT`). Evidence never travels here: each process writes its own into the spool.
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
"""In the environment of a rank that something else than the daemon starts: the socket to connect to instead."""
NO_ACCELERATE = 3
"""The launcher's exit code where accelerate is not installed."""


class ControlMessage(BaseModel):
    """Frozen and strict."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RankJob(ControlMessage):
    """Everything a rank needs."""

    attempt_id: str
    rank: int = Field(ge=0)
    world_size: int = Field(ge=1)
    config: ExperimentConfig
    model_path: str = Field(description="Folder or hub id that the engine loads.")
    model_files: dict[str, str] = Field(default_factory=dict, description="SHA-256 by file name, of a local folder.")
    adapter_path: str | None = Field(default=None, description="The same of `model.adapter`.")
    assistant_path: str | None = Field(default=None, description="The same of the model that drafts for this one.")
    prompts: tuple[str, ...] = Field(description="All prompts of the experiment, ordered; rank r takes r, r+n, r+2n, …")
    arrivals_s: tuple[float, ...] = Field(
        default=(), description="A recorded trace of arrivals, where one is replayed."
    )
    spool: str = Field(description="The attempt's folder in the spool.")
    devices: tuple[Device, ...] = Field(description="The leased devices, in order.")


class SamplerJob(ControlMessage):
    """Everything the sampler needs."""

    attempt_id: str
    config: ExperimentConfig
    spool: str
    devices: tuple[Device, ...]


BaselineContext = Literal["idle", "ready", "ready_after"]
"""Before the engine is there, with it loaded and waiting, and the same after the window."""


# --- from a process to the daemon -------------------------------------------------------------------------------------


class Joined(ControlMessage):
    """The first line of a rank that connects by itself: who it is, and among how many it was started."""

    rank: int = Field(ge=0)
    world_size: int = Field(ge=1)
    pid: int


class PhaseEdge(ControlMessage):
    """A phase began or ended in this process (the evidence holds the same mark)."""

    type: Literal["phase"] = "phase"
    phase: PhaseName
    edge: Literal["begin", "end"]
    time_ns: int


class Loaded(ControlMessage):
    """The engine is up and waits for `WarmUp`; this is what it says of itself."""

    type: Literal["loaded"] = "loaded"
    effective_config: EffectiveConfig


class Measured(ControlMessage):
    """The last request is done; the engine is still loaded and waits for `Finish`."""

    type: Literal["measured"] = "measured"


class Ready(ControlMessage):
    """Warm, and waiting for `Go` before the first measured request."""

    type: Literal["ready"] = "ready"


class Tick(ControlMessage):
    """A sign of life with the work done so far; at most about two a second."""

    type: Literal["tick"] = "tick"
    phase: PhaseName
    requests_done: int = 0
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
    """The sampler has its first samples; the ranks may start."""

    type: Literal["sampling"] = "sampling"
    sources: tuple[SourceReport, ...]
    devices: tuple[dict[str, JsonValue], ...] = Field(
        default=(), description="What the sources say of each leased device, by its `uuid`: limits, clocks, versions."
    )


class BaselineTaken(ControlMessage):
    """The sampler's answer to `Baseline`: the phase is over."""

    type: Literal["baselined"] = "baselined"
    context: BaselineContext
    stationary: bool
    power_w: float | None = None
    parts_w: dict[str, float] = Field(default_factory=dict, description="Mean power by device UUID or host domain.")


class Settled(ControlMessage):
    """The sampler's answer to `Settle`: the conditions hold, or the time is up."""

    type: Literal["settled"] = "settled"
    settled: bool


class Done(ControlMessage):
    """The process has sealed all its evidence and ends."""

    type: Literal["done"] = "done"
    streams: tuple[StreamManifest, ...]
    summary: dict[str, JsonValue]


class Failed(ControlMessage):
    """The process can't go on; its evidence so far is sealed."""

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
    """To a rank: the baseline is taken; warm up. While it does, `Trend` tells it of the power."""

    type: Literal["warm_up"] = "warm_up"
    power_known: bool = Field(default=False, description="Some source tells power at all.")


class PowerSlope(ControlMessage):
    """To a rank that warms up: change of power over the last stretch as a fraction of its mean; None before it is over,
    and when nobody tells any more."""

    type: Literal["trend"] = "trend"
    slope: float | None


class Finish(ControlMessage):
    """To a rank: seal the evidence, unload the engine and end."""

    type: Literal["finish"] = "finish"


class Go(ControlMessage):
    """To a rank: the server knows that the window opens; send the first request."""

    type: Literal["go"] = "go"


class Stop(ControlMessage):
    """To the sampler: take a last sample, seal the evidence and end."""

    type: Literal["stop"] = "stop"


class TakeBaseline(ControlMessage):
    """To the sampler: nothing works now; take the power of that until it is steady."""

    type: Literal["baseline"] = "baseline"
    context: BaselineContext


class ReuseBaseline(ControlMessage):
    """To the sampler: an idle baseline of an earlier attempt stands for this one's; write it down."""

    type: Literal["reuse_baseline"] = "reuse_baseline"
    parts_w: dict[str, float]
    age_s: float
    taken_by: str


class Settle(ControlMessage):
    """To the sampler: say when the devices are as cool as `settle` asks for."""

    type: Literal["settle"] = "settle"


ToProcess = Annotated[
    WarmUp | PowerSlope | Go | Finish | Stop | TakeBaseline | ReuseBaseline | Settle, Field(discriminator="type")
]

_from_process: TypeAdapter[FromProcess] = TypeAdapter(FromProcess)
_to_process: TypeAdapter[ToProcess] = TypeAdapter(ToProcess)


def encode(message: ControlMessage) -> bytes:
    """One line."""
    return message.model_dump_json().encode() + b"\n"


def decode_from_process(line: bytes) -> FromProcess:
    """A message of a process.

    Raises:
        pydantic.ValidationError: the line is none.
    """
    return _from_process.validate_json(line)


def decode_to_process(line: bytes) -> ToProcess:
    """A message of the daemon.

    Raises:
        pydantic.ValidationError: the line is none.
    """
    return _to_process.validate_json(line)
