"""What the sampler of an attempt has said."""

from __future__ import annotations

from pydantic.types import JsonValue

from lem_worker.process.protocol import BaselineContext, BaselineTaken, FromProcess, SamplingStarted, Settled, Tick


class SamplerState:
    """Grows with its messages."""

    def __init__(self) -> None:
        self.sampling = False
        """It has its first samples."""
        self.gone = False
        """It ended without sealing."""
        self.failure: str | None = None
        """Why it has no samples at all."""
        self.device_facts: tuple[dict[str, JsonValue], ...] = ()
        self.power_w: float | None = None
        self.power_slope: float | None = None
        self.baselines: dict[BaselineContext, BaselineTaken] = {}
        self.settled: bool | None = None

    def end(self) -> None:
        """It is gone: nobody tells the power any more."""
        self.gone = True
        self.power_w = self.power_slope = None

    def take(self, message: FromProcess) -> None:
        """Something it said."""
        match message:
            case SamplingStarted():
                self.sampling, self.device_facts = True, message.devices
            case Tick():
                self.power_w, self.power_slope = message.power_w, message.power_slope
            case BaselineTaken():
                self.baselines[message.context] = message
            case Settled():
                self.settled = message.settled
