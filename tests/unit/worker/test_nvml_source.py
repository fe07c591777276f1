"""The NVML energy source, through the unmodified nvidia-ml-py over a simulated driver library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml.curves import Burst, Curve, Sawtooth, Steps, Trace, constant, ramp
from fakes.nvml.library import SimulatedNvml, built

A, B, C, D = (f"GPU-{letter * 8}-0000-0000-0000-000000000000" for letter in "abcd")
M0, M1 = (f"MIG-{number * 8}-0000-0000-0000-000000000000" for number in "12")

CODES = {"NOT_SUPPORTED": 3, "NO_PERMISSION": 4, "FUNCTION_NOT_FOUND": 13, "DEPRECATED": 26}

PRELUDE = """
import json, os, time
from pathlib import Path
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.sampler.energy_source import DeviceSample, SourceEvent, SourceUnavailable
from lem_worker.sampler.sources.nvml import SPEC, NvmlSource
from lem_worker.sampler.sampling import EnergyRequired, EnergySampler
import pynvml

CONFIG = ExperimentConfig.model_validate({"backend": "pytorch", "model": "m"})
ASKED = json.loads(os.environ["ASKED"])
DEVICES = tuple(Device(uuid=uuid, kind=DeviceKind.GPU, name="NVIDIA H100") for uuid in ASKED["leased"])

class Clock:
    now_ns = 0
    def __call__(self):
        return self.now_ns

def write(*lines):
    Path(os.environ["LEM_FAKE_NVML"]).write_text("\\n".join(("driver 580.65.06", *lines, "")))

def begin(*machine):
    'The machine has its time from now on.'
    origin_ns = time.monotonic_ns()
    write(f"origin_ns {origin_ns}", *machine)
    return origin_ns

def opened(clock=time.monotonic_ns):
    source = NvmlSource(CONFIG, clock)
    source.open(DEVICES)
    return source

def say(what):
    print(json.dumps(what, default=str))
"""


@pytest.fixture
def nvml(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulatedNvml:
    return SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")


def asked(
    nvml: SimulatedNvml,
    body: str,
    *,
    leased: tuple[str, ...] = (A,),
    more: Mapping[str, str] | None = None,
    **with_: Any,
) -> Any:
    """What a process says that runs the body with these devices."""
    variables = {"ASKED": json.dumps({"leased": leased, **with_}), **(more or {})}
    return json.loads(nvml.python(PRELUDE + body, variables))


def gpu(number: int, uuid: str, more: str = "") -> str:
    return f'device {number} uuid {uuid} name "NVIDIA H100" memory_total 80000 memory_used 500 {more}'


def everything(number: int = 0) -> tuple[str, ...]:
    return (
        f"power {number} constant 250.5",
        f"counter {number} base_mj 7000",
        f"temperature {number} constant 61",
        f"sm_clock {number} constant 1980",
        f"memory_clock {number} constant 2619",
        f"gpu_use {number} constant 97",
        f"memory_use {number} constant 43",
        f"throttle {number} constant 4",
        *(f"violation_{policy} {number} constant 0.25" for policy in ("power", "thermal", "board", "reliability")),
        f"limits {number} enforced_w 650 current_w 660 default_w 700 min_w 200 max_w 700",
        f"facts {number} vbios 96.00.74.00.01 compute 9.0 ecc yes persistence no sm_clock_max 1980 "
        "memory_clock_max 2619 pcie_generation 5 pcie_width 16 nvlinks 18 nvlinks_up 17 sm_clock_application 1980",
        "driver 580.65.06 cuda 13020",
    )


# --- what is read -----------------------------------------------------------------------------------------------------

ROWS_BY_TIME = """
clock = Clock()
source = opened(clock)
rows = []
for ms in ASKED["at_ms"]:
    clock.now_ns = ms * 10**6
    rows += [sample._asdict() for sample in source.sample(clock()) if isinstance(sample, DeviceSample)]
say({"rows": rows, "facts": source.facts()})
"""


def test_every_reading_of_a_gpu_arrives_in_its_column(nvml: SimulatedNvml) -> None:
    nvml.write(f"origin_ns {time.monotonic_ns() + 10**15}", gpu(0, A, "mig no"), *everything())
    said = asked(nvml, ROWS_BY_TIME, at_ms=[0])
    assert said["rows"] == [
        {
            "device_index": 0,
            "time_ns": 0,
            "power_mw": 250_500,
            "energy_mj": 7000,  # the origin lies ahead, nothing was used yet
            "memory_used_bytes": 500,
            "gpu_percent": 97,
            "memory_percent": 43,
            "temperature_c": 61,
            "sm_clock_mhz": 1980,
            "memory_clock_mhz": 2619,
            "throttle_reasons": 4,
            "power_violation_ns": 0,  # the origin lies ahead
            "thermal_violation_ns": 0,
            "board_violation_ns": 0,
            "reliability_violation_ns": 0,
        }
    ]
    assert said["facts"] == [
        {
            "index": 0,
            "uuid": A,
            "name": "NVIDIA H100",
            "power_reading": "instant",
            "mig_parent_uuid": None,
            "compute_capability": "9.0",
            "driver": "580.65.06",
            "cuda_driver": "13.2",
            "vbios": "96.00.74.00.01",
            "power_limit_w": 650.0,
            "power_limit_current_w": 660.0,
            "power_limit_default_w": 700.0,
            "sm_clock_max_mhz": 1980,
            "sm_clock_application_mhz": 1980,
            "memory_clock_max_mhz": 2619,
            "memory_total_bytes": 80_000,
            "ecc": True,
            "mig": False,
            "persistence": False,
            "pcie_generation": 5,
            "pcie_width": 16,
            "nvlinks": 17,
            "own_processes_listed": False,
            "own_pid_namespace": str(Path("/proc/self/ns/pid").readlink()) != "pid:[4026531836]",
            "unsupported": [],
        }
    ]


def test_slow_readings_occur_every_fifth_of_a_second_at_distances_that_differ(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), *everything())
    rows = asked(nvml, ROWS_BY_TIME, at_ms=list(range(0, 10_000, 10)))["rows"]
    seen_ms = [row["time_ns"] // 10**6 for row in rows if row["temperature_c"] is not None]
    distances = [later - earlier for earlier, later in pairwise(seen_ms)]
    assert min(distances) >= 100 and max(distances) <= 310 and len(set(distances)) > 10
    assert sum(distances) / len(distances) == pytest.approx(205, abs=25)
    assert [row["throttle_reasons"] for row in rows] == [row["temperature_c"] and 4 for row in rows]
    assert [row["power_mw"] for row in rows] == [250_500] * 1000


WATCHED = """
origin_ns = begin(*ASKED["machine"])
source = opened()
rows = []
while (before := time.monotonic_ns() - origin_ns) < 400 * 10**6:
    [row] = [one for one in source.sample(before) if isinstance(one, DeviceSample)]
    rows.append((before / 1e6, (time.monotonic_ns() - origin_ns) / 1e6, row.power_mw, row.energy_mj))
