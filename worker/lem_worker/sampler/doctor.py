"""What each energy source would give on this machine, with a reading: the program of `lem-worker doctor`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.errors import LemError
from lem_domain.results.figures import EnergyMethod
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.inventory import cpu_device, gpu_devices
from lem_worker.sampler.energy_source import (
    Coverage,
    DeviceFailed,
    DeviceSample,
    DomainFailed,
    EnergySource,
    HostSample,
    ReadingFailed,
    Sample,
    SourceSpec,
    SourceUnavailable,
)
from lem_worker.sampler.sources import all_sources

_APART_S = 0.3
"""Longer than the longest period between two readings of a GPU's power that is known, 100 ms."""


class Line(NamedTuple):
    """One line of the report; `measured` says whether a device or domain is measured by a meter."""

    part: str
    source: str
    text: str
    measured: bool


def inspect(devices: Sequence[Device]) -> Iterator[Line]:
    """Yield a line for each part of the machine that a source reads, and for each source that can't be opened.

    `devices` are those that the worker would register. A source that replaces another is read only without that one.
    """
    specs = [spec for spec in all_sources().values() if spec.covers is not Coverage.SIMULATED_DEVICES]
    opened: set[str] = set()
    for spec in sorted(specs, key=lambda spec: spec.instead_of is not None):
        if spec.covers is Coverage.GPUS and not any(device.kind is DeviceKind.GPU for device in devices):
            continue
        if spec.instead_of in opened:
            yield Line("host", spec.name, f"not needed, because {spec.instead_of} can be read", measured=False)
            continue
        # The settings of an experiment change no reading.
        config = ExperimentConfig.model_validate({"backend": "pytorch", "model": "none"})
        source = spec.create(config, time.monotonic_ns)
        try:
            parts = source.open(devices)
        except (SourceUnavailable, ImportError, OSError, RuntimeError) as error:
            yield Line("GPUs" if spec.covers is Coverage.GPUS else "host", spec.name, f"can't be read: {error}", False)
            continue
        opened.add(spec.name)
        try:
            yield from _read(spec, source, parts, devices)
        finally:
            source.close()


def _read(spec: SourceSpec, source: EnergySource, parts: Sequence[str], devices: Sequence[Device]) -> Iterator[Line]:
    samples: list[Sample] = [*source.sample(time.monotonic_ns())]
    time.sleep(max(_APART_S, spec.min_interval_s))
    samples += source.sample(time.monotonic_ns())
    facts = {fact.get("uuid"): fact for fact in source.facts()}
    is_meter = spec.method is not EnergyMethod.MODELLED
    for part in parts:
        readings = [_reading(sample) for sample in samples if _part(sample, devices) == part]
        found = [reading for reading in readings if reading is not None]
        text = found[-1] if found else "gave no reading"
        fact = facts.get(part, {})
        if reading := fact.get("power_reading"):
            text += f"; power is the {reading} one"
        unsupported = fact.get("unsupported")
        if isinstance(unsupported, list) and unsupported:
            text += f"; not offered here: {', '.join(str(name) for name in unsupported)}"
        failed = [one.reason for one in samples if isinstance(one, ReadingFailed) and part in one.reason]
        kind = "measured" if is_meter else "modelled, not measured"
        yield Line(part, spec.name, f"{kind}: {'; '.join([text, *failed])}", measured=is_meter and bool(found))
    for sample in samples:
        if isinstance(sample, DeviceFailed):
            yield Line(devices[sample.device_index].uuid, spec.name, f"can't be read: {sample.reason}", measured=False)
        elif isinstance(sample, DomainFailed):
            yield Line(sample.domain, spec.name, f"can't be read: {sample.reason}", measured=False)


def _part(sample: Sample, devices: Sequence[Device]) -> str | None:
    match sample:
        case DeviceSample():
            return devices[sample.device_index].uuid
        case HostSample():
            return sample.domain
    return None


def _reading(sample: Sample) -> str | None:
    """Power and counter of a sample, as text; None where it has neither."""
    match sample:
        case DeviceSample():
            power_mw, joules = sample.power_mw, None if sample.energy_mj is None else sample.energy_mj / 1e3
        case HostSample():
            power_mw, joules = sample.power_mw, None if sample.energy_uj is None else sample.energy_uj / 1e6
        case _:
            return None
    texts = [f"{power_mw / 1000:.1f} W"] if power_mw is not None else []
    if joules is not None:
        texts.append(f"energy counter at {joules:.1f} J")
    return ", ".join(texts) or None


def main() -> int:
    """Print the report; return 1 where no part of the machine is measured by a meter."""
    try:
        devices = gpu_devices() or (cpu_device(),)
    except LemError as error:
        print(f"lem-worker: {error}", file=sys.stderr)  # noqa: T201 - a command's output
        return 1
    for device in devices:
        print(f"{device.uuid}: {device.name}")  # noqa: T201
    measured = False
    for line in inspect(devices):
        measured |= line.measured
        print(f"{line.part}: {line.source}: {line.text}", flush=True)  # noqa: T201
    if not measured:
        print("lem-worker: no meter measures a part of this machine; the lines above say why.", file=sys.stderr)  # noqa: T201
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
