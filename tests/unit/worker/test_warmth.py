"""How warm devices are, as claims tell it, through the unmodified nvidia-ml-py over a simulated driver library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fakes.nvml.library import SimulatedNvml, built
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.daemon.temperatures import read_temperatures

WARM, SILENT = "GPU-aaaa1111-0000-0000-0000-000000000001", "GPU-bbbb2222-0000-0000-0000-000000000002"
SCRIPT = """
import asyncio, json, os
from lem_domain.wire.workers import Device
from lem_worker.daemon.temperatures import read_temperatures
devices = [Device.model_validate(one) for one in json.loads(os.environ["DEVICES"])]
print(json.dumps(asyncio.run(read_temperatures(devices))))
"""


def told(nvml: SimulatedNvml, *uuids: str) -> dict[str, float]:
    devices = [{"uuid": uuid, "kind": "gpu", "name": "GPU"} for uuid in uuids]
    devices.append({"uuid": "CPU-1", "kind": "cpu", "name": "CPU"})
    found: dict[str, float] = json.loads(nvml.python(SCRIPT, {"DEVICES": json.dumps(devices)}))
    return found


@pytest.fixture
def nvml(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulatedNvml:
    return SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")


def test_each_gpu_that_says_it_is_reported(nvml: SimulatedNvml) -> None:
    nvml.write(f"device 0 uuid {WARM}", f"device 1 uuid {SILENT}", "temperature 0 constant 61")
    assert told(nvml, WARM, SILENT) == {WARM: 61}


@pytest.mark.anyio
async def test_devices_without_a_sensor_are_not_asked() -> None:
    assert await read_temperatures([Device(uuid="CPU-1", kind=DeviceKind.CPU, name="CPU")]) == {}


@pytest.mark.anyio
async def test_a_machine_without_a_driver_reports_nothing() -> None:
    assert await read_temperatures([Device(uuid=WARM, kind=DeviceKind.GPU, name="GPU")]) == {}
