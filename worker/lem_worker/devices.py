"""The devices that a worker owns, each under a UUID that nothing else has."""

from __future__ import annotations

import hashlib
import platform
import socket
from pathlib import Path

from lem_domain.wire.workers import Device, DeviceKind

_MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")


def cpu_device() -> Device:
    """The host's CPU as one device; every worker of the host names it alike, so that they exclude each other."""
    return Device(uuid=f"CPU-{_machine()}", kind=DeviceKind.CPU, name=_cpu_name())


def simulated_devices(worker_id: str, count: int) -> tuple[Device, ...]:
    """Devices that exist only in a simulation."""
    short = worker_id.removeprefix("wrk_")[:12]
    return tuple(
        Device(uuid=f"SIM-{short}-{index}", kind=DeviceKind.SIMULATED, name="simulated device")
        for index in range(count)
    )


def _machine() -> str:
    for path in _MACHINE_IDS:
        try:
            machine = Path(path).read_text().strip()
        except OSError:
            continue
        if machine:
            break
    else:
        machine = socket.gethostname()
    return hashlib.sha256(f"lem {machine}".encode()).hexdigest()[:16]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()[:200]
    except OSError:
        pass
    return (platform.processor() or platform.machine() or "CPU")[:200]