say({"rows": rows, "reading": source.facts()[0]["power_reading"]})
"""
"""Samples without a pause, each with what the clock said before and after it."""


def watched(nvml: SimulatedNvml, curve: Curve, *more: str) -> tuple[str, list[tuple[float, float, int, int]]]:
    """The name of the power reading, and (ms before, ms after, mW, mJ) of many samples in the curve's first 400 ms."""
    said = asked(nvml, WATCHED, machine=[gpu(0, A), f"power 0 {curve.text()}", *more])
    assert len(said["rows"]) >= 20, "the machine is too busy to see anything"
    return said["reading"], said["rows"]


CURVES: dict[str, Curve] = {
    "constant": constant(250.5),
    "steps": Steps(((0, 100), (90, 400), (250, 50))),
    "ramp": ramp(100, 400, 300),
    "trace": Trace(((50, 80), (150, 300), (200, 120))),
    "sawtooth": Sawtooth(60, 400, 130),
    "burst": Burst(75, 700, 90, 7),
}


TURNS_MS = sorted(
    {50, 90, 150, 200, 250, 300, *range(0, 2000, 130), *(ms + late for ms in range(0, 2000, 90) for late in (0, 7))}
)
"""Where one of the curves jumps or turns; a sample may be under way meanwhile."""


@pytest.mark.parametrize("shape", CURVES)
def test_counter_and_power_follow_the_curve_exactly(nvml: SimulatedNvml, shape: str) -> None:
    curve = CURVES[shape]
    reading, rows = watched(nvml, curve)
    assert reading == "instant"
    for begin_ms, end_ms, power_mw, energy_mj in rows:
        assert curve.integral(begin_ms) - 1 <= energy_mj <= curve.integral(end_ms)
        # However long a sample took, the curve had the value at some instant meanwhile.
        turns = [begin_ms, end_ms, *(ms for turn in TURNS_MS for ms in (turn - 1e-6, turn) if begin_ms < ms < end_ms)]
        values = [curve.at(ms) for ms in turns]
        assert min(values) - 0.001 <= power_mw / 1000 <= max(values) + 0.001


def test_the_counter_shows_whole_quanta_once_a_period(nvml: SimulatedNvml) -> None:
    curve = ramp(100, 400, 300)
    _, rows = watched(nvml, curve, "counter 0 period_ms 40 quantum_mj 500 base_mj 123")

    def shown(ms: float) -> float:
        return 123 + curve.integral(ms // 40 * 40) // 500 * 500

    for begin_ms, end_ms, _, energy_mj in rows:
        assert shown(begin_ms) <= energy_mj <= shown(end_ms)
    assert len({row[3] for row in rows}) <= 400 / 40 + 1


def test_a_reading_of_power_is_what_the_sensor_saw_in_its_window_and_holds_for_its_period(nvml: SimulatedNvml) -> None:
    curve = Burst(100, 500, 170, 60)
    _, rows = watched(nvml, curve, "sensor 0 period_ms 100 window_ms 25")

    def reading(ms: float) -> float:
        at_ms = ms // 100 * 100
        return round((curve.integral(at_ms) - curve.integral(at_ms - 25)) / 25 * 1000)

    seen = set()
    for begin_ms, end_ms, power_mw, _ in rows:
        if begin_ms >= 100:
            assert power_mw in {reading(begin_ms), reading(end_ms)}
            seen.add(power_mw)
    assert 2 <= len(seen) <= 4


@pytest.mark.parametrize(
    "without",
    [
        pytest.param("error nvmlDeviceGetFieldValues 3 0 field 186", id="the chip has no such field"),
        pytest.param("error nvmlDeviceGetFieldValues 13", id="the driver has no such function"),
    ],
)
def test_without_instant_power_the_average_of_a_second_is_used_and_is_called_so(
    nvml: SimulatedNvml, without: str
) -> None:
    curve = ramp(100, 400, 300)
    reading, rows = watched(nvml, curve, without)
    assert reading == "average"

    def average(ms: float) -> float:
        return (curve.integral(ms) + 100 * (1000 - ms)) / 1000

    for begin_ms, end_ms, power_mw, _ in rows:
        assert average(begin_ms) - 0.001 <= power_mw / 1000 <= average(end_ms) + 0.001


# --- what a device does not offer -------------------------------------------------------------------------------------


def test_without_a_counter_there_is_power_alone(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), *everything(), "counter 0 supported no")
    [row] = asked(nvml, ROWS_BY_TIME, at_ms=[0])["rows"]
    assert (row["energy_mj"], row["power_mw"]) == (None, 250_500)


def test_without_any_power_reading_there_is_the_counter_alone(nvml: SimulatedNvml) -> None:
    silent = ("error nvmlDeviceGetFieldValues 3 0 field 186", "error nvmlDeviceGetPowerUsage 3 0")
    nvml.write(gpu(0, A), *everything(), *silent)
    said = asked(nvml, ROWS_BY_TIME, at_ms=[0])
    assert said["facts"][0]["power_reading"] is None
    assert said["rows"][0]["power_mw"] is None
    assert said["rows"][0]["energy_mj"] > 7000


