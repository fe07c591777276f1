"""RAPL against a folder that looks as the kernel's does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lem_domain.config.experiment import ExperimentConfig
from lem_worker.sampler.energy_source import (
    DomainFailed,
    DomainSilent,
    HostSample,
    Sample,
    SourceEvent,
    SourceUnavailable,
)
from lem_worker.sampler.sources import rapl

CONFIG = ExperimentConfig.model_validate({"backend": "simulated", "model": "m"})
RANGE_UJ = 262_143_328_850


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
    monkeypatch.setenv("LEM_WORKER_POWERCAP_DIR", str(tmp_path))


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


def test_zones_in_the_folder_of_their_package_are_found_as_well(tmp_path: Path) -> None:
    """So they are in /sys/devices/virtual/powercap, which a container may have mounted anywhere."""
    control = tmp_path / "intel-rapl"
    control.mkdir()
    package = zone(control, "intel-rapl:1", "package-1", 3_000_000)
    zone(package, "intel-rapl:1:0", "dram")
    (tmp_path / "intel-rapl-mmio").mkdir()
    zone(tmp_path / "intel-rapl-mmio", "intel-rapl-mmio:0", "package-1")
    _, domains, _ = opened()
    assert domains == ("package-1", "dram-1")


def test_links_to_the_zones_are_read_once(tmp_path: Path) -> None:
    """/sys/class/powercap has a link to each zone, also to those in the folder of another."""
    (tmp_path / "devices").mkdir()
    package = zone(tmp_path / "devices", "intel-rapl:0", "package-0")
    core = zone(package, "intel-rapl:0:0", "core")
    (tmp_path / "class").mkdir()
    for folder in (package, core):
        (tmp_path / "class" / folder.name).symlink_to(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEM_WORKER_POWERCAP_DIR", str(tmp_path / "class"))
        _, domains, _ = opened()
    assert domains == ("package-0", "core-0")


def test_without_the_variable_the_kernel_s_folder_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:7", "package-of-the-variable")
    assert opened()[1] == ("package-of-the-variable",)
    monkeypatch.setenv("LEM_WORKER_POWERCAP_DIR", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rapl, "_POWERCAP", tmp_path / "none")
        with pytest.raises(SourceUnavailable, match=str(tmp_path / "none")):
            opened()


def test_the_counter_rises_over_a_wrap(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 100_000)
    source, _, clock = opened()
    read = []
    for seconds, raw in ((1, RANGE_UJ - 50_000), (2, 50_000), (3, 60_000)):
        clock.now_ns = seconds * 10**9
        (package / "energy_uj").write_text(str(raw))
        (sample,) = source.sample(clock.now_ns)
        assert isinstance(sample, HostSample)
        read.append((sample.time_ns, sample.energy_uj, sample.power_mw))
    assert read == [(10**9, 50_000, 50), (2 * 10**9, 150_000, 100), (3 * 10**9, 160_000, 10)]


def test_a_machine_without_counters_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="RAPL counters"):
        opened()


def test_a_refusal_to_read_them_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0")
    (package / "energy_uj").chmod(0)
    if os.geteuid() == 0:  # root reads everything
        real = Path.read_text

        def refuse(path: Path, *arguments: object, **keys: object) -> str:
            if path.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **keys)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SourceUnavailable, match=r"energy_uj \(package-0\) is readable by root only; .*udev rule"):
        opened()


def stepped(source: rapl.RaplSource, clock: Clock, seconds: float) -> list[Sample]:
    clock.now_ns += round(seconds * 1e9)
    return list(source.sample(clock.now_ns))


@pytest.mark.parametrize(
    ("before_uj", "after_uj", "seconds", "limit_w", "words"),
    [
        pytest.param(10_000_000, 1_000, 1, None, "a reset", id="fell to zero, as no wrap can"),
        pytest.param(RANGE_UJ - 5, 3_000_000_000, 1, None, "a reset", id="fell by a wrap of 3 kW"),
        pytest.param(10_000_000, 3_000_000_000, 1, None, "rose", id="leapt by 3 kW"),
        pytest.param(RANGE_UJ - 5, 500_000_000, 1, 65, "more than 260 W", id="over four times its limit"),
        pytest.param(10_000_000, 20_000_000, 200, None, "wrapped several times", id="a pause of 200 s"),
    ],
)
def test_a_step_that_no_package_can_take_is_a_gap_with_its_reason_and_no_energy(
    tmp_path: Path, before_uj: int, after_uj: int, seconds: float, limit_w: int | None, words: str
) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", before_uj)
    if limit_w is not None:
        (package / "constraint_0_power_limit_uw").write_text(str(limit_w * 10**6))
        (package / "constraint_1_power_limit_uw").write_text("0")  # not set
    source, _, clock = opened()
    [first] = stepped(source, clock, 0.05)
    (package / "energy_uj").write_text(str(after_uj))
    event, sample = stepped(source, clock, seconds)
    assert isinstance(event, SourceEvent) and event.kind == "counter_gap"
    assert event.detail["domain"] == "package-0" and words in str(event.detail["reason"])
    assert isinstance(sample, HostSample) and (sample.energy_uj, sample.power_mw) == (-1, None)
    (package / "energy_uj").write_text(str(after_uj + 5_000_000))
    [after] = stepped(source, clock, 0.1)
    assert isinstance(first, HostSample) and isinstance(after, HostSample)
    assert first.energy_uj == 0 and after.energy_uj == 4_999_999 and after.power_mw == 50_000


def test_after_a_gap_the_counter_is_lower_so_that_no_energy_over_it_can_be_computed(tmp_path: Path) -> None:
    """At the moment of the gap: later it has risen again by what has been counted since."""
    package = zone(tmp_path, "intel-rapl:0", "package-0", 10_000_000)
    source, _, clock = opened()
    values = []
    for raw in (20_000_000, 1_000, 30_001_000, 30_002_000):
        (package / "energy_uj").write_text(str(raw))
        values += [one.energy_uj for one in stepped(source, clock, 1) if isinstance(one, HostSample)]
    assert values == [10_000_000, 9_999_999, 39_999_999, 40_000_999]


def test_zones_of_one_name_are_kept_apart_by_their_paths(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 10_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 7_000_000)
    zone(tmp_path, "intel-rapl:1", "package-0", 90_000_000)
    zone(tmp_path, "intel-rapl:1:0", "core", 70_000_000)
    source, domains, clock = opened()
    assert domains == ("package-0", "core-0", "package-0@intel-rapl:1", "core-0@intel-rapl:1:0")
    assert [one.domain for one in stepped(source, clock, 1) if isinstance(one, HostSample)] == list(domains)


def test_a_zone_that_shows_the_counter_of_another_is_kept_and_not_added(tmp_path: Path) -> None:
    """Dies of AMD's packages do."""
    zone(tmp_path, "intel-rapl:0", "package-0", 10_000_000)
    zone(tmp_path, "intel-rapl:1", "package-0", 10_000_300)
    source, domains, clock = opened()
    assert domains == ("package-0", "repeated-package-0@intel-rapl:1")
    event, *samples = stepped(source, clock, 1)
    assert isinstance(event, SourceEvent)
    assert (event.kind, event.detail) == ("repeated_counter", {"domain": domains[1], "repeats": domains[0]})
    assert len(samples) == 2


