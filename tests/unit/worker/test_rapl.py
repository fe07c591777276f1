"""RAPL against a folder that looks as the kernel's does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lem_domain.config.experiment import ExperimentConfig
from lem_worker.sampler.energy_source import SourceUnavailable
from lem_worker.sampler.sources import rapl

CONFIG = ExperimentConfig.model_validate({"backend": "simulated", "model": "m"})
RANGE_UJ = 1_000_000


def zone(root: Path, folder: str, name: str, energy_uj: int = 0) -> Path:
    made = root / folder
    made.mkdir()
    (made / "name").write_text(f"{name}\n")
    (made / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (made / "energy_uj").write_text(f"{energy_uj}\n")
    return made


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def opened() -> tuple[rapl.RaplSource, tuple[str, ...], Clock]:
    clock = Clock()
    source = rapl.RaplSource(CONFIG, clock)
    return source, source.open(()), clock


@pytest.fixture(autouse=True)
def _powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rapl, "POWERCAP", tmp_path)


def test_every_zone_is_named_with_its_socket_and_none_twice(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0")
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:0:1", "dram")
    zone(tmp_path, "intel-rapl:1", "package-1")
    zone(tmp_path, "intel-rapl:1:0", "dram")
    zone(tmp_path, "intel-rapl:2", "psys")
    zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    _, domains, _ = opened()
    assert domains == ("package-0", "core-0", "dram-0", "package-1", "dram-1", "psys")


def test_the_counter_rises_over_a_wrap(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    source, _, clock = opened()
    read = []
    for seconds, raw in ((1, 950_000), (2, 50_000), (3, 60_000)):
        clock.now_ns = seconds * 10**9
        (package / "energy_uj").write_text(str(raw))
        (sample,) = source.sample(clock.now_ns)
        read.append((sample.time_ns, sample.energy_uj, sample.power_mw))
    assert read == [(10**9, 50_000, None), (2 * 10**9, 150_000, 100), (3 * 10**9, 160_000, 10)]


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="RAPL counters"):
        opened()


def test_who_may_not_read_them_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0")
    (package / "energy_uj").chmod(0)
    if os.geteuid() == 0:  # root reads everything
        real = Path.read_text

        def refuse(path: Path, *arguments: object, **keys: object) -> str:
            if path.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **keys)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SourceUnavailable, match=r"energy_uj is readable by root only; .*udev rule"):
        opened()


def test_a_counter_that_goes_away_is_an_error_and_no_zero(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0")
    source, _, _ = opened()
    (package / "energy_uj").unlink()
    with pytest.raises(OSError, match="energy_uj"):
        source.sample(0)
