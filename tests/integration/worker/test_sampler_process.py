"""The sampler as a process of its own: its messages, its cadence and its evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml.library import SimulatedNvml, built
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.codec import decode_chunk
from lem_domain.evidence.streams import StreamName
from lem_domain.states import FailureReason
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.process.protocol import (
    BaselineTaken,
    Done,
    Failed,
    ReuseBaseline,
    SamplerJob,
    SamplingStarted,
    Settle,
    Settled,
    Stop,
    TakeBaseline,
    Tick,
)
from lem_worker.process.spool import sealed_chunks

MODULE = "lem_worker.sampler.main"
SIMULATED = tuple(Device(uuid=f"SIM-{place}", kind=DeviceKind.SIMULATED, name="simulated") for place in range(2))
CPU = (Device(uuid="CPU-0", kind=DeviceKind.CPU, name="cpu"),)
POWER_W = 40.0
INTERVAL_NS = 20_000_000


def job(folder: Path, devices: tuple[Device, ...] = SIMULATED, **config: Any) -> SamplerJob:
    document = {
        "backend": "simulated",
        "model": "m",
        "energy": {"interval_ms": 20},
        **({"simulated": {"power_w": POWER_W}} if config.get("backend", "simulated") == "simulated" else {}),
        **config,
    }
    return SamplerJob(
        attempt_id="a", config=ExperimentConfig.model_validate(document), spool=str(folder / "spool"), devices=devices
    )


def rows(task: SamplerJob, stream: StreamName) -> list[dict[str, Any]]:
    """All rows of a stream, from the files in the spool."""
    files = [chunk.path for chunk in sealed_chunks(Path(task.spool)) if chunk.stream is stream]
    return [row for file in files for row in decode_chunk(stream, file.read_bytes()).to_pylist()]


@pytest.mark.proves("energy.interval_ms", "simulated.power_w", on="simulated")
def test_it_samples_from_the_first_to_the_last_moment(tmp_path: Path, drive: Callable[..., Any]) -> None:
    task = job(tmp_path)
    process = drive(MODULE, task)
    (report,) = process.until(SamplingStarted).sources
    assert (report.name, report.opened, report.method, report.domains) == (
        "simulated",
        True,
        "counter",
        ("SIM-0", "SIM-1"),
    )
    assert process.until(Tick).power_w == 2 * POWER_W
    assert process.until(Tick).power_w == 2 * POWER_W  # a second later
    process.send(Stop())
    done = process.until(Done)
    assert process.to_the_end() == 0, process.stderr()
    for device in (0, 1):
        samples = [row for row in rows(task, StreamName.POWER) if row["device_index"] == device]
        first, last = samples[0], samples[-1]
        seconds = (last["time_ns"] - first["time_ns"]) / 1e9
        assert seconds > 1
        assert abs(last["energy_mj"] - first["energy_mj"] - POWER_W * 1000 * seconds) <= 1
        assert {row["power_mw"] for row in samples} == {POWER_W * 1000}
        # Every deadline of the grid was sampled or is counted as missed; the first and the last sample come on top.
        assert len(samples) == int(str(done.summary["ticks"])) + 2
    assert int(str(done.summary["ticks"])) + int(str(done.summary["missed"])) >= 1e9 // INTERVAL_NS
    assert 0 <= float(str(done.summary["cpu_s"])) < 2
    (event,) = [row for row in rows(task, StreamName.EVENTS) if row["kind"] == "sampler"]
    assert json.loads(event["detail"]) == done.summary


def test_a_source_that_can_not_exist_here_is_reported_and_the_run_continues(
    tmp_path: Path, drive: Callable[..., Any]
) -> None:
    task = job(tmp_path, CPU)
    process = drive(MODULE, task)
    (report,) = process.until(SamplingStarted).sources
    assert not report.opened
    assert "remove it from energy.sources" in (report.reason or "")
    process.send(Stop())
    done = process.until(Done)
    assert process.to_the_end() == 0
    assert rows(task, StreamName.POWER) == []
    assert {row["kind"] for row in rows(task, StreamName.EVENTS)} == {
        "source_failed",
        "clock",
        "cpu_load",
        "sampler",
    }
    assert "remove it from energy.sources" in str(done.summary["sources"])


@pytest.mark.proves("energy.required", on="simulated")
def test_required_energy_that_can_not_be_had_fails_the_run(tmp_path: Path, drive: Callable[..., Any]) -> None:
    process = drive(MODULE, job(tmp_path, CPU, energy={"required": True}))
    failed = process.until(Failed)
    assert process.to_the_end() == 1
    assert failed.reason is FailureReason.BACKEND_INITIALISATION
    assert "the energy source simulated failed and energy.required is set" in failed.message
    assert [manifest.stream for manifest in failed.streams] == [StreamName.EVENTS]


def test_the_host_is_measured_where_it_can_be_and_modelled_elsewhere(tmp_path: Path, drive: Callable[..., Any]) -> None:
    task = job(tmp_path, CPU, backend="pytorch")
    process = drive(MODULE, task)
    rapl, codecarbon = process.until(SamplingStarted).sources
    assert (rapl.name, codecarbon.name) == ("rapl", "codecarbon")
    assert rapl.opened != codecarbon.opened, (rapl, codecarbon)
    assert rapl.reason or "rapl" in str(codecarbon.reason)
    process.send(Stop())
    process.until(Done)
    assert process.to_the_end() == 0
    samples = rows(task, StreamName.HOST_POWER)
    assert {row["domain"] for row in samples} == set((rapl if rapl.opened else codecarbon).domains)
    assert {row["method"] for row in samples} == {"counter" if rapl.opened else "modelled"}
    assert len(samples) >= 2


@pytest.mark.proves("baseline.min_s", on="simulated")
def test_a_baseline_is_a_phase_of_the_sampler_and_ends_by_itself(tmp_path: Path, drive: Callable[..., Any]) -> None:
    task = job(tmp_path, baseline={"min_s": 3, "max_s": 20}, simulated={"power_w": 70})
    process = drive(MODULE, task)
    process.until(SamplingStarted)
    process.send(TakeBaseline(context="idle"))
    assert process.until(BaselineTaken) == BaselineTaken(
        context="idle", stationary=True, power_w=140, parts_w={"SIM-0": 70, "SIM-1": 70}
    )
    process.send(Settle())
    assert process.until(Settled).settled
    process.send(ReuseBaseline(parts_w={"SIM-0": 60}, age_s=12, taken_by="att_1"))
    process.send(TakeBaseline(context="ready"))
    process.send(Stop())
    summary = process.until(Done).summary
    assert process.to_the_end() == 0
    marks = rows(task, StreamName.PHASES)
    assert [(row["phase"], row["edge"]) for row in marks] == [
        (phase, edge) for phase in ("baseline", "settle", "baseline") for edge in ("begin", "end")
    ]
    assert json.loads(str(marks[-1]["detail"]))["stationary"] is False, "it was broken off"
    assert 0 <= summary["cpu_s"] <= summary["duration_s"]
    (reused,) = (
        json.loads(str(row["detail"])) for row in rows(task, StreamName.EVENTS) if row["kind"] == "baseline_reused"
    )
    assert reused == {"context": "idle", "parts": {"SIM-0": 60}, "age_s": 12, "taken_by": "att_1"}
    first, last = (json.loads(str(row["detail"])) for row in rows(task, StreamName.EVENTS) if row["kind"] == "clock")
    passed_ns = last["monotonic_ns"] - first["monotonic_ns"]
    assert abs(last["utc_ns"] - first["utc_ns"] - passed_ns) < 1_000_000_000


def test_a_gpu_that_dies_is_no_power_and_nothing_to_wait_for(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, drive: Callable[..., Any]
) -> None:
    nvml = SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")
    uuid = "GPU-aaaaaaaa-0000-0000-0000-000000000000"
    machine = f'device 0 uuid {uuid} name "NVIDIA H100" memory_total 80000 memory_used 500'
    curves = ("power 0 constant 300", "temperature 0 constant 70")
    nvml.write(machine, *curves)
    task = job(
        tmp_path,
        (Device(uuid=uuid, kind=DeviceKind.GPU, name="NVIDIA H100"),),
        backend="pytorch",
        energy={"sources": ["nvml"], "interval_ms": 20},
        baseline={"min_s": 1, "max_s": 600},
        settle={"temperature_c": 30, "idle_power": True, "max_s": 600},
    )
    process = drive(MODULE, task, **nvml.environment())
    assert [report.opened for report in process.until(SamplingStarted).sources] == [True]
    while (tick := process.until(Tick)).power_slope is None:
        assert tick.power_w == 300
    assert tick.power_slope == pytest.approx(0)
    process.send(Settle())
    nvml.write(f"{machine} gone_ms 0", *curves)
    assert process.until(Settled) == Settled(settled=False)
    assert (process.until(Tick).power_w, process.until(Tick).power_slope) == (None, None)
    process.send(TakeBaseline(context="ready"))
    assert process.until(BaselineTaken) == BaselineTaken(context="ready", stationary=False, power_w=None, parts_w={})
    process.send(Stop())
    [source] = process.until(Done).summary["sources"]
    assert process.to_the_end() == 0, process.stderr()
    assert f"of {uuid} (GPU is lost)" in source["reason"]
    assert json.loads(str(rows(task, StreamName.PHASES)[1]["detail"]))["reason"].endswith("a temperature")


def test_a_sampler_whose_daemon_is_gone_ends(tmp_path: Path, drive: Callable[..., Any]) -> None:
    process = drive(MODULE, job(tmp_path))
    process.until(SamplingStarted)
    process.hang_up()
    assert process.process.wait() != 0