def test_a_zone_that_goes_away_ends_alone_and_may_come_back(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 2_000_000)
    source, _, clock = opened()
    (second / "energy_uj").unlink()
    found = [stepped(source, clock, 1) for _ in range(12)]
    assert all(one.domain == "package-0" for step in found for one in step if isinstance(one, HostSample))
    [silent] = [one for step in found for one in step if isinstance(one, DomainSilent)]
    [failed] = [one for step in found for one in step if isinstance(one, DomainFailed)]
    assert silent.domain == failed.domain == "package-1"
    assert "energy_uj" in failed.reason and "does not exist" in failed.reason
    assert 5 <= (failed.time_ns - silent.time_ns) / 1e9 <= 7
    (second / "energy_uj").write_text("32000000")
    back = [one for _ in range(4) for one in stepped(source, clock, 1) if getattr(one, "domain", "") != "package-0"]
    assert isinstance(back[0], SourceEvent) and back[0].kind == "source_returned"
    assert isinstance(back[1], HostSample) and back[1].energy_uj == 30_000_000, "its counter spans the gap"


def test_a_zone_that_may_not_be_read_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    (zone(tmp_path, "intel-rapl:1", "package-1") / "energy_uj").unlink()
    source, domains, clock = opened()
    assert domains == ("package-0",)
    failed, sample = stepped(source, clock, 1)
    assert isinstance(failed, DomainFailed) and failed.domain == "package-1" and "the mount" in failed.reason
    assert isinstance(sample, HostSample)


def test_zones_that_a_container_hides_are_said_to_lack_their_mount(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    with pytest.raises(SourceUnavailable, match=r"/sys/devices/virtual/powercap"):
        opened()
