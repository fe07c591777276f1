"""The worker's view of NVML, through the unmodified nvidia-ml-py over a simulated driver library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml.library import SimulatedNvml, built

GIB = 2**30
A = "GPU-aaaa1111-0000-0000-0000-000000000001"
B = "GPU-bbbb2222-0000-0000-0000-000000000002"
C = "GPU-bbbb3333-0000-0000-0000-000000000003"
M1 = "MIG-11111111-0000-0000-0000-000000000001"
M2 = "MIG-22222222-0000-0000-0000-000000000002"

SCRIPT = """
import json, os, sys
from lem_domain.errors import LemError
from lem_worker.devices.cuda_visible import visible_gpus
def asked(environment):
    try:
        found = visible_gpus(environment)
    except LemError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {"uuids": [one.uuid for one in found.devices], "names": [one.name for one in found.devices],
            "remarks": list(found.remarks)}
print(json.dumps([asked(one) for one in json.loads(os.environ["ENVIRONMENTS"])]))
assert "torch" not in sys.modules
"""


@pytest.fixture
def nvml(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulatedNvml:
    return SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")


def gpu(number: int, uuid: str, *, name: str = "NVIDIA H100", more: str = "") -> str:
    # The bus runs against NVML's numbers, so that nothing passes by their accident.
    bus = 0x90 - number
    return (
        f'device {number} uuid {uuid} name "{name}" pci 00000000:{bus:02X}:00.0 memory_total {80 * GIB} '
        f"memory_used {GIB} {more}"
    )


def answers(nvml: SimulatedNvml, *environments: Mapping[str, str]) -> list[dict[str, Any]]:
    said = nvml.python(SCRIPT, {"ENVIRONMENTS": json.dumps(environments)})
    return list(json.loads(said))


def answer(nvml: SimulatedNvml, setting: str | None = None, **more: str) -> dict[str, Any]:
    visible = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    return answers(nvml, {**visible, **more})[0]


def chosen(nvml: SimulatedNvml, *settings: str, **more: str) -> list[list[str]]:
    return [one["uuids"] for one in answers(nvml, *({"CUDA_VISIBLE_DEVICES": one, **more} for one in settings))]


def test_every_gpu_is_listed_in_the_order_of_the_bus(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), gpu(1, B, name="NVIDIA A100"), gpu(2, C))
    assert answer(nvml) == {
        "uuids": [C, B, A],
        "names": ["NVIDIA H100", "NVIDIA A100", "NVIDIA H100"],
        "remarks": [],
    }


def test_numbers_count_the_bus_and_not_nvml(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), gpu(1, B), gpu(2, C))
    assert chosen(nvml, "0", "2,0", "1, 2") == [[C], [A, C], [B, A]]


def test_numbers_of_different_gpus_are_refused_unless_their_order_is_set(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), gpu(1, B, name="NVIDIA A100"))
    plain, fastest, by_bus, by_uuid = answers(
        nvml,
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"},
        {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        {"CUDA_VISIBLE_DEVICES": A},
    )
    assert "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the GPUs by UUID." in plain["refused"]
    assert fastest["refused"] == plain["refused"]
    assert by_bus["uuids"] == [B]
    assert by_uuid["uuids"] == [A]


def test_uuids_may_be_cut_short_as_long_as_they_mean_one(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), gpu(1, B), gpu(2, C))
    assert chosen(nvml, f"{B},{A}", "GPU-bbbb3,GPU-a", "GPU-a,GPU-bbbb") == [[B, A], [C, A], [A]]


def test_an_invalid_entry_ends_the_list_and_is_named(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), gpu(1, B), gpu(2, C))
    invalid = ("-1", "3", "0x1", "NoDevFiles", "GPU-ffff", "MIG-ffff", "")
    said = answers(nvml, *({"CUDA_VISIBLE_DEVICES": f"{A},{one},{B}"} for one in invalid))
    assert [one["uuids"] for one in said] == [[A]] * len(invalid)
    for entry, one in zip(invalid, said, strict=True):
        assert (repr(entry) if entry else "an empty entry") in one["remarks"][0]


def test_an_empty_setting_hides_every_gpu(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A))
    assert chosen(nvml, "") == [[]]


def test_a_gpu_named_twice_hides_them_all_as_it_does_for_cuda(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), gpu(1, B))
    assert chosen(nvml, f"{A},{B},1") == [[]]


def split(*instances: str) -> tuple[str, ...]:
    parts = (
        f'device 1.{slot} uuid {uuid} name "NVIDIA H100 MIG 1g.10gb" gi {7 + slot} ci 0 memory_total {10 * GIB}'
        for slot, uuid in zip((0, 3), instances, strict=False)
    )
    return (gpu(0, A), gpu(1, B, more="mig yes"), *parts)


def test_a_split_gpu_represents_its_instances(nvml: SimulatedNvml) -> None:
    nvml.write(*split(M1, M2))
    said = answer(nvml)
    assert said["uuids"] == [M1, M2, A]


def test_instances_are_named_by_uuid_or_by_gpu_and_number(nvml: SimulatedNvml) -> None:
    nvml.write(*split(M1, M2))
    old = f"MIG-{B}/10/0"
    assert chosen(nvml, M2, "MIG-1", old, f"{M1},{old}", f"MIG-{B}/9/0") == [[M2], [M1], [M2], [M1, M2], []]


def test_a_split_gpu_by_its_own_name_means_its_only_instance_or_is_refused(nvml: SimulatedNvml) -> None:
    nvml.write(*split(M1))
    assert chosen(nvml, B, "0") == [[M1], [M1]]
    nvml.write(*split(M1, M2))
    assert "which is split into 2 MIG instances" in answer(nvml, B)["refused"]
    nvml.write(*split())
    assert chosen(nvml, B) == [[]]
    assert "has no instance" in answer(nvml)["remarks"][0]


def test_instances_without_their_own_uuid_are_left_out(nvml: SimulatedNvml) -> None:
    nvml.write(*split(f"MIG-{B}/7/0", M2))
    said = answer(nvml)
    assert said["uuids"] == [M2, A]
    assert "driver 470" in said["remarks"][0]


def test_gpus_that_a_cgroup_hides_are_not_there_at_all(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), gpu(1, B), "error nvmlDeviceGetHandleByIndex 4 1")
    assert answer(nvml)["uuids"] == [A]
    assert answer(nvml)["remarks"] == []
    assert chosen(nvml, "0") == [[A]]


def test_a_lost_gpu_leaves_the_others_and_makes_numbers_uncertain(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), gpu(1, B), "error nvmlDeviceGetHandleByIndex 15 0")
    said = answer(nvml)
    assert said["uuids"] == [B]
    assert said["remarks"] == ["GPU 0 can't be used (GPU is lost); see what nvidia-smi says of it."]
    assert chosen(nvml, B) == [[B]]
    assert "GPU is lost" in answer(nvml, "0")["refused"]


@pytest.mark.parametrize("code", [9, 18, 4, 999])
def test_a_driver_that_does_not_work_is_a_reason_and_no_error(nvml: SimulatedNvml, code: int) -> None:
    nvml.write(gpu(0, A), f"error nvmlInitWithFlags {code}")
    said = answer(nvml, "0")
    assert said["uuids"] == []
    assert said["remarks"][0].startswith("no NVIDIA driver answers here (")


def test_no_driver_and_no_package_are_reasons_and_no_errors(nvml: SimulatedNvml, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")
    environment = {"ENVIRONMENTS": "[{}]", "LD_LIBRARY_PATH": str(tmp_path)}
    (said,) = json.loads(nvml.python(SCRIPT, environment))
    assert said["uuids"] == []
    assert "NVML Shared Library Not Found" in said["remarks"][0]
    without = 'import sys; sys.modules["pynvml"] = None\n' + SCRIPT
    (said,) = json.loads(nvml.python(without, environment))
    assert said["uuids"] == []
    assert said["remarks"] == ["the package nvidia-ml-py is not installed; install llm-energy-measurement[worker]."]


def test_a_count_that_fails_is_a_reason(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), "error nvmlDeviceGetCount 999")
    assert "the number of GPUs" in answer(nvml)["remarks"][0]


def test_nvml_is_closed_again(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A))
    said = nvml.python(
        "import pynvml\n"
        "from lem_worker.devices.cuda_visible import visible_gpus\n"
        "visible_gpus({})\n"
        "try:\n    pynvml.nvmlDeviceGetCount()\nexcept pynvml.NVMLError as error:\n    print(error)\n"
    )
    assert said == "Uninitialized\n"


def test_processes_and_memory_are_read_with_what_old_and_new_drivers_offer(nvml: SimulatedNvml) -> None:
    script = (
        "import json\n"
        "from lem_worker.devices.nvml_session import open_nvml\n"
        f"with open_nvml() as nvml: print(json.dumps([nvml.memory_used({A!r}), nvml.processes({A!r})]))\n"
    )
    processes = (
        f"process 0 pid 4000001 bound no memory {3 * GIB}",
        f"process 0 pid 4000001 bound no memory {3 * GIB} kind graphics",
        f"process 0 pid 4000002 bound no memory {GIB} kind mps",
        f"process 0 pid 4000003 bound no memory {GIB} kind graphics reported no",
        f"process 0 pid 1 memory {GIB}",
        f"process 0 pid 4999999 memory {GIB}",
    )
    nvml.write(gpu(0, A), *processes)
    assert json.loads(nvml.python(script)) == [
        10 * GIB,
        [[4000001, 3 * GIB], [1, GIB], [4000002, GIB], [4000003, None]],
    ]
    nvml.write(gpu(0, A), *processes, "error nvmlDeviceGetMPSComputeRunningProcesses_v3 13")
    assert [4000002, GIB] not in json.loads(nvml.python(script))[1]
    nvml.write(gpu(0, A), *processes, "error nvmlDeviceGetComputeRunningProcesses_v3 13")
    assert [1, GIB] in json.loads(nvml.python(script))[1]
    nvml.write(gpu(0, A), *processes, "error nvmlDeviceGetComputeRunningProcesses 3")
    assert json.loads(nvml.python(script))[1] is None


def test_a_line_that_the_simulation_does_not_understand_is_an_error(nvml: SimulatedNvml) -> None:
    nvml.write(gpu(0, A), "colour 0 green")
    assert "Unknown Error" in answer(nvml)["remarks"][0]


# --- one GPU's trouble, and functions that a driver has given up ------------------------------------------------------

READ_ALL = """
import asyncio, json, os
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.daemon.temperatures import read_temperatures
from lem_worker.devices.gpu_memory import memory_before
uuids = json.loads(os.environ["UUIDS"])
devices = [Device(uuid=uuid, kind=DeviceKind.GPU, name="NVIDIA H100") for uuid in uuids]
memory = asyncio.run(memory_before(devices))
print(json.dumps([asyncio.run(read_temperatures(devices)), {uuid: use.used_bytes for uuid, use in memory.items()}]))
"""


@pytest.mark.parametrize("symbols", [("nvmlDeviceGetTemperature", "nvmlDeviceGetMemoryInfo"), ("nvmlDeviceGet",)])
def test_a_lost_gpu_hides_neither_the_temperature_nor_the_memory_of_those_after_it(
    nvml: SimulatedNvml, symbols: tuple[str, ...]
) -> None:
    uuids = [f"GPU-{number:08d}-0000-0000-0000-000000000000" for number in range(8)]
    lost = (
        ["error nvmlDeviceGetHandleByUUID 15 2"]
        if symbols == ("nvmlDeviceGet",)
        else [f"error {symbol} 15 2" for symbol in symbols]
    )
    nvml.write(
        *(gpu(number, uuid) for number, uuid in enumerate(uuids)),
        *(f"temperature {number} constant {40 + number}" for number in range(8)),
        *lost,
    )
    temperatures, memory = json.loads(nvml.python(READ_ALL, {"UUIDS": json.dumps(uuids)}))
    others = [uuid for number, uuid in enumerate(uuids) if number != 2]
    assert temperatures == {uuid: 40 + uuids.index(uuid) for uuid in others}
    assert memory == dict.fromkeys(others, GIB)


def test_a_driver_that_calls_functions_deprecated_has_its_gpus_all_the_same(nvml: SimulatedNvml) -> None:
    """As drivers of 595 do for the mode of MIG, memory, PCI addresses and temperatures."""
    refused = ("MigMode", "PciInfo", "Temperature", "MemoryInfo")
    nvml.write(
        gpu(0, A),
        gpu(1, B),
        "temperature 0 constant 40",
        "temperature 1 constant 41",
        *(f"error nvmlDeviceGet{name} 26" for name in refused if name != "MemoryInfo"),
        *(f"error nvmlDeviceGetMemoryInfo 26 {number} call 1" for number in (0, 1)),  # the first version of it
    )
    assert answer(nvml)["uuids"] == [A, B]
    temperatures, memory = json.loads(nvml.python(READ_ALL, {"UUIDS": json.dumps([A, B])}))
    assert temperatures == {A: 40, B: 41}
    assert memory == {A: GIB, B: GIB}
