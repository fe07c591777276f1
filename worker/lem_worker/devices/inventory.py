"""The devices that a worker registers, each under a UUID that is unique across hosts."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path

from lem_domain.errors import LemError
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.cuda_visible import VISIBLE, visible_gpus

_NO_GPU = ("", "-1", "none", "void", "nodevfiles")
"""Settings that mean no GPU: CUDA ends its list at an entry that is none, and these are the ones in use for that."""

logger = logging.getLogger(__name__)

_MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")


class NoUsableGpu(LemError):
    """A worker that has GPUs by its settings or its machine can use none; it must not serve as a CPU worker."""


def gpu_devices(environment: Mapping[str, str] = os.environ) -> tuple[Device, ...]:
    """List the GPUs and MIG instances that CUDA_VISIBLE_DEVICES leaves to this worker; none without a driver.

    Excluded devices are logged with the reason.

    Raises:
        AmbiguousDevices: CUDA_VISIBLE_DEVICES can't be resolved for certain.
        NoUsableGpu: the worker was given GPUs, or the machine has some, and none can be used.
    """
    found = visible_gpus(environment)
    for remark in found.remarks:
        logger.info("%s", remark)
    setting = environment.get(VISIBLE)
    expects_gpus = found.has_gpus if setting is None else setting.strip().lower() not in _NO_GPU
    if expects_gpus and not found.devices:
        given = "this machine has GPUs" if setting is None else f"{VISIBLE}={setting} gives GPUs to this worker"
        raise NoUsableGpu(
            f"{given}, and none can be used: {' '.join(found.remarks) or 'NVML lists none.'} "
            f"To measure on the CPU instead, set {VISIBLE} to an empty value."
        )
    return tuple(Device(uuid=gpu.uuid, kind=DeviceKind.GPU, name=gpu.name) for gpu in found.devices)


def cpu_device() -> Device:
    """The host's CPU as one device; all workers of a host share its UUID, so that they exclude each other."""
    return Device(uuid=f"CPU-{_host_id()}", kind=DeviceKind.CPU, name=_cpu_name())


def simulated_devices(worker_id: str, count: int) -> tuple[Device, ...]:
    """Devices for the simulated backend; their UUIDs contain the worker's id, so that workers never share them."""
    short = worker_id.removeprefix("wrk_")[:12]
    return tuple(
        Device(uuid=f"SIM-{short}-{index}", kind=DeviceKind.SIMULATED, name="simulated device")
        for index in range(count)
    )


def _host_id() -> str:
    for path in _MACHINE_IDS:
        try:
            machine = Path(path).read_text().strip()
        except OSError:
            continue
        if machine:
            break
    else:
        machine = socket.gethostname()
    # machine-id(5) asks for the id to be hashed, with a key of the application, before it leaves the host.
    return hashlib.sha256(f"lem {machine}".encode()).hexdigest()[:16]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()[:200]
    except OSError:
        pass
    return (platform.processor() or platform.machine() or "CPU")[:200]
