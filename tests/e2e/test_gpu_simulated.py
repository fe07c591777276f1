"""The real worker, its sampler and PyTorch over GPUs that exist in a simulated NVML alone: what the server says of
their energy is the integral of the power that they were given."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from factories.campaign_files import campaign
from fakes.nvml.curves import Burst, Curve, Sawtooth, constant, joules
from fakes.nvml.library import SimulatedNvml, built
from fakes.nvml.profiles import PROFILES
from lem_domain.evidence.codec import decode_chunk
from lem_domain.evidence.streams import StreamName
from lem_domain.results.figures import EnergyMethod
from lem_domain.results.findings import FindingCode
from lem_domain.results.run import RunResult
from lem_domain.states import RunState
from lem_domain.wire.calibration import CalibrationFit
from lem_domain.wire.events import RunTransitionEvent
from lem_server.aggregation.findings import RULES

TESTS = Path(__file__).parents[1]
LONG_S = 600.0

A, B, C, D = (f"GPU-{letter * 8}-0000-0000-0000-000000000000" for letter in "abcd")
M = "MIG-11111111-0000-0000-0000-000000000000"
NUMBERS = {A: 0, B: 1, C: 2, D: 3}


def gpu(uuid: str, more: str = "") -> str:
    # The bus runs against NVML's numbers: to CUDA, D is 0 and A is 3.
    number = NUMBERS[uuid]
    return (
        f'device {number} uuid {uuid} name "NVIDIA H100" pci 00000000:{0x90 - number:02X}:00.0 '
        f"memory_total 85899345920 memory_used 524288000 {more}"
    )


def power(uuid: str, curve: Curve) -> str:
    return f"power {NUMBERS[uuid]} {curve.text()}"


@pytest.fixture
def nvml(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulatedNvml:
    return SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")


@contextmanager
def gpu_worker(house: Any, nvml: SimulatedNvml, name: str, visible: str, **more: str) -> Iterator[None]:
    """A worker that finds these GPUs and ends with the block."""
    variables = {
        "CUDA_VISIBLE_DEVICES": visible,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTHONPATH": str(TESTS),
        "LEM_WORKER_IDLE_CHECK": "false",  # it takes six seconds
        **more,
    }
    worker = house.start_worker(
        "pytorch",
        name,
        program=(sys.executable, "-m", "factories.worker_without_gpu"),
        environment={key: value for key, value in nvml.environment(variables).items() if os.environ.get(key) != value},
    )
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(LONG_S)


def experiment(folder: Path, name: str, **changes: Any) -> Path:
    document: dict[str, Any] = {
        "backend": "pytorch",
        "model": "builtin:tiny-llama",
        "prompts": {"sample_size": 4},
        "output": {"max_tokens": 8},
        "baseline": {"enabled": False},
        "window": {"min_duration_s": 2},
        "warmup": {"max_requests": 2, "min_requests": 2, "window_size": 2, "power_slope": None},
        "energy": {"sources": ["nvml"], "interval_ms": 20},
        "pytorch": {"num_threads": 1, "batch_size": 4},
    }
    return campaign(folder, name, **{**document, **changes})


def only_run(house: Any, path: Path) -> Any:
    """The campaign's run, when it is over."""
    done = house.lemctl("run", path, "--json")
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert said, done.stderr
    with house.client() as client:
        newest = max(client.campaigns(), key=lambda one: one.created_at)
        [run] = client.runs(campaign_id=newest.id)
        return run


def result_of(house: Any, run: Any) -> RunResult:
    assert run.state is RunState.AGGREGATED, run.message
    with house.client() as client:
        found: RunResult = client.result(run.id)
        return found


def sampled(house: Any, run: Any, stream: StreamName) -> list[dict[str, Any]]:
    """The rows that the sampler wrote."""
    rows: list[dict[str, Any]] = []
    headers = {"Authorization": f"Bearer {house.token_file.read_text().strip()}"}
    attempt = f"{house.url}/api/v1/attempts/{run.current_attempt}"
    with house.client() as client:
        kept = [one for one in client.streams(run.current_attempt) if (one.process, one.stream) == ("sampler", stream)]
    for chunk in (chunk for one in kept for chunk in one.chunks):
        body = httpx.get(f"{attempt}/processes/sampler/streams/{stream.value}/chunks/{chunk.seq}", headers=headers)
        rows += decode_chunk(stream, body.raise_for_status().content).to_pylist()
    return rows


def events(house: Any, run: Any, kind: str) -> list[dict[str, Any]]:
    return [
        {"time_ns": row["time_ns"], **json.loads(row["detail"])}
        for row in sampled(house, run, StreamName.EVENTS)
        if row["kind"] == kind
    ]


