"""What looking at a GPU at rest costs, over a simulated NVML whose polls may raise its power."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml.library import SimulatedNvml, built
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.daemon import idle_power
from lem_worker.daemon.idle_power import measure_idle_power

A, B = (f"GPU-{letter * 8}-0000-0000-0000-000000000000" for letter in "ab")
M = "MIG-11111111-0000-0000-0000-000000000000"

PROGRAM = """
import os, sys
from pydantic import TypeAdapter
from lem_worker.sampler import idle_power
idle_power.SPAN_S = 0.5
found = idle_power.measured(os.environ["ASKED"].split())
print(TypeAdapter(tuple[idle_power.IdlePower, ...]).dump_json(found).decode())
"""


@pytest.fixture
def nvml(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulatedNvml:
    return SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")


def measured(nvml: SimulatedNvml, *machine: str, asked: str = A) -> list[Mapping[str, Any]]:
    nvml.write(f"origin_ns {time.monotonic_ns()}", *machine)
    said: list[Mapping[str, Any]] = json.loads(nvml.python(PROGRAM, {"ASKED": asked}))
    return said


def gpu(number: int, uuid: str, more: str = "") -> str:
    return f'device {number} uuid {uuid} name "NVIDIA H100" memory_total 80000 memory_used 500 {more}'


def test_each_gpu_has_its_power_with_and_without_sampling(nvml: SimulatedNvml) -> None:
    """Polls keep A awake, and B does not mind."""
    one, other = measured(
        nvml,
        *(gpu(0, A), gpu(1, B), "power 0 constant 60", "power 1 constant 80"),
        *("counter 0 period_ms 20", "counter 1 period_ms 20", "sensor 0 wake_w 60 wake_ms 100"),
        asked=f"{A} {B}",
    )
    assert (one["uuid"], other["uuid"]) == (A, B)
    # The polls that find the updates of the counter wake it too, and a busy machine may poll late.
    assert 60 < one["unsampled_w"] < one["sampled_w"] - 15 < 110
    for name in ("unsampled_w", "sampled_w"):
        assert abs(other[name] - 80) <= other["uncertainty_w"] + 0.1


def test_a_gpu_that_cools_is_no_gpu_that_sampling_changes(nvml: SimulatedNvml) -> None:
    """10 W in each second; from the first span to the last it is 1.5 s."""
    [one] = measured(nvml, gpu(0, A), "power 0 trace 0:400,30000:100", "counter 0 period_ms 20")
    assert one["uncertainty_w"] > 10
    assert abs(one["sampled_w"] - one["unsampled_w"]) < one["uncertainty_w"]


@pytest.mark.parametrize(
    ("machine", "asked", "reason"),
    [
        pytest.param(("counter 0 supported no",), A, "it has no energy counter", id="no counter"),
        pytest.param(("gpu_use 0 constant 80", "memory_use 0 constant 9"), A, "it is used to 80 %", id="busy"),
        pytest.param(("process 0 pid 1 memory 99 bound no",), A, "a process is on it", id="a foreign process"),
        pytest.param(("counter 0 period_ms 2500",), A, "its energy counter was not updated within", id="slow counter"),
        pytest.param(("error nvmlDeviceGetHandleByUUID 15 0",), A, "NVML does not answer about", id="lost"),
        pytest.param(("error nvmlInitWithFlags 9",), A, "no NVIDIA driver answers here", id="no driver"),
        pytest.param((f'device 0.0 uuid {M} name "part" gi 1 ci 0',), M, "it is a part of a GPU", id="MIG instance"),
    ],
)
def test_what_cannot_be_known_is_null_with_its_reason(
    nvml: SimulatedNvml, machine: tuple[str, ...], asked: str, reason: str
) -> None:
    [one] = measured(nvml, gpu(0, A), "power 0 constant 60", *machine, asked=asked)
    assert (one["unsampled_w"], one["sampled_w"]) == (None, None)
    assert one["reason"].startswith(reason)


@pytest.mark.parametrize(
    ("program", "timeout_s", "reason"),
    [
        ("import time; time.sleep(60)", 0.2, "NVML did not answer within 0.2 s"),
        ("exit(1)", 30, "its measurement failed"),
    ],
)
def test_a_driver_that_hangs_or_a_program_that_fails_delays_no_worker(
    monkeypatch: pytest.MonkeyPatch, program: str, timeout_s: float, reason: str
) -> None:
    real = asyncio.create_subprocess_exec

    async def other(python: str, *_: str, **more: Any) -> asyncio.subprocess.Process:
        return await real(python, "-c", program, **more)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", other)
    monkeypatch.setattr(idle_power, "TIMEOUT_S", timeout_s)
    [one] = asyncio.run(measure_idle_power([Device(uuid=A, kind=DeviceKind.GPU, name="GPU")]))
    assert one.uuid == A and one.reason is not None and one.reason.startswith(reason)


def test_a_worker_without_gpus_measures_nothing() -> None:
    assert asyncio.run(measure_idle_power([Device(uuid="CPU-1", kind=DeviceKind.CPU, name="CPU")])) == ()
