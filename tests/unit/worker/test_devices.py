"""What a worker owns, and the wait for its GPUs' memory after an attempt, over a simulated driver library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml.library import SimulatedNvml, built
from lem_domain.wire.workers import DeviceKind
from lem_worker.devices.gpu_memory import attempt_processes, memory_before, wait_until_free
from lem_worker.devices.inventory import cpu_device, simulated_devices

pytestmark = pytest.mark.anyio

MIB = 2**20
GIB = 2**30
ATTEMPT = "att_under_test"
A = "GPU-aaaa1111-0000-0000-0000-000000000001"
B = "GPU-bbbb2222-0000-0000-0000-000000000002"
M = "MIG-11111111-0000-0000-0000-000000000001"
GPU_A = f'device 0 uuid {A} name "NVIDIA H100" pci 00000000:1B:00.0 memory_total {80 * GIB} memory_used {GIB}'
GPU_B = f'device 1 uuid {B} name "NVIDIA H100" pci 00000000:43:00.0 memory_total {80 * GIB} memory_used {GIB} mig yes'
MIG = f'device 1.0 uuid {M} name "NVIDIA H100 MIG 1g.10gb" gi 7 ci 0 memory_total {10 * GIB} memory_used 0'

WAITING = f"""
import asyncio, json, sys
from lem_domain.errors import LemError
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.gpu_memory import attempt_processes, memory_before, wait_until_free
from lem_worker.devices.nvml_session import open_nvml
devices = [Device(uuid=uuid, kind=DeviceKind.GPU, name="gpu") for uuid in sys.argv[2:]]
belongs = attempt_processes("{ATTEMPT}")
async def main():
    baseline = await memory_before(devices)
    print("taken", flush=True)
    sys.stdin.readline()
    said = await wait_until_free(devices, baseline=baseline, timeout_s=float(sys.argv[1]), belongs=belongs)
    print(json.dumps(said), flush=True)
asyncio.run(main())
if sys.stdin.readline() == "look\\n":
    try:
        with open_nvml() as nvml:
            left = [(uuid, one.pid, one.memory_bytes, belongs(one.pid))
                    for uuid in sys.argv[2:] for one in nvml.processes(uuid) or ()]
    except LemError as error:
        left = [str(error)]
    print(json.dumps(left), flush=True)