WITHOUT_EACH = """
answers = {}
for name, rule in ASKED["rules"].items():
    write(*ASKED["machine"], rule)
    source = opened()
    row = next(one for one in source.sample(0) if isinstance(one, DeviceSample))._asdict()
    source.sample(1)
    answers[name] = [key for key, value in {**source.facts()[0], **row}.items() if value is None]
    source.close()
say(answers)
"""


def test_each_reading_that_is_not_offered_is_null_and_leaves_the_others(nvml: SimulatedNvml) -> None:
    symbols = {
        "TotalEnergyConsumption": ["energy_mj"],
        "UtilizationRates": ["gpu_percent", "memory_percent"],
        "MemoryInfo": ["memory_total_bytes", "memory_used_bytes"],
        "Temperature": [],  # has a newer name
        "ClockInfo": ["sm_clock_mhz", "memory_clock_mhz"],
        "EnforcedPowerLimit": ["power_limit_w"],
        "PowerManagementLimit": ["power_limit_current_w"],
        "PowerManagementDefaultLimit": ["power_limit_default_w"],
        "VbiosVersion": ["vbios"],
        "CudaComputeCapability": ["compute_capability"],
        "EccMode": ["ecc"],
        "MigMode": ["mig"],
        "PersistenceMode": ["persistence"],
        "ApplicationsClock": ["sm_clock_application_mhz"],
        "ViolationStatus": [f"{policy}_violation_ns" for policy in ("power", "thermal", "board", "reliability")],
        "MaxClockInfo": ["sm_clock_max_mhz", "memory_clock_max_mhz"],
        "MaxPcieLinkGeneration": ["pcie_generation"],
        "MaxPcieLinkWidth": ["pcie_width"],
        "NvLinkState": ["nvlinks"],
        "ComputeRunningProcesses": [],
        "MPSComputeRunningProcesses": [],
        "CurrentClocksEventReasons": [],  # has an older name
    }
    said = asked(
        nvml,
        WITHOUT_EACH,
        machine=[gpu(0, A, "mig no"), *everything()],
        rules={f"{name} {code}": f"error nvmlDeviceGet{name} {code}" for name in symbols for code in CODES.values()},
    )
    for asked_for, missing in said.items():
        assert set(missing) == {"mig_parent_uuid", *symbols[asked_for.split()[0]]}, asked_for


def test_drivers_before_535_have_throttle_reasons_under_another_name(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), *everything(), "error nvmlDeviceGetCurrentClocksEventReasons 13")
    rows = asked(nvml, ROWS_BY_TIME, at_ms=[0, 1000])["rows"]
    assert [row["throttle_reasons"] for row in rows] == [4, 4]


WHY_NOT = """
try:
    opened()
except SourceUnavailable as error:
    try:
        pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError_Uninitialized:
        say(str(error))
"""


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        pytest.param(
            (gpu(0, A), gpu(1, B), *everything(1)),
            f"NVML has neither power nor energy of {A}; name other energy.sources.",
            id="no power, no counter",
        ),
        pytest.param(("error nvmlInitWithFlags 9",), "no NVIDIA driver answers here (", id="no driver"),
    ],
)
def test_a_source_that_cannot_measure_says_why_and_lets_go_of_nvml(
    nvml: SimulatedNvml, machine: tuple[str, ...], reason: str
) -> None:
    nvml.write(*machine)
    assert str(asked(nvml, WHY_NOT, leased=(A,))).startswith(reason)


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        pytest.param((gpu(0, A),), f"NVML has neither power nor energy of {A}", id="no power, no counter"),
        pytest.param((gpu(0, A, "gone_ms 0"), *everything(0)), f"NVML can't open {A} (GPU is lost)", id="lost"),
        pytest.param((), f"NVML can't open {A} (Not Found)", id="not there"),
    ],
)
def test_a_gpu_that_cannot_be_opened_is_reported_and_leaves_the_other_its_samples(
    nvml: SimulatedNvml, machine: tuple[str, ...], reason: str
) -> None:
    nvml.write(*machine, gpu(1, B), *everything(1))
    said = asked(nvml, FAILING, leased=(B, A), required=False, ticks=6)
    assert said["reason"].startswith(reason)
    assert [(failure["source"], failure["device"]) for failure in said["failures"]] == [("nvml", A)]
    assert [(one["device_index"], one["reading"], one["reason"][: len(reason)]) for one in said["unread"]] == [
        (1, "device", reason)
    ]
    assert (said["domains"], said["rows"]) == ([B, A], {"0": 8, "1": 0})
    assert said["power_w"] is None, "the power of one is not that of both"


@pytest.mark.parametrize("leased", [(B, A), (A,)], ids=["the other is there", "it is the only one"])
def test_a_gpu_that_can_be_opened_only_later_is_measured_from_then_on(
    nvml: SimulatedNvml, leased: tuple[str, ...]
) -> None:
    machine, lost = (gpu(0, A), gpu(1, B), *everything(0), *everything(1)), gpu(0, A, "gone_ms 0")
    nvml.write(lost, *machine[1:])
    said = asked(nvml, FAILING, leased=leased, required=True, ticks=8, machines={4: machine})
    assert (said["opened"], said["reason"], said["raised"], said["failures"]) == (True, None, None, [])
    index = leased.index(A)
    assert [(one["device_index"], one["reading"]) for one in said["unread"]] == [(index, "device")]
    [returned] = said["readings_returned"]
    assert (returned["device_index"], returned["reading"]) == (index, "device")
    assert 4 <= returned["away_s"] <= 4 * 1.25 + 1
    assert said["rows"][str(index)] >= 4
    assert said["power_w"] == 250.5 * len(leased)
    assert [fact["uuid"] for fact in said["facts"]] == list(leased), "its facts are read when it is there"


def test_a_gpu_that_is_away_for_longer_counts_as_failed_and_is_tried_less_and_less(nvml: SimulatedNvml) -> None:
    machine = (gpu(0, A), *everything(0))
    nvml.write(gpu(0, A, "gone_ms 0"), *machine[1:])
    said = asked(nvml, FAILING, leased=(A,), required=False, ticks=30, machines={20: machine})
    assert "(GPU is lost)" in said["reason"]
    [failed], [returned] = said["failures"], said["returned"]
    assert (failed["device"], returned["device"]) == (A, A)
    assert 20 <= returned["away_s"] <= 20 * 1.25 + 1
    assert said["power_w"] == 250.5


