"""The cadence, and sampling that goes on when a source fails."""

import json
from collections.abc import Sequence
from functools import partial

import pytest
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import STREAMS, StreamName
from lem_domain.results.figures import EnergyMethod
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.process.evidence_rows import Clock
from lem_worker.sampler.cadence import DeadlineGrid
from lem_worker.sampler.energy_source import (
    Coverage,
    DeviceFailed,
    DeviceSample,
    EnergySource,
    HostSample,
    ReadingFailed,
    ReadingReturned,
    Sample,
    SourceEvent,
    SourceSpec,
)
from lem_worker.sampler.sampling import NOTED_FAILURES, EnergyRequired, EnergySampler
from lem_worker.sampler.sources import all_sources, plan_sources

DEVICES = (
    Device(uuid="SIM-0", kind=DeviceKind.SIMULATED, name="simulated"),
    Device(uuid="SIM-1", kind=DeviceKind.SIMULATED, name="simulated"),
)
CPU = Device(uuid="CPU-0", kind=DeviceKind.CPU, name="cpu")
GPU = Device(uuid="GPU-0", kind=DeviceKind.GPU, name="gpu")


def config(**changes: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"backend": "simulated", "model": "m", **changes})


# --- cadence ----------------------------------------------------------------------------------------------------------


def test_ticks_on_time_are_neither_late_nor_missed() -> None:
    grid = DeadlineGrid(1000, 100)
    assert not grid.tick(1099)
    assert [grid.tick(now) for now in (1100, 1210, 1350)] == [True] * 3
    assert (grid.ticks, grid.late, grid.missed, grid.next_ns) == (3, 0, 0, 1400)


def test_a_late_tick_does_not_move_the_grid() -> None:
    grid = DeadlineGrid(0, 100)
    assert grid.tick(160)
    assert (grid.ticks, grid.late, grid.missed, grid.next_ns) == (1, 1, 0, 200)


def test_deadlines_that_were_slept_through_are_missed_not_caught_up() -> None:
    grid = DeadlineGrid(0, 100)
    assert grid.tick(455)
    assert (grid.ticks, grid.late, grid.missed, grid.next_ns) == (1, 1, 3, 500)
    assert not grid.tick(499)


# --- sources ----------------------------------------------------------------------------------------------------------


class Source:
    """Fails when told to."""

    def __init__(self, name: str, fails: str | None = None, *, min_interval_s: float = 0.0) -> None:
        self.name = name
        self.min_interval_s = min_interval_s
        self.fails = fails
        self.closed = False

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:
        self._maybe_fail("open")
        return ("package",)

    def sample(self, now_ns: int) -> Sequence[Sample]:
        self._maybe_fail("sample")
        return [
            HostSample("package", now_ns, 5, 7000),
            DeviceSample(0, now_ns, power_mw=3000, energy_mj=1),
        ]

    def facts(self) -> list[dict[str, JsonValue]]:
        return [{"index": 0, "name": self.name}]

    def close(self) -> None:
        self.closed = True
        self._maybe_fail("close")

    def _maybe_fail(self, where: str) -> None:
        if self.fails == where:
            raise RuntimeError(f"no {where} today.")


class Table:
    def __init__(self) -> None:
        self.rows: dict[StreamName, list[dict[str, object]]] = {}

    def __call__(self, stream: StreamName) -> "Table.Stream":
        return Table.Stream(self.rows.setdefault(stream, []), stream)

    class Stream:
        def __init__(self, rows: list[dict[str, object]], stream: StreamName) -> None:
            self.rows, self.names = rows, {column.name for column in STREAMS[stream]}

        def append(self, **columns: object) -> None:
            assert set(columns) == self.names
            self.rows.append(columns)

        def extend(self, **columns: object) -> None:
            raise NotImplementedError


def _created(source: Source, config: ExperimentConfig, clock: Clock) -> Source:
    return source


