"""What every energy source must do, as tests that each source's own file inherits.

A file `test_<name>.py` per source derives a class from `SourceConformance` and gives a fixture `rig`: the hardware,
real or simulated, that the source reads in the test.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import StreamName
from lem_domain.wire.workers import Device
from lem_worker.sampler.energy_source import DeviceSample, EnergySource, HostSample, SourceSpec, SourceUnavailable
from lem_worker.sampler.sampling import EnergySampler
from lem_worker.sampler.sources import all_sources

CONFIG = ExperimentConfig.model_validate({"backend": "pytorch", "model": "m"})
ENDING_S = 2.0
"""CodeCarbon's threads look for their end once a second."""
MOST_S = 5.0
"""The slowest cadence that a user can set; a source that is slower would leave ticks without a sample."""


@dataclass
class Rig:
    """Hardware for a source under test; a source's file overrides what is particular."""

    devices: tuple[Device, ...] = ()
    config: ExperimentConfig = CONFIG
    watts: float | None = None
    """The power of every part, where it is known."""

    def work(self) -> None:
        """Let time pass in which energy is used; long enough for a new reading."""
        time.sleep(0.05)

    def remove(self) -> None:
        """Take the hardware away, so that the source can't be opened."""
        raise NotImplementedError

    def fail_one_part(self) -> str | None:
        """Break one of several parts and return its name; None where the parts can only fail together."""
        return None


class Rows:
    """The rows of all streams, by stream."""

    def __init__(self) -> None:
        self.kept: dict[StreamName, list[dict[str, Any]]] = {}

    def __call__(self, stream: StreamName) -> Rows._Stream:
        return Rows._Stream(self.kept.setdefault(stream, []))

    class _Stream:
        def __init__(self, rows: list[dict[str, Any]]) -> None:
            self._rows = rows

        def append(self, **columns: object) -> None:
            self._rows.append(columns)

        def extend(self, **columns: Sequence[object]) -> None:
            raise NotImplementedError