def test_a_gpu_that_stays_away_fails_a_run_that_requires_energy_with_the_reason(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A, "gone_ms 0"), *everything(0))
    said = asked(nvml, FAILING, leased=(A,), required=True, ticks=9)
    assert f"NVML can't open {A} (GPU is lost)" in said["raised"]


# --- which device is which --------------------------------------------------------------------------------------------


def test_devices_are_read_by_uuid_in_the_order_of_the_lease(nvml: SimulatedNvml) -> None:
    nvml.write(
        *(gpu(number, uuid) for number, uuid in enumerate((A, B, C, D))),
        *(f"power {number} constant {100 * (number + 1)}" for number in range(4)),
    )
    for visible in ("0,1", f"{B},{D}", "3"):
        said = asked(nvml, ROWS_BY_TIME, at_ms=[0], leased=(D, B), more={"CUDA_VISIBLE_DEVICES": visible})
        assert [(row["device_index"], row["power_mw"]) for row in said["rows"]] == [(0, 400_000), (1, 200_000)]
        assert [(fact["index"], fact["uuid"]) for fact in said["facts"]] == [(0, D), (1, B)]


def test_a_mig_instance_shows_its_parents_power_and_its_own_memory(nvml: SimulatedNvml) -> None:
    nvml.write(
        gpu(0, B),
        *everything(0)[:1],
        gpu(1, A, "mig yes"),
        f'device 1.0 uuid {M0} name "NVIDIA H100 MIG 1g.10gb" gi 7 ci 0 memory_total 10000 memory_used 10',
        f'device 1.1 uuid {M1} name "NVIDIA H100 MIG 1g.10gb" gi 8 ci 0 memory_total 10000 memory_used 20',
        "power 1 constant 333",
        "counter 1 period_ms 1000000000000",
        "temperature 1 constant 50",
        "gpu_use 1 constant 90",
        "memory_use 1 constant 10",
    )
    said = asked(nvml, ROWS_BY_TIME, at_ms=[0], leased=(M1,))
    [row], [facts] = said["rows"], said["facts"]
    assert (row["power_mw"], row["energy_mj"], row["temperature_c"], row["memory_used_bytes"]) == (333_000, 0, 50, 20)
    assert row["gpu_percent"] is None, "the parent's use is not the instance's"
    assert (facts["uuid"], facts["mig_parent_uuid"], facts["memory_total_bytes"]) == (M1, A, 10_000)
    assert facts["name"] == "NVIDIA H100 MIG 1g.10gb"


# --- strangers --------------------------------------------------------------------------------------------------------

EVENTS = """
clock = Clock()
write(*ASKED["machines"][0])
source = opened(clock)
seen = []
for second, machine in enumerate(ASKED["machines"]):
    write(*machine)
    clock.now_ns = second * 2 * 10**9
    found = [one for one in source.sample(clock()) if isinstance(one, SourceEvent)]
    clock.now_ns += 4 * 10**8  # looked for every 0.5 to 1.5 s
    found += [one for one in source.sample(clock()) if isinstance(one, SourceEvent)]
    seen.append([[one.time_ns // (2 * 10**9), one.kind, one.detail] for one in found])
say(seen)
"""


@pytest.fixture
def of_attempts() -> Iterator[dict[str, int]]:
    """The pids of two processes: of this attempt, and of another."""
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"],
            env={**os.environ, "LEM_ATTEMPT": attempt},
            stdout=subprocess.PIPE,
        )
        for name, attempt in (("ours", "att_1"), ("foreign", "att_2"))
    }
    for process in started.values():
        assert process.stdout is not None
        process.stdout.readline()
    yield {name: process.pid for name, process in started.items()}
    for process in started.values():
        process.kill()
        process.wait()


def test_foreign_processes_are_reported_when_they_come_and_go_and_our_own_processes_never(
    nvml: SimulatedNvml, of_attempts: dict[str, int]
) -> None:
    machine = [gpu(0, B), gpu(1, A), *everything(0), *everything(1)]
    ours = f"process 1 pid {of_attempts['ours']} memory 70"
    foreign = f"process 1 pid {of_attempts['foreign']} memory 30"
    elsewhere = f"process 0 pid {of_attempts['foreign']} memory 30"
    by_mps = f"process 1 pid {of_attempts['foreign']} memory 30 reported no kind mps"
    machines = [
        [*machine, elsewhere],
        [*machine, ours, foreign],
        [*machine, ours, foreign],
        [*machine, ours],
        [*machine, ours, by_mps],
    ]
    seen = asked(nvml, EVENTS, machines=machines, more={"LEM_ATTEMPT": "att_1"})
    about = {"device_index": 0, "pid": of_attempts["foreign"]}
    assert seen == [
        [],
        [[1, "foreign_process", {**about, "memory_bytes": 30}]],
        [],
        [[3, "foreign_process_gone", about]],
        [[4, "foreign_process", {**about, "memory_bytes": None}]],
    ]


def test_a_foreign_process_that_draws_is_one_too(nvml: SimulatedNvml, of_attempts: dict[str, int]) -> None:
    drawing = f"process 0 pid {of_attempts['foreign']} memory 30 kind graphics"
    [[[_, kind, detail]]] = asked(nvml, EVENTS, machines=[[gpu(0, A), *everything(), drawing]])
    assert (kind, detail["pid"], detail["memory_bytes"]) == ("foreign_process", of_attempts["foreign"], 30)


MIG = (
    gpu(0, A, "mig yes"),
    f'device 0.0 uuid {M0} name "NVIDIA H100 MIG 1g.10gb" gi 7 ci 0 memory_total 10000 memory_used 10',
    f'device 0.1 uuid {M1} name "NVIDIA H100 MIG 1g.10gb" gi 8 ci 0 memory_total 10000 memory_used 20',
    *everything(),
)


