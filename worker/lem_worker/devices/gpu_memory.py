"""Whether the GPUs' memory is free again after an attempt, and which processes hold it otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.nvml_session import Nvml, NvmlFailed, NvmlUnavailable, open_nvml
from lem_worker.process.children import ATTEMPT_VARIABLE

logger = logging.getLogger(__name__)

TOLERANCE_BYTES = 64 * 2**20
"""How much more memory than before an attempt counts as free. A desktop changes its use by less, and any process that
uses CUDA holds more by its context alone."""

_POLL_S = 0.05

BelongsToAttempt = Callable[[int], bool | None]
"""Whether a process (pid) belongs to the attempt; None when unknown: it is dead, or in another namespace."""


_MOST_PID = 2**22
"""PID_MAX_LIMIT of Linux on 64 bits."""
_INITIAL_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of Linux: the number of the namespace that every other one is inside of."""


def is_possible_pid(pid: int) -> bool:
    """Whether a process can have the number; drivers list 0 and 2^32 - 1 as well (nvitop#75, go-nvml#21)."""
    return 0 < pid <= _MOST_PID


def is_in_own_pid_namespace() -> bool | None:
    """Whether this process has another namespace of pids than the machine's first one; None where it can't be read."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) != _INITIAL_NAMESPACE
    except OSError:
        return None


class DeviceProcess(NamedTuple):
    """A process that holds memory of a GPU."""

    pid: int
    memory_bytes: int | None
    """None where NVML has no figure."""
    of_attempt: bool | None


class MemoryUse(NamedTuple):
    """Memory in use on a GPU; None is a figure that NVML does not offer."""

    used_bytes: int | None
    processes: tuple[DeviceProcess, ...] | None


MemoryBaseline = Mapping[str, MemoryUse]
"""Memory in use before an attempt, by UUID; a device that could not be read is missing."""


def attempt_processes(attempt_id: str) -> BelongsToAttempt:
    """Return a predicate for the attempt's processes: all inherit `LEM_ATTEMPT` in their environment."""
    mark = f"{ATTEMPT_VARIABLE}={attempt_id}".encode()

    def belongs(pid: int) -> bool | None:
        process = Path(f"/proc/{pid}")
        try:
            variables = (process / "environ").read_bytes()
        except PermissionError:
            return False if _is_of_another_user(process) else None
        except OSError:
            return None
        # The environment of a process that is exiting is empty.
        return mark in variables.split(b"\0") if variables else None

    return belongs


async def memory_before(devices: Sequence[Device], *, timeout_s: float = 10.0) -> MemoryBaseline:
    """Read the memory in use before an attempt starts, for `wait_until_free` to compare with.

    Devices that NVML does not answer about in time are left out, with a warning in the log.
    """
    uuids = _gpu_uuids(devices)
    found: dict[str, MemoryUse] = {}
    if uuids and not await finishes_within(timeout_s, lambda: _read_all(uuids, found)):
        logger.warning("memory in use before the run is unknown: NVML did not answer within %g s", timeout_s)
        return {}
    return found


async def wait_until_free(
    devices: Sequence[Device], *, baseline: MemoryBaseline, timeout_s: float, belongs: BelongsToAttempt
) -> str | None:
    """Wait until no process of the attempt holds GPU memory, and use is at most `TOLERANCE_BYTES` above the baseline.

    Returns None when that is so, else one sentence with the memory and the processes that hold it. A process that can't
    be inspected and was not there before the attempt counts as the attempt's. Devices other than GPUs are free at once,
    and so is a GPU of which NVML offers neither figure: its processes are known to be dead.
    """
    uuids = _gpu_uuids(devices)
    if not uuids:
        return None
    wait = _FreeMemoryWait(uuids, baseline, belongs)
    try:
        await finishes_within(timeout_s, wait.run)
    finally:
        wait.cancelled.set()
    return None if wait.free else f"After {timeout_s:g} s {wait.reason}"