def sampling(
    *sources: Source, required: bool = False, instead_of: dict[str, str] | None = None
) -> tuple[EnergySampler, Table]:
    table = Table()
    plan = [
        SourceSpec(
            source.name,
            Coverage.HOST,
            EnergyMethod.COUNTER,
            partial(_created, source),
            min_interval_s=source.min_interval_s,
            instead_of=(instead_of or {}).get(source.name),
        )
        for source in sources
    ]
    return EnergySampler(plan, config(energy={"required": required}), table, lambda: 42), table


def test_a_source_that_can_not_open_says_why_and_the_others_continue() -> None:
    under_test, table = sampling(Source("bad", "open"), Source("good"))
    bad, good = under_test.open(DEVICES)
    assert (bad.opened, bad.reason) == (False, "RuntimeError: no open today.")
    assert (good.opened, good.method, good.domains, good.reason) == (True, "counter", ("package",), None)
    assert len(table.rows[StreamName.HOST_POWER]) == 1
    assert [row["kind"] for row in table.rows[StreamName.EVENTS]] == ["source_failed"]


def test_a_source_that_fails_in_the_middle_is_not_asked_again() -> None:
    source = Source("dying")
    under_test, table = sampling(source)
    under_test.open(DEVICES)
    source.fails = "sample"
    under_test.tick(50)
    source.fails = None
    under_test.tick(60)
    under_test.close()
    (report,) = under_test.reports()
    assert (report.opened, report.reason) == (True, "RuntimeError: no sample today.")
    assert [row["time_ns"] for row in table.rows[StreamName.POWER]] == [42]


def test_a_source_that_fails_at_the_end_keeps_its_samples() -> None:
    under_test, table = sampling(Source("last", "close"))
    under_test.open(DEVICES)
    under_test.tick(50)
    under_test.close()
    assert under_test.reports()[0].reason == "RuntimeError: no close today."
    assert len(table.rows[StreamName.POWER]) == 3


@pytest.mark.proves("energy.required", on="worker")
@pytest.mark.parametrize("where", ["open", "sample", "close"])
def test_required_energy_makes_any_failure_fatal(where: str) -> None:
    under_test, _ = sampling(Source("only", where), required=True)
    with pytest.raises(EnergyRequired, match=rf"only failed and energy.required is set: .*no {where} today"):
        under_test.open(DEVICES)
        under_test.close()


def test_a_slow_source_is_read_as_often_as_it_can_be_and_at_the_end() -> None:
    slow, fast = Source("slow", min_interval_s=1.0), Source("fast")
    under_test, table = sampling(slow, fast)
    under_test.open(DEVICES)
    for now in range(0, 2_500_000_001, 500_000_000):
        under_test.tick(42 + now)
    under_test.close()
    assert slow.closed
    assert len(table.rows[StreamName.POWER]) == (1 + 2 + 1) + (1 + 6 + 1)


def test_the_power_is_that_of_the_devices_where_they_report() -> None:
    under_test, _ = sampling(Source("one"))
    assert under_test.power_w() is None
    under_test.open(DEVICES)
    assert under_test.power_w() == 3.0


class Devices(Source):
    """Tells what the test puts there."""

    def __init__(self, *says: Sample, name: str = "devices") -> None:
        super().__init__(name)
        self.says = says

    def sample(self, now_ns: int) -> Sequence[Sample]:
        self._maybe_fail("sample")
        return self.says


def warm(device: int, power_mw: int, temperature_c: int) -> DeviceSample:
    return DeviceSample(device, 42, power_mw=power_mw, temperature_c=temperature_c)


def test_what_a_dead_source_reported_last_is_not_reported_any_more() -> None:
    source = Devices(warm(0, 3000, 70), HostSample("package-0", 42, 5, 7000))
    under_test, _ = sampling(source)
    under_test.open(DEVICES)
    under_test.begin_means()
    under_test.tick(50)
    assert (under_test.power_w(), under_test.hottest_c()) == (3.0, 70)
    assert under_test.means_w() == {"SIM-0": 3.0, "package-0": 7.0}
    source.fails = "sample"
    under_test.tick(60)
    assert (under_test.power_w(), under_test.hottest_c(), under_test.means_w()) == (None, None, {})