@pytest.mark.parametrize("kind", ["compute", "graphics"])
def test_of_a_mig_instance_a_foreign_process_next_to_it_on_the_gpu_is_reported_as_its_power_is_in_the_figure(
    nvml: SimulatedNvml, of_attempts: dict[str, int], kind: str
) -> None:
    ours = f"process 0.1 pid {of_attempts['ours']} memory 70"
    beside = f"process 0.0 pid {of_attempts['foreign']} memory 30 kind {kind}"
    machines = [[*MIG, ours], [*MIG, ours, beside], [*MIG, ours]]
    seen = asked(nvml, EVENTS, leased=(M1,), machines=machines, more={"LEM_ATTEMPT": "att_1"})
    assert [[(event, detail["pid"]) for _, event, detail in step] for step in seen] == [
        [],
        [("foreign_process", of_attempts["foreign"])],
        [("foreign_process_gone", of_attempts["foreign"])],
    ]


def test_of_a_mig_instance_whose_gpu_may_not_be_asked_the_own_processes_are_reported(
    nvml: SimulatedNvml, of_attempts: dict[str, int]
) -> None:
    refused = [
        f"error nvmlDeviceGet{kind}RunningProcesses 4 0 call {call}"
        for kind in ("Compute", "MPSCompute", "Graphics")
        for call in (2, 3)  # the third version of the parent, and the second
    ]
    on_it = f"process 0.1 pid {of_attempts['foreign']} memory 30"
    [[[_, kind, detail]]] = asked(nvml, EVENTS, leased=(M1,), machines=[[*MIG, *refused, on_it]])
    assert (kind, detail["pid"]) == ("foreign_process", of_attempts["foreign"])


def test_a_list_of_processes_that_fails_for_a_moment_ends_no_process(
    nvml: SimulatedNvml, of_attempts: dict[str, int]
) -> None:
    machine = [gpu(0, A), *everything(), f"process 0 pid {of_attempts['foreign']} memory 30"]
    fails = "error nvmlDeviceGetComputeRunningProcesses 999 0"
    seen = asked(nvml, EVENTS, machines=[machine, [*machine, fails], machine])
    assert [[kind for _, kind, _ in step] for step in seen] == [["foreign_process"], [], []]


def test_of_processes_that_cannot_be_looked_at_those_from_before_the_engine_are_foreign_processes(
    nvml: SimulatedNvml,
) -> None:
    machine = [gpu(0, A), *everything()]
    before, after = (f"process 0 pid {pid} memory 5 bound no" for pid in (4_194_301, 4_194_302))
    seen = asked(nvml, EVENTS, machines=[[*machine, before], [*machine, before, after], [*machine, after]])
    assert [[(kind, detail["pid"]) for _, kind, detail in step] for step in seen] == [
        [("foreign_process", 4_194_301)],
        [],
        [("foreign_process_gone", 4_194_301)],
    ]


def test_a_pid_that_no_process_can_have_is_not_named_a_foreign_process(nvml: SimulatedNvml) -> None:
    scrambled = [f"process 0 pid {pid} memory 5 bound no" for pid in (0, 2**32 - 1, 2**22 + 1)]
    machine = [gpu(0, A), *everything(), *scrambled]
    before, after = asked(nvml, EVENTS, machines=[machine, machine])
    assert [(kind, detail["listed_as"], detail["memory_bytes"]) for _, kind, detail in before] == [
        ("unidentified_process", pid, 5) for pid in (0, 2**22 + 1, 2**32 - 1)
    ]
    assert after == []


LISTED = """
clock = Clock()
write(*ASKED["machine"])
source = opened(clock)
found = [one.kind for one in source.sample(0) if isinstance(one, SourceEvent)]
say([found, source.facts()[0]["own_processes_listed"]])
"""


@pytest.mark.parametrize(
    ("line", "listed"),
    [("process 0 pid self memory 5", True), ("process 0 pid self memory 5 listed_as 4194301", False), ("", False)],
)
def test_whether_a_process_of_the_attempt_is_listed_under_its_pid_is_a_fact(
    nvml: SimulatedNvml, line: str, listed: bool
) -> None:
    machine = [gpu(0, A), *everything(), line]
    _, told = asked(nvml, LISTED, machine=machine, more={"LEM_ATTEMPT": "att_1"})
    assert told is listed


def test_a_foreign_process_that_uses_a_device_without_being_listed_on_it_is_reported_with_its_share(
    nvml: SimulatedNvml, of_attempts: dict[str, int]
) -> None:
    machine = [gpu(0, A), *everything()]
    ours = f"process 0 pid {of_attempts['ours']} memory 70 sm 60"
    foreign = f"process 0 pid {of_attempts['foreign']} memory 0 sm 35"
    unlisted = [f"error nvmlDeviceGet{kind}RunningProcesses 3" for kind in ("Compute", "MPSCompute", "Graphics")]
    machines = [[*machine, ours, *unlisted], [*machine, ours, foreign, *unlisted], [*machine, ours, *unlisted]]
    seen = asked(nvml, EVENTS, machines=machines, more={"LEM_ATTEMPT": "att_1"})
    about = {"device_index": 0, "pid": of_attempts["foreign"]}
    assert seen == [
        [],
        [[1, "foreign_process", {**about, "memory_bytes": None, "sm_percent": 35}]],
        [[2, "foreign_process_gone", about]],
    ]


def test_drivers_before_510_list_their_processes_too(nvml: SimulatedNvml, of_attempts: dict[str, int]) -> None:
    machine = [gpu(0, A), *everything(), "error nvmlDeviceGetComputeRunningProcesses_v3 13"]
    foreign = f"process 0 pid {of_attempts['foreign']} memory 30"
    [[[_, kind, detail]]] = asked(nvml, EVENTS, machines=[[*machine, foreign]])
    assert (kind, detail["pid"]) == ("foreign_process", of_attempts["foreign"])