"""

LONG_S = 600.0
"""Longer than any of this takes: what is waited for comes, or the test fails."""


@pytest.fixture
def nvml(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulatedNvml:
    return SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")


@contextmanager
def process(variables: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A real process that does nothing until it is killed."""
    started = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env={**os.environ, **(variables or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert started.stdout is not None
        started.stdout.readline()
        yield started
    finally:
        started.kill()
        started.communicate()


def of_the_attempt() -> Any:
    return process({"LEM_ATTEMPT": ATTEMPT})


def wait_for_free(
    nvml: SimulatedNvml,
    *,
    before: tuple[str, ...],
    after: tuple[str, ...],
    timeout_s: float,
    uuids: tuple[str, ...] = (A,),
    meanwhile: Callable[[], None] | None = None,
    look_after: bool = True,
) -> tuple[str | None, list[list[Any]]]:
    """The answer of `wait_until_free`, and the processes that hold memory then; the baseline is taken with `before`."""
    nvml.write(*before)
    waiting = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(timeout_s), *uuids],
        env=nvml.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert waiting.stdin is not None
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "taken\n"
        nvml.write(*after)
        waiting.stdin.write("\n")
        waiting.stdin.flush()
        if meanwhile is not None:
            meanwhile()
        said = json.loads(waiting.stdout.readline())
        rest, _ = waiting.communicate("look\n" if look_after else "end\n", timeout=LONG_S)
        assert waiting.returncode == 0
        return said, json.loads(rest) if look_after else []
    finally:
        waiting.kill()
        waiting.communicate()


def test_gpus_become_devices_by_uuid(nvml: SimulatedNvml) -> None:
    nvml.write(GPU_A, GPU_B, MIG)
    script = (
        "import sys\n"
        "from lem_worker.devices.inventory import gpu_devices\n"
        "assert 'pynvml' not in sys.modules\n"
        "for device in gpu_devices(): print(device.uuid, device.kind.value, device.name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    assert nvml.python(script).splitlines() == [f"{A} gpu NVIDIA H100", f"{M} gpu NVIDIA H100 MIG 1g.10gb"]
    assert nvml.python(script, {"CUDA_VISIBLE_DEVICES": "MIG-"}).splitlines() == [f"{M} gpu NVIDIA H100 MIG 1g.10gb"]
    nvml.write("error nvmlInitWithFlags 9")
    assert nvml.python(script) == ""


async def test_cpu_and_simulated_devices_are_free_at_once() -> None:
    devices = (cpu_device(), *simulated_devices("wrk_1", 2))
    assert {device.kind for device in devices} == {DeviceKind.CPU, DeviceKind.SIMULATED}
    baseline = await memory_before(devices)
    assert baseline == {}
    assert await wait_until_free(devices, baseline=baseline, timeout_s=0, belongs=lambda _: True) is None


def test_the_attempts_processes_are_distinguished_from_others_and_from_what_cant_be_looked_at() -> None:
    belongs = attempt_processes(ATTEMPT)
    with of_the_attempt() as one, process({"LEM_ATTEMPT": f"{ATTEMPT}2"}) as other:
        assert belongs(one.pid) is True
        assert belongs(other.pid) is False
        one.kill()
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        assert belongs(one.pid) is None, "a zombie has no environment"
    assert belongs(one.pid) is None
    assert belongs(os.getpid()) is False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_a_process_of_another_user_is_not_ours_though_its_environment_is_closed() -> None:
    script = (
        "import os, sys\n"
        "from lem_worker.devices.gpu_memory import attempt_processes\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "print(attempt_processes('att_1')(int(sys.argv[1])))\n"
    )
    with process() as somebody:
        command = [sys.executable, "-c", script, str(somebody.pid)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.stdout == "False\n", said.stderr


def test_memory_that_the_attempt_held_is_waited_for_until_the_driver_lets_go(nvml: SimulatedNvml) -> None:
    with of_the_attempt() as rank:
        held = f"process 0 pid {rank.pid} memory {3 * GIB} lingers_ms 400"
        said, left = wait_for_free(nvml, before=(GPU_A,), after=(GPU_A, held), timeout_s=LONG_S, meanwhile=rank.kill)
    assert (said, left) == (None, [])


def test_a_process_of_the_attempt_that_lives_is_named_with_what_it_holds(nvml: SimulatedNvml) -> None:
    with of_the_attempt() as rank:
        held = f"process 0 pid {rank.pid} memory {3 * GIB}"
        said, left = wait_for_free(nvml, before=(GPU_A,), after=(GPU_A, held), timeout_s=2)
    assert said is not None
    assert f"{A} has 3.00 GiB more than before the run in use (process {rank.pid}, of the run, holds 3.00 GiB)" in said
    assert left == [[A, rank.pid, 3 * GIB, True]]


def test_a_process_of_the_attempt_counts_even_where_nvml_has_no_figures(nvml: SimulatedNvml) -> None:
    with of_the_attempt() as rank:
        held = f"process 0 pid {rank.pid} memory 0 reported no"
        no_memory = "error nvmlDeviceGetMemoryInfo 3"
        said, _ = wait_for_free(nvml, before=(GPU_A, no_memory), after=(GPU_A, no_memory, held), timeout_s=2)
    assert said is not None
    assert f"(process {rank.pid}, of the run, holds memory)" in said


def test_every_device_of_the_attempt_is_waited_for(nvml: SimulatedNvml) -> None:
    with of_the_attempt() as rank:
        held = f"process 1.0 pid {rank.pid} memory {2 * GIB}"
        machine = (GPU_A, GPU_B, MIG)
        said, left = wait_for_free(nvml, before=machine, after=(*machine, held), timeout_s=2, uuids=(A, M))
    assert said is not None
    assert said.startswith(f"After 2 s {M} has 2.00 GiB more than before the run in use (process {rank.pid}")
    assert left == [[M, rank.pid, 2 * GIB, True]]


def test_memory_that_no_one_is_seen_to_hold_is_not_free(nvml: SimulatedNvml) -> None:
    taken = GPU_A.replace(f"memory_used {GIB}", f"memory_used {GIB + 65 * MIB}")
    said, _ = wait_for_free(nvml, before=(GPU_A,), after=(taken,), timeout_s=2)
    assert said is not None
    assert "65 MiB more than before the run in use (NVML lists no new process)" in said


def test_a_difference_within_the_tolerance_is_free(nvml: SimulatedNvml) -> None:
    moved = GPU_A.replace(f"memory_used {GIB}", f"memory_used {GIB + 64 * MIB}")
    said, _ = wait_for_free(nvml, before=(GPU_A,), after=(moved,), timeout_s=LONG_S)
    assert said is None


def test_a_foreign_process_that_came_meanwhile_keeps_the_device_and_is_named(nvml: SimulatedNvml) -> None:
    with process() as stranger:
        held = f"process 0 pid {stranger.pid} memory {GIB}"
        said, left = wait_for_free(nvml, before=(GPU_A,), after=(GPU_A, held), timeout_s=2)
    assert said is not None
    assert f"process {stranger.pid}, foreign, holds 1.00 GiB" in said
    assert left == [[A, stranger.pid, GIB, False]]


def test_processes_from_before_the_attempt_do_not_matter(nvml: SimulatedNvml) -> None:
    elsewhere = f"process 0 pid 4194301 bound no memory {GIB}"
    with process() as neighbour:
        near = f"process 0 pid {neighbour.pid} memory {GIB}"
        machine = (GPU_A, elsewhere, near)
        said, left = wait_for_free(nvml, before=machine, after=machine, timeout_s=LONG_S)
    assert said is None
    assert left == [[A, 4194301, GIB, None], [A, neighbour.pid, GIB, False]]


def test_a_new_process_that_cant_be_looked_at_counts_as_the_attempts(nvml: SimulatedNvml) -> None:
    said, _ = wait_for_free(
        nvml, before=(GPU_A,), after=(GPU_A, f"process 0 pid 4194301 bound no memory {MIB}"), timeout_s=1
    )
    assert said is not None
    assert "process 4194301, owner unknown, holds 1 MiB" in said


@pytest.mark.parametrize("pid", [0, 2**32 - 1])
def test_a_pid_that_no_process_can_have_does_not_keep_a_device(nvml: SimulatedNvml, pid: int) -> None:
    scrambled = f"process 0 pid {pid} bound no memory {MIB}"
    said, _ = wait_for_free(nvml, before=(GPU_A,), after=(GPU_A, scrambled), timeout_s=LONG_S)
    assert said is None
    said, _ = wait_for_free(nvml, before=(GPU_A,), after=(GPU_A, scrambled.replace(str(MIB), str(GIB))), timeout_s=1)
    assert said is not None and "1.00 GiB more than before" in said, "its memory counts"


def test_where_nvml_lists_no_processes_memory_decides(nvml: SimulatedNvml) -> None:
    no_list = "error nvmlDeviceGetComputeRunningProcesses 3"
    said, _ = wait_for_free(nvml, before=(GPU_A, no_list), after=(GPU_A, no_list), timeout_s=LONG_S)
    assert said is None
    taken = GPU_A.replace(f"memory_used {GIB}", f"memory_used {2 * GIB}")
    said, _ = wait_for_free(nvml, before=(GPU_A, no_list), after=(taken, no_list), timeout_s=2)
    assert said is not None


def test_a_lost_gpu_is_said_and_raises_nothing(nvml: SimulatedNvml) -> None:
    lost = "error nvmlDeviceGetHandleByUUID 15 0"
    said, left = wait_for_free(nvml, before=(GPU_A,), after=(GPU_A, lost), timeout_s=2)
    assert said is not None
    assert f"about {A} (GPU is lost)" in said
    assert f"about {A} (GPU is lost)" in left[0]


def test_a_driver_that_comes_back_is_used_again(nvml: SimulatedNvml) -> None:
    gone = "error nvmlInitWithFlags 999"
    said, left = wait_for_free(
        nvml, before=(GPU_A,), after=(GPU_A, gone), timeout_s=LONG_S, meanwhile=lambda: nvml.write(GPU_A)
    )
    assert (said, left) == (None, [])


def test_without_a_baseline_the_processes_decide(nvml: SimulatedNvml) -> None:
    gone = "error nvmlInitWithFlags 9"
    said, _ = wait_for_free(nvml, before=(GPU_A, gone), after=(GPU_A,), timeout_s=LONG_S)
    assert said is None


def test_a_driver_that_hangs_holds_up_neither_the_worker_nor_its_end(nvml: SimulatedNvml) -> None:
    said, _ = wait_for_free(
        nvml, before=(GPU_A,), after=(GPU_A, "delay nvmlInitWithFlags 3600000"), timeout_s=0.5, look_after=False
    )
    assert said == "After 0.5 s NVML has not answered; see what nvidia-smi says."


def test_a_driver_that_hangs_before_the_attempt_leaves_no_baseline(nvml: SimulatedNvml) -> None:
    nvml.write(GPU_A, "delay nvmlInitWithFlags 3600000")
    script = (
        "import asyncio\n"
        "from lem_domain.wire.workers import Device, DeviceKind\n"
        "from lem_worker.devices.gpu_memory import memory_before\n"
        f"gpu = Device(uuid={A!r}, kind=DeviceKind.GPU, name='gpu')\n"
        "print(asyncio.run(memory_before([gpu], timeout_s=0.2)))\n"
    )
    assert nvml.python(script) == "{}\n"


# --- GPUs that can't be used, and what would measure them -------------------------------------------------------------

MIG_MODE = tuple(
    f'device {number} uuid GPU-{number:08d}-0000-0000-0000-000000000000 name "NVIDIA H100" mig yes memory_total 80000'
    for number in range(8)
)
LOST = tuple(line.replace("mig yes", "gone_ms 0") for line in MIG_MODE)


@pytest.mark.parametrize(
    ("machine", "setting", "says"),
    [
        pytest.param(MIG_MODE, None, "is in MIG mode and has no instance", id="MIG without instances"),
        pytest.param(LOST, None, "GPU 7 can't be used (GPU is lost)", id="every GPU lost"),
        pytest.param(LOST, "GPU-00000001", "names 'GPU-00000001', which is no GPU", id="given one that is lost"),
        pytest.param(("error nvmlInitWithFlags 9",), "0", "no NVIDIA driver answers", id="given one, and no driver"),
        pytest.param((), "0", "which is no GPU of this machine", id="given one, and none there"),
    ],
)
def test_a_worker_with_gpus_of_which_none_can_be_used_does_not_serve_as_a_cpu_worker(
    nvml: SimulatedNvml, machine: tuple[str, ...], setting: str | None, says: str
) -> None:
    nvml.write(*machine)
    ran = subprocess.run(
        [sys.executable, "-c", "from lem_worker.main import main; main(['doctor'])"],
        env=nvml.environment({} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert says in ran.stderr and "set CUDA_VISIBLE_DEVICES to an empty value" in ran.stderr


INVENTORY = "from lem_worker.devices.inventory import gpu_devices\nprint(len(gpu_devices()))"


@pytest.mark.parametrize("setting", ["", "-1", "none", "NoDevFiles"])
def test_a_worker_whose_gpus_are_hidden_on_purpose_has_none(nvml: SimulatedNvml, setting: str) -> None:
    nvml.write(*LOST)
    assert nvml.python(INVENTORY, {"CUDA_VISIBLE_DEVICES": setting}) == "0\n"


def test_a_machine_without_gpus_has_none(nvml: SimulatedNvml) -> None:
    nvml.write()
    assert nvml.python(INVENTORY) == "0\n"
    nvml.write("error nvmlInitWithFlags 9")
    assert nvml.python(INVENTORY) == "0\n"


def test_the_doctor_says_per_device_what_each_source_gives_with_a_reading(nvml: SimulatedNvml) -> None:
    nvml.write(
        GPU_A,
        "power 0 constant 250.5",
        "counter 0 base_mj 7000",
        GPU_B.replace("mig yes", "mig no"),
        "power 1 constant 99",
        "counter 1 supported no",
        "error nvmlDeviceGetFieldValues 3 1 field 186",
        'device 2 uuid GPU-cccccccc-0000-0000-0000-000000000000 name "NVIDIA H100" memory_total 80000',
    )
    ran = subprocess.run(
        [sys.executable, "-c", "from lem_worker.main import main; main(['doctor'])"],
        env=nvml.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = {
        uuid: line for line in ran.stdout.splitlines() for uuid in ("aaaa", "bbbb", "cccc") if f"-{uuid}" in line[:9]
    }
    assert "nvml: measured: 250.5 W, energy counter at " in lines["aaaa"]
    assert "99.0 W; power is the average one; not offered here: " in lines["bbbb"]
    assert "energy counter" in lines["bbbb"].partition("not offered here")[2]
    assert "NVML has neither power nor energy" in lines["cccc"]
    assert any(line.startswith(("host: ", "package")) for line in ran.stdout.splitlines()), "RAPL and CodeCarbon too"
