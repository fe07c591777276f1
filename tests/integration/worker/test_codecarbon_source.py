"""CodeCarbon for real: cumulative counters that grow with the modelled power, whatever a settings file says."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.sampler.energy_source import HostSample, SourceUnavailable
from lem_worker.sampler.sources.codecarbon import CodeCarbonSource

CONFIG = ExperimentConfig.model_validate({"model": "m"})
CPU = (Device(uuid="CPU-0", kind=DeviceKind.CPU, name="cpu"),)


def burn(seconds: float) -> None:
    """Work that takes time; the model needs some load and some duration."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


@pytest.fixture
def source() -> Iterator[CodeCarbonSource]:
    under_test = CodeCarbonSource(CONFIG, time.monotonic_ns)
    yield under_test
    under_test.close()


def samples_of(source: CodeCarbonSource, count: int) -> dict[str, list[HostSample]]:
    found: dict[str, list[HostSample]] = {"package": [], "dram": []}
    for _ in range(count):
        burn(0.2)
        for sample in source.sample(time.monotonic_ns()):
            found[sample.domain].append(sample)
    return found


def test_counters_grow_by_power_times_time_without_gaps(source: CodeCarbonSource) -> None:
    assert source.open(CPU) == ("package", "dram")
    for samples in samples_of(source, 4).values():
        for earlier, later in itertools.pairwise(samples):
            seconds = (later.time_ns - earlier.time_ns) / 1e9
            assert earlier.energy_uj is not None
            assert later.energy_uj is not None
            assert later.power_mw is not None
            assert later.power_mw > 0
            # Power is rounded to a milliwatt and energy to a microjoule.
            assert later.energy_uj - earlier.energy_uj == pytest.approx(later.power_mw * 1000 * seconds, rel=1e-3)


def test_the_model_is_codecarbons_own(source: CodeCarbonSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODECARBON_FORCE_RAM_POWER", "12.5")
    source.open(CPU)
    burn(0.5)
    samples = {sample.domain: sample for sample in source.sample(time.monotonic_ns())}
    assert samples["dram"].power_mw == pytest.approx(12_500, rel=0.05)


def test_a_pue_from_outside_does_not_slip_into_the_energy(
    source: CodeCarbonSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODECARBON_FORCE_RAM_POWER", "12.5")
    monkeypatch.setenv("CODECARBON_PUE", "3")
    source.open(CPU)
    burn(0.5)
    samples = {sample.domain: sample for sample in source.sample(time.monotonic_ns())}
    assert samples["dram"].power_mw == pytest.approx(12_500, rel=0.05)


def test_nothing_is_written_next_to_the_evidence(
    source: CodeCarbonSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    source.open(CPU)
    samples_of(source, 1)
    source.close()
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_does_not_measure_is_an_error_not_a_zero(
    source: CodeCarbonSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.open(CPU)
    assert source._tracker is not None
    monkeypatch.setattr(source._tracker, "stop_task", lambda: None)
    with pytest.raises(SourceUnavailable, match="codecarbon"):
        source.sample(time.monotonic_ns())
    monkeypatch.undo()