def truth(result: RunResult, curve: Curve, origin_ns: int) -> float:
    return joules(curve, result.window.begin_ns, result.window.end_ns, origin_ns=origin_ns)


CURVES: Mapping[str, Curve] = {
    A: Sawtooth(80, 400, 1300),
    B: Burst(75, 700, 90, 7),  # shorter than the sampler can see; the counter does
    C: Sawtooth(100, 160, 3000),
    D: constant(310.5),
}


OWN_LISTED = tuple(f"process {number} pid self memory 0" for number in NUMBERS.values())
"""The driver lists a process of the attempt under its pid, so pids can be compared."""

LIMITS: Mapping[str, int] = {A: 650, B: 500, C: 700, D: 350}


class FourGpus(NamedTuple):
    """A run on four GPUs, of which two have no counter and one no instant power; A is throttled and shared."""

    run: Any
    result: RunResult
    origin_ns: int
    stranger: int
    cuda_saw: str
    """What the rank's CUDA_VISIBLE_DEVICES was."""


@pytest.fixture(scope="module")
def four_gpus(shared_house: Any, tmp_path_factory: pytest.TempPathFactory) -> FourGpus:
    folder = tmp_path_factory.mktemp("four")
    nvml = SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), folder / "nvml.state")
    origin_ns = time.monotonic_ns()
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], env={**os.environ, "LEM_ATTEMPT": "att_other"}, stdin=subprocess.PIPE
    ) as stranger:
        nvml.write(
            f"origin_ns {origin_ns}",
            *(gpu(uuid) for uuid in CURVES),
            *(power(uuid, curve) for uuid, curve in CURVES.items()),
            "counter 0 period_ms 20 quantum_mj 100 base_mj 123456789",
            "counter 1 period_ms 100 quantum_mj 1000",
            "counter 2 supported no",
            "sensor 2 period_ms 50",
            "counter 3 supported no",
            "error nvmlDeviceGetFieldValues 3 3 field 186",
            "throttle 0 constant 4",
            "throttle 1 constant 0",
            "temperature 0 constant 85",
            "sm_clock 0 constant 1200",
            *(
                f"limits {NUMBERS[uuid]} enforced_w {limit} current_w 700 default_w 700"
                for uuid, limit in LIMITS.items()
            ),
            f"process 0 pid {stranger.pid} memory 1073741824",
            *OWN_LISTED,
        )
        # By the bus: C, A, D, B.
        saw = folder / "cuda-saw"
        with gpu_worker(shared_house, nvml, "four", "1,3,0,2", LEM_TEST_CUDA_SAW=str(saw)):
            run = only_run(shared_house, experiment(folder, "four", devices={"count": 4}))
        stranger.kill()
    return FourGpus(run, result_of(shared_house, run), origin_ns, stranger.pid, saw.read_text())


@pytest.mark.proves("energy.sources", on="NVML simulated")
def test_energy_is_the_integral_of_power_for_counters_and_for_readings(four_gpus: FourGpus) -> None:
    energy = four_gpus.result.energy
    measured = {device.uuid: device.energy for device in energy.devices}
    assert list(measured) == [C, A, D, B]
    assert {uuid: figure.method for uuid, figure in measured.items()} == {
        A: EnergyMethod.COUNTER,
        B: EnergyMethod.COUNTER,
        C: EnergyMethod.INTEGRATED,
        D: EnergyMethod.INTEGRATED,
    }
    for uuid, figure in measured.items():
        true_j = truth(four_gpus.result, CURVES[uuid], four_gpus.origin_ns)
        assert figure.joules is not None and figure.bound_j is not None
        assert abs(figure.joules - true_j) <= figure.bound_j, (uuid, figure, true_j)
        # The sensor sees B's bursts of 7 ms by chance only, and whether its counter sees more is not published.
        assert figure.bound_j < (1.2 if uuid == B else 0.3) * true_j
        assert figure.source == "nvml"
    assert energy.includes == (C, A, D, B)
    assert energy.total.joules == pytest.approx(sum(figure.joules or 0 for figure in measured.values()))


def test_cuda_is_shown_the_devices_that_are_measured_by_uuid_in_the_order_of_the_lease(four_gpus: FourGpus) -> None:
    """Numbers would mean other devices to CUDA than to NVML, and to a rank that is shown four of eight."""
    assert four_gpus.cuda_saw.split(",") == [C, A, D, B]
    assert [device.uuid for device in four_gpus.result.energy.devices] == [C, A, D, B]


def test_a_power_reading_that_is_an_average_is_called_so(shared_house: Any, four_gpus: FourGpus) -> None:
    [sampler] = events(shared_house, four_gpus.run, "sampler")
    assert [(one["uuid"], one["power_reading"]) for one in sampler["devices"]] == [
        (C, "instant"),
        (A, "instant"),
        (D, "average"),
        (B, "instant"),
    ]