def test_foreign_processes_come_and_go_by_the_clock_of_the_trace(
    nvml: SimulatedNvml, of_attempts: dict[str, int]
) -> None:
    stranger = f"process 0 pid {of_attempts['foreign']} memory 30 from_ms 100 until_ms 250"
    body = """
origin_ns = begin(*ASKED["machine"])
source = opened()
seen, second = [], 0
while len(seen) < 2:
    second += 1
    before_ms = (time.monotonic_ns() - origin_ns) / 1e6
    for one in source.sample(second * 2 * 10**9):
        if isinstance(one, SourceEvent):
            seen.append((one.kind, before_ms, (time.monotonic_ns() - origin_ns) / 1e6))
say(seen)
"""
    [(came, _, came_by_ms), (went, went_after_ms, went_by_ms)] = asked(
        nvml, body, machine=[gpu(0, A), *everything(), stranger]
    )
    assert (came, went) == ("foreign_process", "foreign_process_gone")
    assert came_by_ms >= 100
    assert went_by_ms >= 250
    assert went_after_ms >= came_by_ms


# --- failures ---------------------------------------------------------------------------------------------------------

FAILING = """
rows = {}
class Rows:
    def __init__(self, name):
        self.kept = rows.setdefault(name, [])
    def append(self, **row):
        self.kept.append(row)

clock = Clock()
sampling = EnergySampler(
    [SPEC],
    CONFIG.model_copy(update={"energy": CONFIG.energy.model_copy(update={"required": ASKED["required"]})}),
    lambda stream: Rows(stream.value),
    clock,
)
try:
    sampling.open(DEVICES)
    step_ns = ASKED.get("tick_ms", 1000) * 10**6
    while clock() // step_ns != ASKED["ticks"]:
        clock.now_ns += step_ns
        if (machine := ASKED.get("machines", {}).get(str(clock() // step_ns))) is not None:
            write(*machine)
        sampling.tick(clock())
        if ASKED["ticks"] is None and sampling.reports()[0].reason:
            break
    power_w, hottest_c = sampling.power_w(), sampling.hottest_c()
    sampling.close()
    raised = None
except EnergyRequired as error:
    raised, power_w, hottest_c = str(error), None, None
[report] = sampling.reports()
def events(kind):
    return [json.loads(row["detail"]) for row in rows.get("events", ()) if row["kind"] == kind]
power = rows.get("power", ())
say({"reason": report.reason, "opened": report.opened, "domains": report.domains, "raised": raised,
     "rows": {index: sum(row["device_index"] == index for row in power) for index in range(len(DEVICES)) if power},
     "failures": events("source_failed"), "unread": events("reading_failed"), "facts": sampling.facts(),
     "returned": events("source_returned"), "readings_returned": events("reading_returned"),
     "changed": events("power_reading"),
     "columns": {name: [row[name] for row in power if row["device_index"] == len(DEVICES) - 1][:-1]
                 for name in ("energy_mj", "power_mw", "temperature_c", "sm_clock_mhz", "throttle_reasons")},
     "power_w": power_w, "hottest_c": hottest_c})
"""
"""Samples once a second while the machine is what `machines` says from a second on; the columns are the last device's,
without the row from the end, which comes too soon after the one before for slow readings."""

POWERS = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage")
DEAD = tuple(f"error {symbol} 999 1" for symbol in POWERS)


def why(what: str, uuid: str = B) -> str:
    return f"NVML can't read {what} of {uuid} (Unknown Error); see what nvidia-smi says of it."


@pytest.mark.parametrize(
    ("rule", "what", "column"),
    [
        ("nvmlDeviceGetTotalEnergyConsumption 999 1 call 6", "energy counter", "energy_mj"),
        ("nvmlDeviceGetFieldValues 999 1 call 6", "instant power", "power_mw"),
        ("nvmlDeviceGetFieldValues 999 1 field 186 call 6", "instant power", "power_mw"),
        ("nvmlDeviceGetTemperature 999 1 call 2", "temperature", "temperature_c"),
        ("nvmlDeviceGetTemperature 15 1 call 2", "temperature", "temperature_c"),
        ("nvmlDeviceGetClockInfo 999 1 call 3", "sm clock", "sm_clock_mhz"),
        ("nvmlDeviceGetCurrentClocksEventReasons 1 1 call 2", "clocks event reasons", "throttle_reasons"),
    ],
)
def test_a_call_that_fails_once_costs_its_one_reading_and_says_why(
    nvml: SimulatedNvml, rule: str, what: str, column: str
) -> None:
    nvml.write(gpu(0, A), gpu(1, B), *everything(0), *everything(1), f"error {rule}")
    said = asked(nvml, FAILING, leased=(A, B), required=True, ticks=4)
    assert (said["reason"], said["failures"], said["raised"]) == (None, [], None)
    [unread] = said["unread"]
    assert (unread["device_index"], unread["reading"]) == (1, what)
    assert unread["reason"].startswith(f"NVML can't read {what} of {B} (")
    assert said["rows"] == {"0": 6, "1": 6}
    assert {name: [value is None for value in values].count(True) for name, values in said["columns"].items()} == {
        name: int(name == column) for name in said["columns"]
    }
    assert (said["power_w"], said["hottest_c"]) == (501.0, 61), "all is told again"


@pytest.mark.parametrize(
    ("symbol", "columns"),
    [
        ("nvmlDeviceGetTemperature", {"temperature_c"}),
        ("nvmlDeviceGetClockInfo", {"sm_clock_mhz"}),
        ("nvmlDeviceGetUtilizationRates", set()),
        ("nvmlDeviceGetMemoryInfo", set()),
        ("nvmlDeviceGetCurrentClocksEventReasons", {"throttle_reasons"}),
        ("nvmlDeviceGetComputeRunningProcesses_v3", set()),
        ("nvmlDeviceGetMPSComputeRunningProcesses_v3", set()),
        ("nvmlDeviceGetGraphicsRunningProcesses_v3", set()),
        ("nvmlDeviceGetTotalEnergyConsumption", {"energy_mj"}),
        ("nvmlDeviceGetVbiosVersion", set()),
        ("nvmlDeviceGetEccMode", set()),
        ("nvmlDeviceGetNvLinkState", set()),
    ],
)
def test_a_call_that_always_fails_leaves_the_energy_to_the_others_and_is_reported_once(
    nvml: SimulatedNvml, symbol: str, columns: set[str]
) -> None:
    nvml.write(gpu(0, A), gpu(1, B), *everything(0), *everything(1), f"error {symbol} 999 1")
    said = asked(nvml, FAILING, leased=(A, B), required=True, ticks=12)
    assert (said["reason"], said["raised"], said["rows"]) == (None, None, {"0": 14, "1": 14})
    assert {name for name, values in said["columns"].items() if set(values) == {None}} == columns
    assert {unread["device_index"] for unread in said["unread"]} == {1}
    assert len(said["unread"]) == len({unread["reading"] for unread in said["unread"]})


