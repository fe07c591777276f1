"""The protocol between the sampler and whatever can tell power or energy, and the table of such sources."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast

from pydantic.types import JsonValue

from lem_domain.config.experiment import BackendName, ExperimentConfig
from lem_domain.errors import LemError
from lem_domain.results.run import EnergyMethod
from lem_domain.wire.workers import Device, DeviceKind


class SourceUnavailable(LemError):
    """A source that can't be read here, or not any more."""


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


class HostSample(NamedTuple):
    """One row of the stream `host_power`."""

    domain: str
    time_ns: int
    energy_uj: int | None
    power_mw: int | None
    method: str


class SourceEvent(NamedTuple):
    """One row of the stream `events`: something that a source noticed."""

    time_ns: int
    kind: str
    detail: dict[str, JsonValue]


class ReadingFailed(NamedTuple):
    """A reading that a device offers could not be had; it is null until it is had again."""

    device_index: int
    time_ns: int
    reading: str
    reason: str
    column: str | None = None
    """Where it stands in the stream `power`, if it does."""


class DeviceFailed(NamedTuple):
    """A device tells neither power nor energy any more; its source goes on with the others."""

    device_index: int
    time_ns: int
    reason: str


Sample = DeviceSample | HostSample | SourceEvent | ReadingFailed | DeviceFailed


class EnergySource(Protocol):
    """Something that tells power or energy; any method may raise, and the sampler then goes on without it."""

    name: str
    method: EnergyMethod
    min_interval_s: float
    """Reading it more often gives nothing new; 0 is as often as the sampler likes."""

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:
        """Begin; the answer names what it covers: devices' UUIDs or parts of the host."""

    def sample(self, now_ns: int) -> Sequence[Sample]:
        """What it says now."""

    def facts(self) -> list[dict[str, JsonValue]]:
        """What it knows of each device that does not change (see `devices` in the sampler's summary)."""

    def close(self) -> None:
        """End."""


class _Entry(NamedTuple):
    module: str
    factory: str


_SOURCES = {
    "nvml": _Entry("lem_worker.sampler.sources.nvml", "NvmlSource"),
    "rapl": _Entry("lem_worker.sampler.sources.rapl", "RaplSource"),
    "codecarbon": _Entry("lem_worker.sampler.sources.codecarbon", "CodeCarbonSource"),
    "simulated": _Entry("lem_worker.sampler.sources.simulated", "SimulatedSource"),
}


class PlannedSource(NamedTuple):
    """A source to open."""

    name: str
    instead_of: str | None = None
    """It is only opened where this one is not there."""
    optional: bool = False
    """Something else takes its place where it is not there, so that this is no failure."""


def plan_sources(config: ExperimentConfig, devices: Sequence[Device]) -> tuple[PlannedSource, ...]:
    """The sources to open: those named, or with `auto` whatever measures the leased devices and the host, and
    CodeCarbon's model only where nothing measures the host."""
    if not config.record.power:
        return ()
    if config.energy.sources != "auto":
        return tuple(PlannedSource(name) for name in config.energy.sources)
    if config.backend is BackendName.SIMULATED:
        return (PlannedSource("simulated"),)
    gpus = (PlannedSource("nvml"),) if any(device.kind is DeviceKind.GPU for device in devices) else ()
    return (*gpus, PlannedSource("rapl", optional=True), PlannedSource("codecarbon", instead_of="rapl"))


def create_source(name: str, config: ExperimentConfig, clock: Callable[[], int]) -> EnergySource:
    """A source that is not open yet; only the asked one's module is imported.

    Raises:
        SourceUnavailable: what it needs is not installed.
    """
    entry = _SOURCES[name]
    try:
        factory = getattr(importlib.import_module(entry.module), entry.factory)
    except ImportError as error:
        raise SourceUnavailable(
            f"the source {name} needs the package {error.name}; install llm-energy-measurement[worker]."
        ) from error
    return cast("EnergySource", factory(config, clock))