class SourceConformance:
    """Inherit, set `name` and give the fixture `rig`."""

    name: str

    @pytest.fixture
    def spec(self) -> SourceSpec:
        return all_sources()[self.name]

    @pytest.fixture
    def source(self, spec: SourceSpec, rig: Rig) -> Iterator[EnergySource]:
        created = spec.create(rig.config, time.monotonic_ns)
        yield created
        created.close()

    def test_its_descriptor_is_complete(self, spec: SourceSpec) -> None:
        assert spec.name == self.name
        assert 0 <= spec.min_interval_s <= MOST_S
        assert spec.instead_of is None or spec.instead_of in set(all_sources()) - {self.name}

    def test_its_parts_have_unique_names_and_each_sample_belongs_to_one(self, source: EnergySource, rig: Rig) -> None:
        parts = source.open(rig.devices)
        assert parts and len(set(parts)) == len(parts)
        assert [part for part, _ in readings(source, rig)] == list(parts)

    def test_every_reading_gives_one_sample_of_each_part_on_the_monotonic_clock(
        self, source: EnergySource, rig: Rig
    ) -> None:
        parts = source.open(rig.devices)
        last_ns = dict.fromkeys(parts, 0)
        for _ in range(3):
            rig.work()
            before_ns = time.monotonic_ns()
            found = readings(source, rig)
            assert [part for part, _ in found] == list(parts)
            for part, sample in found:
                assert before_ns <= sample.time_ns <= time.monotonic_ns()
                assert last_ns[part] < sample.time_ns
                last_ns[part] = sample.time_ns

    def test_energy_rises_by_power_times_time(self, source: EnergySource, rig: Rig) -> None:
        source.open(rig.devices)
        readings(source, rig)  # power may be a mean since the previous sample
        by_part: dict[str, list[DeviceSample | HostSample]] = {}
        for _ in range(3):
            rig.work()
            for part, sample in readings(source, rig):
                by_part.setdefault(part, []).append(sample)
        for samples in by_part.values():
            for earlier, later in itertools.pairwise(samples):
                joules = joules_of(later) - joules_of(earlier)
                seconds = (later.time_ns - earlier.time_ns) / 1e9
                assert later.power_mw is not None and later.power_mw >= 0
                # Counters have steps; 5 mJ is more than any here.
                assert joules == pytest.approx(later.power_mw / 1000 * seconds, rel=0.02, abs=0.005)
            if rig.watts is not None:
                joules = joules_of(samples[-1]) - joules_of(samples[0])
                watts = joules / ((samples[-1].time_ns - samples[0].time_ns) / 1e9)
                # A wrong unit would be off by a thousand. Where others work, the rig may count long before it is read.
                assert rig.watts / 30 < watts < rig.watts * 30

    def test_missing_hardware_is_reported_with_a_remedy(self, spec: SourceSpec, source: EnergySource, rig: Rig) -> None:
        rig.remove()
        with pytest.raises((SourceUnavailable, ImportError)):
            source.open(rig.devices)
        [report] = sampler_of([spec], rig, Rows()).open(rig.devices)
        assert not report.opened
        assert re.search(r"; \w.*\.$", str(report.reason)), "cause; remedy."

    def test_a_failing_part_invalidates_only_itself(self, spec: SourceSpec, rig: Rig) -> None:
        broken, rows = FailingSource(), Rows()
        ahead_ns = 0

        def clock() -> int:
            return time.monotonic_ns() + ahead_ns

        sampler = EnergySampler([broken.spec, spec], rig.config, rows, clock)
        _, report = sampler.open(rig.devices)
        broken.fails = True
        failed_part = rig.fail_one_part()
        for _ in range(8):
            rig.work()
            ahead_ns += round(MOST_S * 1e9)
            sampler.tick(clock())
        sampler.begin_means()
        rig.work()
        ahead_ns += round(MOST_S * 1e9)
        sampler.tick(clock())
        assert set(sampler.means_w()) == set(report.domains) - {failed_part}
        sampler.close()
        assert "broken on purpose" in str(sampler.reports()[0].reason)
        assert (sampler.reports()[1].reason is None) == (failed_part is None)

    def test_close_releases_everything_and_may_come_twice(self, spec: SourceSpec, rig: Rig) -> None:
        first = spec.create(rig.config, time.monotonic_ns)
        first.close()  # before it was opened
        first.open(rig.devices)  # what libraries load once stays
        first.close()
        time.sleep(ENDING_S)
        before = resources()
        second = spec.create(rig.config, time.monotonic_ns)
        second.open(rig.devices)
        second.sample(time.monotonic_ns())
        second.close()
        second.close()
        deadline = time.monotonic() + 10 * ENDING_S
        while resources() != before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert resources() == before


class FailingSource:
    """A source that raises once `fails` is set."""

    fails = False

    @property
    def spec(self) -> SourceSpec:
        return all_sources()["simulated"]._replace(name="failing", create=lambda config, clock: self)

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:
        return ("psys",)

    def sample(self, now_ns: int) -> Sequence[HostSample]:
        if self.fails:
            raise OSError("broken on purpose")
        return [HostSample("psys", now_ns, 1, 1)]

    def facts(self) -> list[dict[str, Any]]:
        return []

    def close(self) -> None:
        """Nothing is open."""


def readings(source: EnergySource, rig: Rig) -> list[tuple[str, DeviceSample | HostSample]]:
    """One reading: the samples of power and energy, each with the name of its part."""
    found: list[tuple[str, DeviceSample | HostSample]] = []
    for sample in source.sample(time.monotonic_ns()):
        match sample:
            case DeviceSample():
                found.append((rig.devices[sample.device_index].uuid, sample))
            case HostSample():
                found.append((sample.domain, sample))
    return found


def joules_of(sample: DeviceSample | HostSample) -> float:
    """The counter in J."""
    if isinstance(sample, DeviceSample):
        assert sample.energy_mj is not None
        return sample.energy_mj / 1e3
    assert sample.energy_uj is not None
    return sample.energy_uj / 1e6


def sampler_of(plan: Sequence[SourceSpec], rig: Rig, rows: Rows) -> EnergySampler:
    return EnergySampler(plan, rig.config, rows, time.monotonic_ns)


def resources() -> tuple[int, set[str]]:
    """Threads and open files of this process."""
    files = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            files.add(str(descriptor.readlink()))
        except OSError:  # the descriptor of this listing
            continue
    return threading.active_count(), files