def test_the_hosts_power_does_not_replace_that_of_devices_that_died() -> None:
    devices, host = Devices(warm(0, 3000, 70)), Devices(HostSample("package-0", 42, 5, 7000), name="host")
    under_test, _ = sampling(devices, host)
    under_test.open(DEVICES)
    devices.fails = "sample"
    under_test.tick(50)
    assert under_test.power_w() is None
    assert list(under_test.means_w()) == ["package-0"]


def test_a_device_that_failed_leaves_no_sum_and_no_hottest_and_the_other_its_mean() -> None:
    source = Devices(warm(0, 3000, 70), warm(1, 4000, 60))
    under_test, table = sampling(source)
    under_test.open(DEVICES)
    assert (under_test.power_w(), under_test.hottest_c()) == (7.0, 70)
    source.says = (DeviceFailed(0, 50, "It is lost."), warm(1, 4000, 60))
    under_test.tick(50)
    source.says = (DeviceFailed(1, 60, "So is this."),)
    under_test.begin_means()
    assert (under_test.power_w(), under_test.hottest_c()) == (None, None)
    under_test.tick(60)
    assert under_test.reports()[0].reason == "It is lost. So is this."
    assert [json.loads(str(row["detail"])) for row in table.rows[StreamName.EVENTS]] == [
        {"source": "devices", "device": "SIM-0", "reason": "It is lost."},
        {"source": "devices", "device": "SIM-1", "reason": "So is this."},
    ]


def test_a_device_that_fails_is_fatal_where_energy_is_required() -> None:
    under_test, _ = sampling(Devices(DeviceFailed(0, 50, "It is lost.")), required=True)
    with pytest.raises(EnergyRequired, match=r"devices failed and energy.required is set: It is lost"):
        under_test.open(DEVICES)


@pytest.mark.parametrize("column", ["power_mw", "temperature_c", None])
def test_a_reading_that_failed_is_not_held_until_it_is_reported_again(column: str | None) -> None:
    source = Devices(warm(0, 3000, 70), warm(1, 4000, 60))
    under_test, table = sampling(source, required=True)
    under_test.open(DEVICES)
    for now in (50, 150):
        source.says = (ReadingFailed(0, 50, "it", "It could not be read.", column), warm(1, 5000, 61))
        under_test.tick(now)
        assert under_test.power_w() == (None if column == "power_mw" else 8.0)
        assert under_test.hottest_c() == (None if column == "temperature_c" else 70)
        source.says = (warm(0, 3000, 70), warm(1, 4000, 60))
        under_test.tick(now + 50)
        assert (under_test.power_w(), under_test.hottest_c()) == (7.0, 70)
    assert under_test.reports()[0].reason is None
    told = {"device_index": 0, "reading": "it", "reason": "It could not be read."}
    for event in table.rows[StreamName.EVENTS]:
        assert (event["kind"], event["time_ns"], json.loads(str(event["detail"]))) == ("reading_failed", 50, told)
    assert under_test.failures() == [{"device_index": 0, "reading": "it", "times": 2}]


def test_a_reading_that_fails_again_and_again_is_reported_a_few_times_and_counted() -> None:
    source = Devices(warm(0, 3000, 70))
    under_test, table = sampling(source)
    under_test.open(DEVICES)
    for now in range(100, 200):
        source.says = (ReadingFailed(0, now, "it", "It could not be read."), ReadingReturned(0, now + 1, "it", 0.1))
        under_test.tick(now)
    kinds = [event["kind"] for event in table.rows[StreamName.EVENTS]]
    assert kinds == ["reading_failed", "reading_returned"] * NOTED_FAILURES
    assert under_test.failures() == [{"device_index": 0, "reading": "it", "times": 100}]


