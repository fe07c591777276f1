"""The devices that a worker owns, each under a UUID that nothing else has, and whether their memory is free."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import platform
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.cuda_visible import visible_gpus
from lem_worker.devices.nvml_session import Nvml, NvmlFailed, NvmlUnavailable, open_nvml
from lem_worker.process.children import ATTEMPT_VARIABLE

logger = logging.getLogger(__name__)

TOLERANCE_BYTES = 64 * 2**20
"""So much more than before an attempt may be in use after it. A desktop moves its memory by less, and any process that
uses CUDA holds more by its context alone."""

_MACHINE_IDS = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_POLL_S = 0.05

Ours = Callable[[int], bool | None]
"""Whether a process is the attempt's; None when it can't be looked at, because it is dead or in another namespace."""


class Holder(NamedTuple):
    """A process that holds memory of a GPU."""

    uuid: str
    pid: int
    memory_bytes: int | None
    """None where NVML has no figure."""
    ours: bool | None


class Use(NamedTuple):
    """What of a GPU is in use; None is what NVML does not say of it."""

    used_bytes: int | None
    holders: tuple[Holder, ...] | None


Baseline = Mapping[str, Use]
"""What was in use before an attempt, by UUID; a device that could not be read is not in it."""


def gpu_devices(environment: Mapping[str, str] = os.environ) -> tuple[Device, ...]:
    """The GPUs and MIG instances that CUDA_VISIBLE_DEVICES leaves to this worker; none where there is no driver.

    What was left out, and why, goes to the log; `visible_gpus` has it for whoever needs to say it elsewhere.

    Raises:
        AmbiguousDevices: CUDA_VISIBLE_DEVICES can't be resolved for certain.
    """
    found = visible_gpus(environment)
    for remark in found.remarks:
        logger.info("%s", remark)
    return tuple(Device(uuid=gpu.uuid, kind=DeviceKind.GPU, name=gpu.name) for gpu in found.devices)


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


def of_attempt(attempt_id: str) -> Ours:
    """Tells the attempt's processes by the variable that everything which it starts has in its environment."""
    mark = f"{ATTEMPT_VARIABLE}={attempt_id}".encode()

    def ours(pid: int) -> bool | None:
        process = Path(f"/proc/{pid}")
        try:
            variables = (process / "environ").read_bytes()
        except PermissionError:
            return False if _is_of_another_user(process) else None
        except OSError:
            return None
        # A process that is ending has no environment any more.
        return mark in variables.split(b"\0") if variables else None

    return ours


def holders(uuids: Iterable[str], ours: Ours) -> tuple[Holder, ...]:
    """The processes that hold memory of these GPUs, as far as NVML lists them.

    Raises:
        NvmlUnavailable: there is no NVML.
        NvmlFailed: NVML does not answer about one of them.
    """
    with open_nvml() as nvml:
        return tuple(holder for uuid in uuids for holder in _use(nvml, uuid, ours).holders or ())


async def use_before(devices: Sequence[Device], *, timeout_s: float = 10.0) -> Baseline:
    """What is in use before an attempt starts anything, for `until_free` to compare with after it.

    What NVML does not tell in time is left out, and the log says so.
    """
    uuids = _gpu_uuids(devices)
    if not uuids:
        return {}
    look = _FirstLook(uuids)
    if not await within(timeout_s, look.run):
        logger.warning("what is in use before the run is not known: NVML has not answered for %g s", timeout_s)
        return {}
    return look.found


async def until_free(devices: Sequence[Device], *, baseline: Baseline, timeout_s: float, ours: Ours) -> str | None:
    """Wait until no process of the attempt holds memory of its GPUs, and no more is in use than before it (and
    `TOLERANCE_BYTES`). None when that is so, else one sentence that says who holds what.

    A process that can't be looked at and was not there before the attempt counts as the attempt's. Devices other than
    GPUs are free at once, and so is a GPU of which NVML offers neither figure: its processes are known to be dead.
    """
    uuids = _gpu_uuids(devices)
    if not uuids:
        return None
    watch = _Watch(uuids, baseline, ours)
    try:
        await within(timeout_s, watch.run)
    finally:
        watch.ended.set()
    return None if watch.free else f"After {timeout_s:g} s {watch.last}"


