"""The contract between the sampler and an energy source: what a source declares, implements and reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.errors import LemError
from lem_domain.results.figures import EnergyMethod
from lem_domain.wire.workers import Device
from lem_worker.process.evidence_rows import Clock


class SourceUnavailable(LemError):
    """A source can't be read on this machine, or not any more; the message ends with a remedy."""


class DeviceSample(NamedTuple):
    """One row of the stream `power`."""

    device_index: int
    time_ns: int
    power_mw: int | None = None
    energy_mj: int | None = None
    memory_used_bytes: int | None = None
    gpu_percent: int | None = None
    memory_percent: int | None = None
    temperature_c: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: int | None = None
    power_violation_ns: int | None = None
    thermal_violation_ns: int | None = None
    board_violation_ns: int | None = None
    reliability_violation_ns: int | None = None


class HostSample(NamedTuple):
    """One row of the stream `host_power`, without its method, which the source's spec gives."""

    domain: str
    time_ns: int
    energy_uj: int | None
    power_mw: int | None


class SourceEvent(NamedTuple):
    """One row of the stream `events`: an observation of a source."""

    time_ns: int
    kind: str
    detail: dict[str, JsonValue]


class ReadingFailed(NamedTuple):
    """A reading that a device offers has failed; it is null until it succeeds again."""

    device_index: int
    time_ns: int
    reading: str
    reason: str
    column: str | None = None
    """Its column in the stream `power`; None where it has none."""


class ReadingReturned(NamedTuple):
    """A reading that had failed, or was refused at first, has succeeded."""

    device_index: int
    time_ns: int
    reading: str
    away_s: float


class DeviceFailed(NamedTuple):
    """A device reports neither power nor energy for so long that it counts as failed; it is still asked."""

    device_index: int
    time_ns: int
    reason: str


class DeviceReturned(NamedTuple):
    """A device that counted as failed reports power or energy again."""

    device_index: int
    time_ns: int
    away_s: float


class DomainSilent(NamedTuple):
    """A domain of the host can't be read; its power is unknown until it is."""

    domain: str
    time_ns: int
    reason: str


class DomainFailed(NamedTuple):
    """A domain of the host could not be read for so long that it counts as failed; it is still asked."""

    domain: str
    time_ns: int
    reason: str


Sample = (
    DeviceSample
    | HostSample
    | SourceEvent
    | ReadingFailed
    | ReadingReturned
    | DeviceFailed
    | DeviceReturned
    | DomainSilent
    | DomainFailed
)


class EnergySource(Protocol):
    """Reads power or energy. Any method may raise; the sampler then continues without the source."""

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:
        """Start reading. Return the unique names of its parts: UUIDs of leased devices, or domains of the host."""

    def sample(self, now_ns: int) -> Sequence[Sample]:
        """Read all parts once; a sample has the time of its reading."""

    def facts(self) -> list[dict[str, JsonValue]]:
        """Constant facts of each device, for `devices` in the sampler's summary."""
        return []

    def close(self) -> None:
        """Release everything that `open` acquired."""
        return  # mypy takes a protocol method with an empty body for abstract


class Coverage(Enum):
    """The hardware that a source reads. `energy.sources: auto` selects sources by it."""

    GPUS = "the leased GPUs"
    HOST = "the host's CPU and memory"
    SIMULATED_DEVICES = "the leased simulated devices"


class SourceSpec(NamedTuple):
    """The descriptor of an energy source: the constant `SPEC` of a module in `lem_worker.sampler.sources`."""

    name: str
    """As in `energy.sources` and in results; also the name of its module."""
    covers: Coverage
    method: EnergyMethod
    """How its energy figures are obtained."""
    create: Callable[[ExperimentConfig, Clock], EnergySource]
    """Return a source that is not open yet. It imports no vendor library, because all specs are always imported."""
    min_interval_s: float = 0.0
    """Reading it more often gives nothing new."""
    instead_of: str | None = None
    """Under `auto` it is opened only where the source of this name could not be opened."""