def test_throttling_and_heat_are_in_the_evidence_of_their_device(shared_house: Any, four_gpus: FourGpus) -> None:
    window = four_gpus.result.window
    seen: dict[int, set[tuple[int | None, int | None, int | None]]] = {}
    for row in sampled(shared_house, four_gpus.run, StreamName.POWER):
        if window.begin_ns <= row["time_ns"] <= window.end_ns:
            readings = (row["throttle_reasons"], row["temperature_c"], row["sm_clock_mhz"])
            seen.setdefault(row["device_index"], set()).add(readings)
    nothing = (None, None, None)
    # C, A, D, B; these readings come with every tenth sample or so.
    assert seen == {0: {nothing}, 1: {(4, 85, 1200), nothing}, 2: {nothing}, 3: {(0, None, None), nothing}}


@pytest.mark.finds("foreign_process", "throttled")
def test_a_foreign_process_on_a_device_is_reported_with_its_memory(shared_house: Any, four_gpus: FourGpus) -> None:
    [told] = events(shared_house, four_gpus.run, "foreign_process")
    assert (told["device_index"], told["pid"], told["memory_bytes"]) == (1, four_gpus.stranger, 2**30)
    assert codes(four_gpus.result) >= {"foreign_process", "throttled"}


def test_every_leased_gpu_is_described_with_its_limits(shared_house: Any, four_gpus: FourGpus) -> None:
    with shared_house.client() as client:
        environment = client.attempt(four_gpus.run.current_attempt).environment
    assert [(one["uuid"], one["power_limit_w"]) for one in environment["devices"]] == [
        (uuid, float(LIMITS[uuid])) for uuid in (C, A, D, B)
    ]
    assert {one["driver"] for one in environment["devices"]} == {"580.65.06"}


@pytest.mark.finds("mig_parent_power")
def test_a_mig_instance_is_measured_by_its_parent_and_says_so(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    origin_ns = time.monotonic_ns()
    curve = Sawtooth(80, 400, 1300)
    nvml.write(
        f"origin_ns {origin_ns}",
        gpu(A),
        power(A, constant(50)),
        gpu(B, "mig yes"),
        f'device 1.0 uuid {M} name "NVIDIA H100 MIG 1g.10gb" gi 7 ci 0 memory_total 10737418240 memory_used 10485760',
        power(B, curve),
        "counter 1 period_ms 20 quantum_mj 100",
    )
    with gpu_worker(shared_house, nvml, "mig", M):
        run = only_run(shared_house, experiment(tmp_path, "mig"))
    result = result_of(shared_house, run)
    [device] = result.energy.devices
    assert (device.uuid, device.energy.method) == (M, EnergyMethod.COUNTER)
    assert device.energy.joules is not None and device.energy.bound_j is not None
    assert abs(device.energy.joules - truth(result, curve, origin_ns)) <= device.energy.bound_j
    [sampler] = events(shared_house, run, "sampler")
    assert [one["mig_parent_uuid"] for one in sampler["devices"]] == [B]
    assert "mig_parent_power" in codes(result)


def codes(result: RunResult) -> set[str]:
    return {finding.code.value for finding in result.findings}


@pytest.mark.finds("not_stationary", "baseline_drift", "negative_net_energy", "temperature_drift")
@pytest.mark.finds(
    "throttled", "sensor_disagreement", "foreign_process", "warmup_not_converged", "unidentified_process"
)
def test_what_is_wrong_with_devices_is_found_in_the_result(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    """Power that falls by an eighth in the window, heat, a stranger, and a sensor that looks away."""
    origin_ns = time.monotonic_ns()
    falling = ",".join(f"{second * 1000}:{4_000 * math.exp(-second / 25):.3f}" for second in range(0, 200, 2))
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], env={**os.environ, "LEM_ATTEMPT": "att_other"}, stdin=subprocess.PIPE
    ) as stranger:
        nvml.write(
            f"origin_ns {origin_ns}",
            gpu(A),
            f"power 0 trace {falling}",
            "counter 0 period_ms 20",
            "temperature 0 trace 0:20,200000:1020",
            "throttle 0 constant 32",  # by heat, as its software says
            gpu(B),
            power(B, Burst(75, 700, 100, 7)),
            "sensor 1 period_ms 100 window_ms 25",  # it sees the quarter that ends where each burst begins
            "counter 1 period_ms 20",
            f"process 1 pid {stranger.pid} memory 1073741824",
            f"process 1 pid {2**32 - 1} memory 5 bound no",
            *OWN_LISTED,
        )
        path = experiment(
            tmp_path,
            "rough",
            devices={"count": 2},
            window={"min_duration_s": 3},
            baseline={"min_s": 1, "max_s": 1, "ttl_s": 0},
            warmup={"max_requests": 2, "min_requests": 2, "window_size": 2, "cv_threshold": 1e-9, "power_slope": None},
        )
        with gpu_worker(shared_house, nvml, "rough", f"{A},{B}"):
            result = result_of(shared_house, only_run(shared_house, path))
        stranger.kill()
    assert codes(result) >= {
        "not_stationary",
        "baseline_drift",
        "negative_net_energy",
        "temperature_drift",
        "throttled",
        "sensor_disagreement",
        "foreign_process",
        "unidentified_process",
        "warmup_not_converged",
    }
    assert result.verdict == "questionable"
    assert result.energy.net.joules is not None and result.energy.net.joules < 0
    wrong = {finding.code.value: finding for finding in result.findings}
    assert B in wrong["sensor_disagreement"].message and A in wrong["throttled"].message
    # What is wrong is said, and the figure is right all the same.
    burst = next(device.energy for device in result.energy.devices if device.uuid == B)
    true_j = truth(result, Burst(75, 700, 100, 7), origin_ns)
    assert burst.joules is not None and burst.bound_j is not None
    assert abs(burst.joules - true_j) <= burst.bound_j