# --- the simulated source and the choice of sources -------------------------------------------------------------------


@pytest.mark.proves("simulated.power_w", on="simulated")
def test_the_simulated_counter_is_the_integral_of_the_power() -> None:
    clock = iter([1_000_000_000])
    source = all_sources()["simulated"].create(config(simulated={"power_w": 250.0}), lambda: next(clock))
    assert source.open((*DEVICES, CPU)) == ("SIM-0", "SIM-1")
    samples = source.sample(3_500_000_000)
    assert samples == [DeviceSample(index, 3_500_000_000, power_mw=250_000, energy_mj=625_000) for index in (0, 1)]


@pytest.mark.parametrize(
    ("changes", "devices"),
    [({}, (CPU,)), ({"backend": "pytorch"}, DEVICES)],
)
def test_the_simulated_source_refuses_what_is_not_simulated(
    changes: dict[str, str], devices: tuple[Device, ...]
) -> None:
    source = all_sources()["simulated"].create(config(**changes), lambda: 0)
    with pytest.raises(Exception, match=r"remove it from energy.sources"):
        source.open(devices)


def planned(devices: Sequence[Device], **changes: object) -> list[str]:
    return [source.name for source in plan_sources(config(**changes), devices)]


@pytest.mark.proves("energy.sources", on="worker")
def test_auto_takes_the_sources_that_fit_and_a_list_is_honoured() -> None:
    assert planned(DEVICES) == ["simulated"]
    assert planned((CPU,), backend="pytorch") == ["rapl", "codecarbon"]
    assert planned((GPU,), backend="pytorch") == ["nvml", "rapl", "codecarbon"]
    assert planned((CPU,), energy={"sources": ["codecarbon", "simulated"]}) == ["codecarbon", "simulated"]


SUBSTITUTE = {"model": "meter"}


def test_a_model_is_not_opened_where_a_meter_is() -> None:
    model = Source("model")
    under_test, table = sampling(Source("meter"), model, instead_of=SUBSTITUTE)
    meter, other = under_test.open(DEVICES)
    assert (meter.opened, other.opened) == (True, False)
    assert "meter" in str(other.reason)
    assert len(table.rows[StreamName.POWER]) == 1


def test_a_model_takes_the_place_of_a_meter_that_is_not_there_even_where_energy_is_required() -> None:
    under_test, table = sampling(Source("meter", "open"), Source("model"), required=True, instead_of=SUBSTITUTE)
    meter, model = under_test.open(DEVICES)
    assert (meter.opened, meter.reason, model.opened) == (False, "RuntimeError: no open today.", True)
    assert StreamName.EVENTS not in table.rows


def test_what_sources_know_and_notice_is_kept() -> None:
    class Noticing(Source):
        def sample(self, now_ns: int) -> Sequence[Sample]:
            return [SourceEvent(now_ns, "foreign_process", {"pid": 7})]

    under_test, table = sampling(Noticing("one"), Source("two"))
    under_test.open(DEVICES)
    assert under_test.facts() == [{"index": 0, "name": "one"}, {"index": 0, "name": "two"}]
    assert table.rows[StreamName.EVENTS] == [{"time_ns": 42, "kind": "foreign_process", "detail": '{"pid": 7}'}]


def test_facts_that_were_not_known_at_the_beginning_are_those_of_the_end() -> None:
    class Learning(Source):
        name_known: str | None = None

        def facts(self) -> list[dict[str, JsonValue]]:
            return [{"name": self.name_known}]

    source = Learning("one")
    under_test, _ = sampling(source)
    under_test.open(DEVICES)
    assert under_test.facts() == [{"name": None}]
    source.name_known = "GPU"
    under_test.close()
    assert under_test.facts() == [{"name": "GPU"}]


def test_a_source_keeps_to_the_protocol() -> None:
    source: EnergySource = Source("typed")
    assert source.open(DEVICES) == ("package",)