def test_a_temperature_and_a_power_that_are_not_reported_any_more_are_not_held(nvml: SimulatedNvml) -> None:
    symbols = ("nvmlDeviceGetTemperature", "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage")
    rules = tuple(f"error {symbol} 999 1" for symbol in symbols)
    nvml.write(gpu(0, A), gpu(1, B), *everything(0), *everything(1), *rules)
    said = asked(nvml, FAILING, leased=(A, B), required=False, ticks=3)
    assert (said["power_w"], said["hottest_c"]) == (None, None), "what one device tells is not what both have"


def test_a_fact_that_could_not_be_read_is_null_and_asked_for_again(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), *everything(), "error nvmlDeviceGetVbiosVersion 999 0 call 1")
    said = asked(
        nvml,
        "clock = Clock()\nsource = opened(clock)\nfirst = dict(source.facts()[0])\n"
        "say([first, source.facts()[0], [one._asdict() for one in source.sample(0) if hasattr(one, 'reason')]])",
    )
    before, after, told = said
    assert (before["vbios"], after["vbios"]) == (None, "96.00.74.00.01")
    assert {**before, "vbios": after["vbios"]} == after
    assert [one["reason"] for one in told] == [why("VBIOS version", A)]


# --- no answer is final -----------------------------------------------------------------------------------------------


WHOLE = (gpu(0, A, "mig no"), *everything())
REFUSED_CALLS = [
    ("nvmlDeviceGetTotalEnergyConsumption 3 0", "energy counter", "energy_mj"),
    ("nvmlDeviceGetTotalEnergyConsumption 26 0", "energy counter", "energy_mj"),
    ("nvmlDeviceGetFieldValues 3 0 field 186", "instant power", "power_mw"),
    ("nvmlDeviceGetFieldValues 4 0", "instant power", "power_mw"),
    ("nvmlDeviceGetClockInfo 13 0", "sm clock", "sm_clock_mhz"),
]


@pytest.mark.parametrize(("rule", "what", "column"), REFUSED_CALLS)
def test_a_refusal_after_a_success_is_a_failure_that_is_reported_and_asked_again(
    nvml: SimulatedNvml, rule: str, what: str, column: str
) -> None:
    nvml.write(*WHOLE, f"error {rule} call 9")
    said = asked(nvml, FAILING, required=True, ticks=12)
    assert [(one["device_index"], one["reading"]) for one in said["unread"]] == [(0, what)]
    assert [one["reading"] for one in said["readings_returned"]] == [what]
    assert said["columns"][column].count(None) == 1
    assert said["columns"][column][-1] is not None
    assert said["facts"][0]["unsupported"] == []
    assert (said["facts"][0]["power_reading"], said["changed"]) == ("instant", [])


@pytest.mark.parametrize(("rule", "what", "column"), REFUSED_CALLS)
def test_a_refusal_at_the_very_first_call_is_not_believed(
    nvml: SimulatedNvml, rule: str, what: str, column: str
) -> None:
    nvml.write(*WHOLE, f"error {rule} call 1")
    said = asked(nvml, FAILING, required=True, ticks=4)
    assert [(one["reading"], "at first" in one["reason"]) for one in said["unread"]] == [(what, True)]
    assert [one["reading"] for one in said["readings_returned"]] == [what]
    assert said["columns"][column].count(None) <= 1
    assert said["facts"][0]["unsupported"] == []
    assert said["facts"][0]["power_reading"] == "instant"


def test_a_reading_that_never_worked_is_unsupported_and_asked_less_and_less(nvml: SimulatedNvml) -> None:
    nvml.write(*WHOLE, "counter 0 supported no")
    count = """
calls = []
real = pynvml.nvmlDeviceGetTotalEnergyConsumption
pynvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: calls.append(clock()) or real(handle)
clock = Clock()
source = opened(clock)
for tick in range(6000):
    clock.now_ns += 50 * 10**6
    source.sample(clock())
say([calls, source.facts()[0]["unsupported"]])
"""
    calls, unsupported = asked(nvml, count)
    assert unsupported == ["energy counter"]
    distances = [later - earlier for earlier, later in pairwise(calls[3:])]
    assert len(calls) < 90 and max(distances) <= 10.05e9 and distances == sorted(distances)


def test_the_average_replaces_an_instant_power_that_stays_away_and_the_facts_say_so(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), *everything())
    gone = [gpu(0, A), *everything(), "error nvmlDeviceGetFieldValues 3 0 field 186"]
    machines = {"20": gone, "60": [gpu(0, A), *everything()]}
    said = asked(nvml, FAILING, required=True, ticks=120, tick_ms=100, machines=machines)
    assert [(one["before"], one["reading"]) for one in said["changed"]] == [
        ("instant", "average"),
        ("average", "instant"),
    ]
    missing = said["columns"]["power_mw"].count(None)
    assert 10 <= missing <= 12, "a second until the mean over one second replaces it"
    assert said["facts"][0]["power_reading"] == "average", "the wider bound is due"


ALL_ONES = 2**64 - 1


@pytest.mark.parametrize(
    ("rule", "what", "column"),
    [
        (f"value nvmlDeviceGetTotalEnergyConsumption {ALL_ONES} 0", "energy counter", "energy_mj"),
        (f"value nvmlDeviceGetTotalEnergyConsumption {2**63} 0", "energy counter", "energy_mj"),
        (f"value nvmlDeviceGetFieldValues {2**32 - 1} 0 field 186", "instant power", None),
        (f"value nvmlDeviceGetFieldValues {2**31} 0 field 186", "instant power", None),
    ],
)
@pytest.mark.parametrize("when", ["", " call 6", " call 1"])
def test_a_number_that_no_reading_can_have_is_a_failed_reading_and_ends_nothing(
    nvml: SimulatedNvml, rule: str, what: str, column: str | None, when: str
) -> None:
    nvml.write(gpu(0, A), *everything(), rule + when)
    said = asked(nvml, FAILING, required=True, ticks=8)
    assert {one["reading"] for one in said["unread"]} == {what}
    assert said["rows"] == {"0": 10}
    if column is not None:
        assert said["columns"][column].count(None) == {"": 9, " call 6": 1, " call 1": 0}[when]