async def within(timeout_s: float, look: Callable[[], None]) -> bool:
    """Whether a look at NVML came to its end in time.

    NVML blocks for as long as a driver in trouble likes, so it gets a thread that nobody waits for, not even at the end
    of the process.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def look_and_say() -> None:
        try:
            look()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by then
                loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=look_and_say, name="lem-nvml", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            await ended.wait()
    except TimeoutError:
        return False
    return True


class _FirstLook:
    """What is in use before an attempt."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self._uuids = uuids
        self.found: dict[str, Use] = {}

    def run(self) -> None:
        """Look once."""
        try:
            with open_nvml() as nvml:
                for uuid in self._uuids:
                    self.found[uuid] = _use(nvml, uuid, lambda _: False)
        except (NvmlUnavailable, NvmlFailed) as error:
            logger.warning("what is in use before the run is not known: %s", error)


class _Watch:
    """Looks at the devices until they are free or nobody waits any more."""

    def __init__(self, uuids: Sequence[str], baseline: Baseline, ours: Ours) -> None:
        self._uuids = uuids
        self._baseline = baseline
        self._ours = ours
        self.ended = threading.Event()
        self.free = False
        self.last = "NVML has not answered; see what nvidia-smi says."
        """What kept them from being free at the last look."""

    def run(self) -> None:
        """Return when they are free."""
        while not self.free and not self.ended.is_set():
            try:
                with open_nvml() as nvml:
                    while not self._is_free(nvml) and not self.ended.wait(_POLL_S):
                        pass
            except (NvmlUnavailable, NvmlFailed) as error:
                self.last = str(error)
                self.ended.wait(_POLL_S)

    def _is_free(self, nvml: Nvml) -> bool:
        kept = [
            sentence
            for uuid in self._uuids
            if (sentence := _kept(uuid, self._baseline.get(uuid), _use(nvml, uuid, self._ours)))
        ]
        self.last = f"{'; '.join(kept)}; end what holds it, then the worker goes on."
        self.free = not kept
        return self.free


def _use(nvml: Nvml, uuid: str, ours: Ours) -> Use:
    listed = nvml.processes(uuid)
    return Use(
        used_bytes=nvml.memory_used(uuid),
        holders=None
        if listed is None
        else tuple(Holder(uuid, one.pid, one.memory_bytes, ours(one.pid)) for one in listed),
    )


def _kept(uuid: str, before: Use | None, now: Use) -> str | None:
    """Why a device is not free, as a part of a sentence."""
    there_before = {one.pid for one in (before.holders if before else None) or ()}
    came = [one for one in now.holders or () if one.ours or one.pid not in there_before]
    of_the_run = [one for one in came if one.ours is not False]
    excess = 0
    if before is not None and before.used_bytes is not None and now.used_bytes is not None:
        excess = now.used_bytes - before.used_bytes
    if excess <= TOLERANCE_BYTES and not of_the_run:
        return None
    listed = [_described(one) for one in came]
    much = f"{_size(excess)} more than before the run" if excess > 0 else "memory"
    return f"{uuid} has {much} in use ({', '.join(listed) or 'NVML lists no new process'})"


def _described(one: Holder) -> str:
    whose = {True: "of the run", False: "of somebody else", None: "which can't be looked at from here"}[one.ours]
    much = "memory" if one.memory_bytes is None else _size(one.memory_bytes)
    return f"process {one.pid}, {whose}, holds {much}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _gpu_uuids(devices: Sequence[Device]) -> tuple[str, ...]:
    return tuple(device.uuid for device in devices if device.kind is DeviceKind.GPU)


def _is_of_another_user(process: Path) -> bool:
    try:
        return process.stat().st_uid != os.geteuid()
    except OSError:
        return False


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
