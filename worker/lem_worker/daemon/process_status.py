"""The state of an attempt's processes, as their messages report it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic.types import JsonValue

from lem_domain.evidence.streams import PhaseName
from lem_domain.wire.runs import EffectiveConfig, Progress
from lem_worker.process.protocol import (
    BaselineContext,
    BaselineTaken,
    Done,
    FromProcess,
    Loaded,
    Measured,
    PhaseEdge,
    Ready,
    SamplingStarted,
    Settled,
    Tick,
)


@dataclass
class RankStatus:
    """The state of one rank."""

    heard_at: float = 0.0
    """Time of its last message, on the event loop's clock."""
    phase: PhaseName | None = None
    effective_config: EffectiveConfig | None = None
    """As read back from its loaded engine."""
    ready: bool = False
    measured: bool = False
    done: Done | None = None
    tick: Tick | None = None

    @property
    def is_loading(self) -> bool:
        """Whether its engine is not loaded yet."""
        return not self.ready and self.phase in (None, PhaseName.LOAD, PhaseName.COMPILE)

    def take(self, message: FromProcess) -> None:
        """Update the state with a message."""
        match message:
            case Loaded():
                self.effective_config = message.effective_config
            case Ready():
                self.ready = True
            case Measured():
                self.measured = True
            case Done():
                self.done = message
            case PhaseEdge():
                self.phase = message.phase if message.edge == "begin" else None
            case Tick():
                self.tick = message


@dataclass
class SamplerStatus:
    """The state of the sampler."""

    sampling: bool = False
    """It has its first samples."""
    gone: bool = False
    """It ended without sealing its evidence."""
    failure: str | None = None
    """Why it never had a sample; the attempt continues without it."""
    device_facts: tuple[dict[str, JsonValue], ...] = ()
    power_w: float | None = None
    power_slope: float | None = None
    baselines: dict[BaselineContext, BaselineTaken] = field(default_factory=dict)
    settled: bool | None = None
    done: Done | None = None

    def end(self) -> None:
        """Record that it ended; its last power is not the current one any more."""
        self.gone = True
        self.power_w = self.power_slope = None

    def take(self, message: FromProcess) -> None:
        """Update the state with a message."""
        match message:
            case SamplingStarted():
                self.sampling, self.device_facts = True, message.devices
            case Tick():
                self.power_w, self.power_slope = message.power_w, message.power_slope
            case BaselineTaken():
                self.baselines[message.context] = message
            case Settled():
                self.settled = message.settled
            case Done():
                self.done = message


def progress_of(
    ranks: Sequence[RankStatus], *, phase: PhaseName | None, elapsed_s: float, power_w: float | None
) -> Progress:
    """The progress of an attempt: sums over its ranks, and the fraction of the slowest one."""
    ticks = [rank.tick for rank in ranks if rank.tick is not None]
    rates = [tick.output_rate_tok_s for tick in ticks if tick.output_rate_tok_s is not None]
    fractions = [tick.fraction for tick in ticks if tick.fraction is not None]
    return Progress(
        phase=phase.value if phase else "preparing",
        requests_done=sum(tick.requests_ended for tick in ticks),
        generated_tokens=sum(tick.generated_tokens for tick in ticks),
        elapsed_s=max(0.0, elapsed_s) if phase else 0.0,
        fraction=min(fractions) if fractions else None,
        output_rate_tok_s=sum(rates) if rates else None,
        power_w=power_w,
    )