CHANGES: dict[str, tuple[dict[str, str], Any, Any]] = {
    "power_limit_w": ({"enforced_w 650": "enforced_w 300"}, 650.0, 300.0),
    "power_limit_current_w": ({"current_w 660": "current_w 310"}, 660.0, 310.0),
    "persistence": ({"persistence no": "persistence yes"}, False, True),
    "mig": ({"mig no": "mig yes"}, False, True),
    "sm_clock_application_mhz": ({"sm_clock_application 1980": "sm_clock_application 345"}, 1980, 345),
}


@pytest.mark.parametrize("fact", CHANGES)
def test_a_fact_that_is_changed_from_outside_is_reported_with_before_and_after(nvml: SimulatedNvml, fact: str) -> None:
    replaced, before, after = CHANGES[fact]
    changed = list(WHOLE)
    for old, new in replaced.items():
        changed = [line.replace(old, new) for line in changed]
    body = """
clock = Clock()
write(*ASKED["before"])
source = opened(clock)
facts, seen = dict(source.facts()[0]), []
for tick in range(100):
    clock.now_ns += 10**8
    if tick == 50:
        write(*ASKED["after"])
    seen += [(one.time_ns, one.detail) for one in source.sample(clock()) if getattr(one, "kind", "") == "fact_changed"]
say([facts, seen, source.facts()[0]])
"""
    at_first, [[time_ns, detail]], at_last = asked(nvml, body, before=WHOLE, after=changed)
    assert detail == {"device_index": 0, "fact": fact, "before": before, "after": after}
    assert 5.1e9 <= time_ns <= 8.2e9
    assert at_first[fact] == at_last[fact] == before


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_a_deprecated_function_is_followed_by_its_successor_or_its_old_name(nvml: SimulatedNvml, code: int) -> None:
    refused = (
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetMigMode",
    )
    memory = gpu(0, A, "mig no memory_reserved 40")
    rules = [f"error {symbol} {code}" for symbol in refused] + [f"error nvmlDeviceGetMemoryInfo {code} 0 call 1"]
    nvml.write(memory, *everything(), *rules)
    said = asked(nvml, ROWS_BY_TIME, at_ms=[0])
    [row], [facts] = said["rows"], said["facts"]
    assert (row["temperature_c"], row["throttle_reasons"], row["memory_used_bytes"]) == (61, 4, 540)
    assert (facts["mig"], facts["memory_total_bytes"]) == (None, 80_000)
    assert facts["unsupported"] == ["MIG mode"]


TWO = (gpu(0, A), gpu(1, B), *everything(0), *everything(1))


def test_a_device_that_gives_neither_power_nor_energy_for_five_seconds_counts_as_failed_and_is_asked_further(
    nvml: SimulatedNvml,
) -> None:
    nvml.write(*TWO)
    machines = {2: [*TWO, *DEAD], 12: TWO}
    said = asked(nvml, FAILING, leased=(A, B), required=False, ticks=20, machines=machines)
    reason = why("energy counter")
    assert (said["reason"], said["opened"]) == (reason, True)
    assert said["failures"] == [{"source": "nvml", "device": B, "reason": reason}]
    [returned] = said["returned"]
    assert (returned["source"], returned["device"]) == ("nvml", B)
    assert 10 <= returned["away_s"] <= 10 * 1.25 + 1, "asking late lengthens the gap by a quarter at most"
    energy = said["columns"]["energy_mj"]
    assert energy[-1] is not None and 10 <= energy.count(None) <= 13
    assert said["power_w"] == 501.0


def test_the_time_decides_when_a_device_is_given_up_and_not_the_number_of_ticks(nvml: SimulatedNvml) -> None:
    """Five ticks of 5 ms are no reason: the counter spans the gap."""
    nvml.write(*TWO)
    machines = {"200": [*TWO, *DEAD], "240": TWO}
    said = asked(nvml, FAILING, leased=(A, B), required=True, ticks=400, tick_ms=5, machines=machines)
    assert (said["reason"], said["raised"], said["failures"]) == (None, None, [])
    assert {one["reading"] for one in said["unread"]} == {"energy counter", "instant power"}
    [away] = [one["away_s"] for one in said["readings_returned"] if one["reading"] == "energy counter"]
    assert away == pytest.approx(0.2, abs=0.06)
    assert said["columns"]["energy_mj"][-1] is not None


def test_a_failure_names_its_reason_where_energy_is_required(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), gpu(1, B), *everything(0), *everything(1), *DEAD)
    said = asked(nvml, FAILING, leased=(A, B), required=True, ticks=9)
    assert why("energy counter") in said["raised"]


def test_a_device_that_is_lost_in_the_middle_is_named_and_the_other_continues(nvml: SimulatedNvml) -> None:
    machine = [gpu(0, A), gpu(1, B, "gone_ms 200"), *everything(0), *everything(1)]
    said = asked(nvml, 'begin(*ASKED["machine"])' + FAILING, leased=(B, A), required=False, machine=machine, ticks=None)
    assert said["opened"] is True
    assert said["rows"]["1"] > said["rows"]["0"] >= 1
    assert f"of {B} (GPU is lost)" in said["reason"]
    assert [(failure["source"], failure["device"]) for failure in said["failures"]] == [("nvml", B)]


def test_without_a_failure_sampling_ends_with_no_reason(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), gpu(1, B), *everything(0), *everything(1))
    said = asked(nvml, FAILING, leased=(A, B), required=True, ticks=3)
    assert (said["reason"], said["opened"], said["raised"]) == (None, True, None)
    assert (said["rows"], said["failures"], said["unread"]) == ({"0": 5, "1": 5}, [], [])