async def finishes_within(timeout_s: float, query: Callable[[], None]) -> bool:
    """Run an NVML query in a thread; return whether it ended in time.

    A call into a driver in trouble can block for ever. So the thread is a daemon thread that is never joined: neither
    the event loop nor the exit of the process waits for it, as they would for an executor's.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def run() -> None:
        try:
            query()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by then
                loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name="lem-nvml", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            await ended.wait()
    except TimeoutError:
        return False
    return True


class _FreeMemoryWait:
    """Polls the devices in a thread until they are free or the wait is cancelled."""

    def __init__(self, uuids: Sequence[str], baseline: MemoryBaseline, belongs: BelongsToAttempt) -> None:
        self._uuids = uuids
        self._baseline = baseline
        self._belongs = belongs
        self.cancelled = threading.Event()
        self.free = False
        self.reason = "NVML has not answered; see what nvidia-smi says."
        """Why they were not free at the last poll."""

    def run(self) -> None:
        """Poll; after a failure with a new NVML session, as the driver may have been reloaded."""
        while not self.free and not self.cancelled.is_set():
            try:
                with open_nvml() as nvml:
                    while not self._poll(nvml) and not self.cancelled.wait(_POLL_S):
                        pass
            except (NvmlUnavailable, NvmlFailed) as error:
                self.reason = str(error)
                self.cancelled.wait(_POLL_S)

    def _poll(self, nvml: Nvml) -> bool:
        reasons = [
            reason
            for uuid in self._uuids
            if (reason := _why_not_free(uuid, self._baseline.get(uuid), _memory_use(nvml, uuid, self._belongs)))
        ]
        self.reason = f"{'; '.join(reasons)}; end the processes that hold it, then the worker continues."
        self.free = not reasons
        return self.free


def _read_all(uuids: Sequence[str], found: dict[str, MemoryUse]) -> None:
    try:
        with open_nvml() as nvml:
            for uuid in uuids:
                try:
                    found[uuid] = _memory_use(nvml, uuid, lambda _: False)
                except NvmlFailed as error:  # a GPU that is lost does not hide the others
                    logger.warning("memory in use before the run is unknown: %s", error)
    except NvmlUnavailable as error:
        logger.warning("memory in use before the run is unknown: %s", error)


def _memory_use(nvml: Nvml, uuid: str, belongs: BelongsToAttempt) -> MemoryUse:
    listed = nvml.processes(uuid)
    return MemoryUse(
        used_bytes=nvml.memory_used(uuid),
        processes=None
        if listed is None
        # A process without a possible pid is known by its memory alone.
        else tuple(
            DeviceProcess(one.pid, one.memory_bytes, belongs(one.pid)) for one in listed if is_possible_pid(one.pid)
        ),
    )


def _why_not_free(uuid: str, before: MemoryUse | None, now: MemoryUse) -> str | None:
    """Why a device is not free, as a part of a sentence; None when it is."""
    pids_before = {one.pid for one in (before.processes if before else None) or ()}
    new = [one for one in now.processes or () if one.of_attempt or one.pid not in pids_before]
    of_attempt = [one for one in new if one.of_attempt is not False]
    excess = 0
    if before is not None and before.used_bytes is not None and now.used_bytes is not None:
        excess = now.used_bytes - before.used_bytes
    if excess <= TOLERANCE_BYTES and not of_attempt:
        return None
    listed = [_described(one) for one in new]
    much = f"{_size(excess)} more than before the run" if excess > 0 else "memory"
    return f"{uuid} has {much} in use ({', '.join(listed) or 'NVML lists no new process'})"


def _described(process: DeviceProcess) -> str:
    owner = {True: "of the run", False: "foreign", None: "owner unknown"}[process.of_attempt]
    memory = "memory" if process.memory_bytes is None else _size(process.memory_bytes)
    return f"process {process.pid}, {owner}, holds {memory}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _gpu_uuids(devices: Sequence[Device]) -> tuple[str, ...]:
    return tuple(device.uuid for device in devices if device.kind is DeviceKind.GPU)


def _is_of_another_user(process: Path) -> bool:
    try:
        return process.stat().st_uid != os.geteuid()
    except OSError:
        return False