@pytest.mark.finds("limit_changed", "clocks_locked", "not_settled", "driver_slow", "throttled")
def test_what_others_set_and_what_a_driver_cannot_do_is_found(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    """A limit that is lowered in the window, locked clocks, heat between two looks, a device that does not cool."""
    machine = (
        f"origin_ns {time.monotonic_ns()}",
        gpu(A),
        power(A, constant(300)),
        "temperature 0 constant 85",
        "sm_clock 0 constant 345",
        "gpu_use 0 constant 97",
        "memory_use 0 constant 40",
        "throttle 0 constant 0",
        "violation_thermal 0 burst 0 1 200 60",
        "facts 0 sm_clock_max 1980",
        "delay nvmlDeviceGetTotalEnergyConsumption 25",
    )
    settle = {"temperature_c": 50, "max_s": 1}
    path = experiment(tmp_path, "set", window={"min_duration_s": 6}, settle=settle)
    before, after = ((*machine, f"limits 0 enforced_w {limit} current_w 700 default_w 700") for limit in (700, 300))
    run = changed_in_the_window(shared_house, nvml, path, before, lambda _: after)
    with shared_house.client() as client:
        result = client.aggregate(run.id)
    found = {finding.code.value: finding for finding in result.findings}
    assert found.keys() >= {"limit_changed", "clocks_locked", "not_settled", "driver_slow", "throttled"}
    assert found["limit_changed"].numbers == {"power_limit_w.before": 700, "power_limit_w.after": 300}
    assert found["throttled"].numbers == {f"{A}.thermal_violation": pytest.approx(0.3, abs=0.03)}
    assert "580.65.06" in found["driver_slow"].message


@pytest.mark.finds("foreign_load")
def test_the_load_of_others_on_the_cpu_of_a_cpu_run_is_found(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    nvml.write()
    busy = f"import time\nwhile time.monotonic() < {time.monotonic() + LONG_S}: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as other:
        with gpu_worker(shared_house, nvml, "busy", ""):
            path = experiment(tmp_path, "busy", energy={"sources": ["rapl"], "interval_ms": 50})
            result = result_of(shared_house, only_run(shared_house, path))
        other.kill()
    [found] = [finding for finding in result.findings if finding.code == "foreign_load"]
    assert 0.25 < found.numbers["cores"] <= (os.cpu_count() or 1)
    assert 0.1 < found.numbers["share"] < 1


@contextmanager
def counted_packages(folder: Path, watts: float, reset: threading.Event) -> Iterator[None]:
    """Two zones that show one counter, which begins again from zero when `reset` is set."""
    zones = [folder / f"intel-rapl:{number}" for number in range(2)]
    for zone in zones:
        zone.mkdir(parents=True)
        (zone / "name").write_text("package-0")
        (zone / "max_energy_range_uj").write_text("262143328850")
    ended, began_s = threading.Event(), time.monotonic()

    def count() -> None:
        zero_s = began_s - 1000
        was_reset = False
        while True:
            if reset.is_set() and not was_reset:
                was_reset, zero_s = True, time.monotonic()
            for zone in zones:
                draft = zone / "draft"
                draft.write_text(f"{round(watts * 1e6 * (time.monotonic() - zero_s))}")
                draft.replace(zone / "energy_uj")  # a reader sees a whole number
            if ended.wait(0.01):
                return

    counting = threading.Thread(target=count)
    counting.start()
    try:
        yield
    finally:
        ended.set()
        counting.join()


@pytest.mark.finds("counter_reset", "repeated_counter")
def test_counters_of_the_host_that_are_reset_or_repeated_are_found(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    """LEM_WORKER_POWERCAP_DIR names a folder that only this worker can know."""
    nvml.write()
    reset, powercap = threading.Event(), tmp_path / "powercap"
    path = experiment(
        tmp_path, "packages", window={"min_duration_s": 3}, energy={"sources": ["rapl"], "interval_ms": 50}
    )
    with (
        counted_packages(powercap, 40, reset),
        gpu_worker(shared_house, nvml, "packages", "", LEM_WORKER_POWERCAP_DIR=str(powercap)),
        shared_house.client() as client,
    ):
        assert shared_house.lemctl("submit", path).returncode == 0
        newest = max(client.campaigns(), key=lambda one: one.created_at)
        [queued] = client.runs(campaign_id=newest.id)
        for event in client.follow_run(queued.id):
            if isinstance(event, RunTransitionEvent) and event.target is RunState.RUNNING:
                time.sleep(1)
                reset.set()
        run = client.run(queued.id)
        assert run.state is RunState.COMPLETED, run.message
        result = client.aggregate(run.id)
    found = {finding.code: finding for finding in result.findings}
    assert found["counter_reset"].numbers == {"package-0.occurrences": 1}
    assert found["repeated_counter"].numbers == {"domains": 1}
    [gap] = [one for one in events(shared_house, run, "counter_gap") if one["domain"] == "package-0"]
    assert "a reset" in gap["reason"] and gap["reason"].rstrip(".") in found["counter_reset"].message
    parts = {part.domain: part.energy for part in result.energy.host}
    assert set(parts) == {"package-0", "repeated-package-0@intel-rapl:1"}
    total = result.energy.total
    assert total.method is EnergyMethod.INTEGRATED and total.joules is not None, total.reason
    assert total.joules == pytest.approx(40 * result.window.duration_s, rel=0.05)


@pytest.mark.finds("sampling_wakes_device")
def test_a_gpu_that_looking_wakes_is_found_at_the_start_of_its_worker(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    nvml.write(f"origin_ns {time.monotonic_ns()}", gpu(A), power(A, constant(60)), "sensor 0 wake_w 30 wake_ms 100")
    with gpu_worker(shared_house, nvml, "woken", A, LEM_WORKER_IDLE_CHECK="true"):
        run = only_run(shared_house, experiment(tmp_path, "woken"))
    [found] = [finding for finding in result_of(shared_house, run).findings if finding.code == "sampling_wakes_device"]
    assert 60 < found.numbers[f"{A}.unsampled_w"] < 70, "a few polls find the updates of the counter"
    assert found.numbers[f"{A}.sampled_w"] == pytest.approx(90, abs=3)
    with shared_house.client() as client:
        [attempt] = client.attempts(run.id)
    [device] = (attempt.environment or {})["devices"]
    assert device["idle_power"]["sampled_w"] == found.numbers[f"{A}.sampled_w"]


@pytest.mark.finds("few_samples", "sampler_overload")
def test_a_driver_that_answers_slowly_is_said_to_leave_few_samples(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    nvml.write(
        f"origin_ns {time.monotonic_ns()}",
        gpu(A),
        power(A, constant(300)),
        "delay nvmlDeviceGetTotalEnergyConsumption 600",
    )
    path = experiment(tmp_path, "slow", window={"min_duration_s": 1.5})
    with gpu_worker(shared_house, nvml, "slow", A):
        result = result_of(shared_house, only_run(shared_house, path))
    assert codes(result) >= {"few_samples", "sampler_overload"}
    [device] = result.energy.devices
    assert device.energy.joules is not None and device.energy.bound_j is not None
    assert abs(device.energy.joules - 300 * result.window.duration_s) <= device.energy.bound_j


def test_readings_that_fail_next_to_power_cost_no_energy_and_are_reported(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    nvml.write(
        f"origin_ns {time.monotonic_ns()}",
        *(line for uuid in (A, B) for line in (gpu(uuid), power(uuid, constant(300)))),
        *(f"error {symbol} 999 {NUMBERS[A]}" for symbol in ("nvmlDeviceGetTemperature", "nvmlDeviceGetVbiosVersion")),
        # Once: a driver that never listed them would keep the worker from giving the device back, for half a minute.
        f"error nvmlDeviceGetComputeRunningProcesses 999 {NUMBERS[A]} call 2",
        f"error nvmlDeviceGetTotalEnergyConsumption 3 {NUMBERS[B]} call 20",  # "not supported", once
    )
    energy = {"sources": ["nvml"], "interval_ms": 20, "required": True}
    path = experiment(tmp_path, "half_blind", devices={"count": 2}, energy=energy)
    with gpu_worker(shared_house, nvml, "half_blind", f"{A},{B}"):
        run = only_run(shared_house, path)
    result = result_of(shared_house, run)
    assert result.energy.total.joules is not None and result.energy.total.bound_j is not None
    assert abs(result.energy.total.joules - 600 * result.window.duration_s) <= result.energy.total.bound_j
    assert events(shared_house, run, "source_failed") == []
    assert {(told["device_index"], told["reading"]) for told in events(shared_house, run, "reading_failed")} == {
        (0, "temperature"),
        (0, "Compute processes"),
        (0, "VBIOS version"),
        (1, "energy counter"),
    }


def changed_in_the_window(
    house: Any, nvml: SimulatedNvml, path: Path, before: Sequence[str], after: Callable[[int], Sequence[str]]
) -> Any:
    """The run, when it is over, during whose window the machine became another; `after` is given the time in ns."""
    nvml.write(*before)
    with gpu_worker(house, nvml, path.stem, A), house.client() as client:
        assert house.lemctl("submit", path).returncode == 0
        newest = max(client.campaigns(), key=lambda one: one.created_at)
        states = set()
        for event in client.follow_campaign(newest.id):
            if isinstance(event, RunTransitionEvent):
                if event.target is RunState.RUNNING:
                    nvml.write(*after(time.monotonic_ns()))
                states.add(event.target)
        [run] = client.runs(campaign_id=newest.id)
        assert RunState.RUNNING in states, run.message
    return run


def lost_in_the_window(house: Any, nvml: SimulatedNvml, path: Path, away_ms: float = 1e9) -> Any:
    """The run, when it is over, during whose window its GPU was away for a time, or for good."""
    origin_ns = time.monotonic_ns()
    machine = (f"origin_ns {origin_ns}", power(A, constant(300)))

    def lost(now_ns: int) -> Sequence[str]:
        now_ms = (now_ns - origin_ns) / 1e6
        return machine[0], gpu(A, f"gone_ms {now_ms} back_ms {now_ms + away_ms}"), machine[1]

    return changed_in_the_window(house, nvml, path, (machine[0], gpu(A), machine[1]), lost)


EVERY_DAY = "GB10"
"""The chip that differs most from the H100 of the other tests; the rest are slow only by their number."""


@pytest.mark.parametrize(
    "chip", [pytest.param(chip, marks=() if chip == EVERY_DAY else pytest.mark.slow) for chip in PROFILES]
)
def test_a_run_on_every_chip_has_its_energy_and_what_the_chip_lacks_is_null_with_a_reason(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path, chip: str
) -> None:
    profile = PROFILES[chip]
    watts = 0.6 * (profile.limits.enforced if profile.limits else 60)
    nvml.write(f"origin_ns {time.monotonic_ns()}", *profile.lines(0, A, f"constant {watts}"), OWN_LISTED[0])
    name = f"chip_{chip.lower().replace(' ', '_')}"
    with gpu_worker(shared_house, nvml, name, A):
        run = only_run(shared_house, experiment(tmp_path, name))
    result = result_of(shared_house, run)
    [device] = result.energy.devices
    assert device.energy.method is EnergyMethod.COUNTER
    assert device.energy.joules is not None and device.energy.bound_j is not None
    assert abs(device.energy.joules - watts * result.window.duration_s) <= device.energy.bound_j
    [telemetry] = result.telemetry.devices
    memory = telemetry.memory_peak_mb
    assert (memory.value is None) == (profile.memory_bytes is None) == (memory.reason is not None)
    assert telemetry.violated == ({} if profile.has_violations else None)
    assert result.compute.peak_flops_per_s.value or result.compute.peak_flops_per_s.reason
    assert events(shared_house, run, "reading_failed") == []
    assert events(shared_house, run, "source_failed") == []
    [sampler] = events(shared_house, run, "sampler")
    [facts] = sampler["devices"]
    assert facts["power_limit_w"] == (profile.limits.enforced if profile.limits else None)
    assert "idle_power" not in facts, "LEM_WORKER_IDLE_CHECK is off"
    assert ("memory" in facts["unsupported"]) == (profile.memory_bytes is None)


@pytest.mark.finds("implausible_readings", "counter_stalled", "counter_reset", "part_time_sensor")
def test_counters_that_leap_stop_and_go_back_are_found(shared_house: Any, nvml: SimulatedNvml, tmp_path: Path) -> None:
    """During the window A's counter leaps, B's stops and C's begins again from zero; D has none."""
    origin_ns = time.monotonic_ns()
    gpus = (A, B, C, D)
    machine = (
        f"origin_ns {origin_ns}",
        *(gpu(uuid) for uuid in gpus),
        *(power(uuid, constant(300)) for uuid in gpus),
        *(f"limits {number} enforced_w 700" for number in range(4)),
        "counter 3 supported no",
    )
    counters = tuple(f"counter {number} period_ms 20 base_mj 5000000" for number in range(3))
    nvml.write(*machine, *counters)
    path = experiment(tmp_path, "counters", window={"min_duration_s": 8}, devices={"count": 4})
    with gpu_worker(shared_house, nvml, "counters", ",".join(gpus)), shared_house.client() as client:
        assert shared_house.lemctl("submit", path).returncode == 0
        newest = max(client.campaigns(), key=lambda one: one.created_at)
        [queued] = client.runs(campaign_id=newest.id)
        for event in client.follow_run(queued.id):
            if isinstance(event, RunTransitionEvent) and event.target is RunState.RUNNING:
                now_ms = (time.monotonic_ns() - origin_ns) / 1e6 + 1000
                changes = (f"leap_ms {now_ms} leap_mj 1e12", f"stall_ms {now_ms}", f"reset_ms {now_ms}")
                nvml.write(*machine, *(f"{line} {then}" for line, then in zip(counters, changes, strict=True)))
        run = client.run(queued.id)
        assert run.state is RunState.COMPLETED, run.message
        result = client.aggregate(run.id)
    found = {finding.code: finding for finding in result.findings}
    assert f"{A}.counter_leap" in found["implausible_readings"].numbers
    assert f"{B}.longest_s" in found["counter_stalled"].numbers
    assert f"{C}.occurrences" in found["counter_reset"].numbers
    assert found["part_time_sensor"].numbers == {f"{uuid}.share": 0.25 for uuid in sorted(gpus)}
    for device in result.energy.devices:
        assert device.energy.method is (EnergyMethod.COUNTER if device.uuid in (A, C) else EnergyMethod.INTEGRATED)
        assert device.energy.joules is not None and device.energy.bound_j is not None
        assert abs(device.energy.joules - 300 * result.window.duration_s) <= device.energy.bound_j


@pytest.mark.finds("energy_unavailable")
def test_a_gpu_that_is_lost_in_the_window_costs_the_energy_and_is_named(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    path = experiment(tmp_path, "lost", window={"min_duration_s": 10})
    run = lost_in_the_window(shared_house, nvml, path)
    assert run.state is RunState.COMPLETED, run.message
    with shared_house.client() as client:
        result = client.aggregate(run.id)
    assert result.work.requests > 0
    assert result.energy.total.joules is None
    assert f"of {A} (GPU is lost)" in (result.energy.total.reason or "")
    assert "energy_unavailable" in {finding.code for finding in result.findings}
    [failed] = events(shared_house, run, "source_failed")
    assert f"of {A} (GPU is lost)" in failed["reason"]
    assert result.window.begin_ns < failed["time_ns"] < result.window.end_ns


def test_a_gpu_that_is_away_for_a_moment_costs_nothing_as_its_counter_spans_the_gap(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    energy = {"sources": ["nvml"], "interval_ms": 5, "required": True}
    path = experiment(tmp_path, "moment", window={"min_duration_s": 5}, energy=energy)
    run = lost_in_the_window(shared_house, nvml, path, away_ms=400)
    assert run.state in (RunState.COMPLETED, RunState.AGGREGATED), run.message
    with shared_house.client() as client:
        result = client.aggregate(run.id)
    total = result.energy.total
    assert total.joules is not None and total.bound_j is not None and total.method is EnergyMethod.COUNTER
    assert abs(total.joules - 300 * result.window.duration_s) <= total.bound_j
    assert events(shared_house, run, "source_failed") == []
    returned = {one["reading"]: one for one in events(shared_house, run, "reading_returned")}
    assert {"energy counter", "instant power"} <= set(returned)
    assert 0.3 < returned["energy counter"]["away_s"] < 4
    assert result.window.begin_ns < returned["energy counter"]["time_ns"] < result.window.end_ns


@pytest.mark.slow
def test_a_gpu_that_is_lost_fails_a_run_that_requires_energy(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    energy = {"sources": ["nvml"], "interval_ms": 20, "required": True}
    path = experiment(tmp_path, "required", window={"min_duration_s": 60}, energy=energy)
    run = lost_in_the_window(shared_house, nvml, path)
    assert run.state is RunState.FAILED
    assert f"of {A} (GPU is lost)" in (run.message or "")


@pytest.mark.finds("calibration_unused")
@pytest.mark.proves("energy.calibration", on="NVML simulated")
def test_a_gpu_that_reads_too_little_is_corrected_by_its_calibration(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    curve, origin_ns = Sawtooth(100, 400, 2500), time.monotonic_ns()
    nvml.write(
        f"origin_ns {origin_ns}",
        gpu(A),
        power(A, curve),
        "sensor 0 gain 0.91 offset_w -12 average_ms 20",
        "counter 0 supported no",
        "error nvmlDeviceGetFieldValues 3 0 field 186",
        *OWN_LISTED[:1],
    )
    entry = {"gain": 0.91, "gain_bound": 0.005, "offset_w": -12, "offset_bound_w": 1, "source": "a meter"}
    entries = [{"device": A, **entry}, {"device": "NVIDIA H200", **entry}]
    energy = {"sources": ["nvml"], "interval_ms": 20, "calibration": entries}
    path = experiment(tmp_path, "calibrated", window={"min_duration_s": 10}, energy=energy)
    with gpu_worker(shared_house, nvml, "calibrated", A):
        run = only_run(shared_house, path)
    result = result_of(shared_house, run)
    (device,) = result.energy.devices
    true_j = truth(result, curve, origin_ns)
    assert device.energy.joules is not None and device.energy.bound_parts is not None
    assert device.energy.bound_parts.sensor_gain == 0.005
    assert abs(device.energy.joules - true_j) <= (device.energy.bound_j or 0.0)
    assert device.energy.joules == pytest.approx(true_j, rel=0.02)
    assert device.uncorrected_j == pytest.approx(0.91 * true_j - 12 * result.window.duration_s, rel=0.02)
    assert "calibration_unused" in codes(result)

    # Both are also found by a meter's log of that time, and applied afterwards.
    ahead_ns = time.time_ns() - time.monotonic_ns()
    edges = range(origin_ns, time.monotonic_ns(), 200_000_000)
    rows = [
        f"{end + ahead_ns},{joules(curve, begin, end, origin_ns=origin_ns) / 0.2}" for begin, end in pairwise(edges)
    ]
    log, file = tmp_path / "meter.csv", tmp_path / "calibration.yaml"
    log.write_text("\n".join(["time,power", *rows]))
    done = shared_house.lemctl("calibrate", log, "--run", run.id, "--meter-accuracy", "0", "-o", file, "--json")
    assert done.returncode == 0, done.stderr
    fit = CalibrationFit.model_validate_json(done.stdout)
    assert fit.gain_interval.low <= 0.91 <= fit.gain_interval.high
    assert fit.offset_interval_w.low <= -12 <= fit.offset_interval_w.high
    assert fit.gain_interval.high - fit.gain_interval.low < 0.1
    done = shared_house.lemctl("results", run.campaign_id, "--calibration", file)
    assert done.returncode == 0, done.stderr
    (again,) = result_of(shared_house, run).energy.devices
    assert again.calibration == fit.calibration
    assert again.energy.joules is not None and again.energy.joules != device.energy.joules
    assert abs(again.energy.joules - true_j) <= (again.energy.bound_j or 0.0)


@pytest.mark.slow
@pytest.mark.finds("cycles_drift", "counter_slow")
def test_power_that_falls_from_cycle_to_cycle_is_found_in_the_results(
    shared_house: Any, nvml: SimulatedNvml, tmp_path: Path
) -> None:
    """It falls when a run is over, because the cycles of a loaded machine differ in their length."""
    origin_ns = time.monotonic_ns()
    steps = ["0:500"]

    def write() -> None:
        nvml.write(
            f"origin_ns {origin_ns}",
            gpu(A),
            f"power 0 steps {','.join(steps)}",
            "counter 0 period_ms 100",
            "temperature 0 trace 0:80,400000:40",
        )

    write()
    path = experiment(
        tmp_path, "drift", window={"min_duration_s": 0.5}, warmup={"enabled": False}, execution={"cycles": 5}
    )
    with gpu_worker(shared_house, nvml, "drift", A):
        assert shared_house.lemctl("submit", path).returncode == 0
        with shared_house.client() as client:
            newest = max(client.campaigns(), key=lambda one: one.created_at)
            for event in client.follow_campaign(newest.id):
                if isinstance(event, RunTransitionEvent) and event.target is RunState.COMPLETED:
                    steps.append(f"{(time.monotonic_ns() - origin_ns) // 10**6}:{500 - 60 * len(steps)}")
                    write()
            client.aggregate_campaign(newest.id)
            (found,) = client.results(newest.id).experiments
    assert found.verdict == "questionable"
    for code in ("cycles_drift", "counter_slow"):
        remedy = RULES[FindingCode(code)].remedy.replace("`", "")
        assert any(finding.endswith(f"; {remedy}.") for finding in found.findings), (code, found.findings)
    conditions = {condition.name: condition.met for condition in found.publication}
    assert conditions["cycles"] and not conditions["steady_state"]
