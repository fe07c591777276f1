"""Typed access to NVML: the machine's GPUs, their memory and the processes that hold it.

Nothing here initialises CUDA: a CUDA context would take GPU memory and power for as long as the worker runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from lem_domain.errors import LemError
from lem_worker.devices.nvml_calls import first_answer, memory_calls, temperature_calls

if TYPE_CHECKING:
    from types import ModuleType


class NvmlUnavailable(LemError):
    """NVML can't be used on this machine; the message is one sentence with the reason."""


class NvmlFailed(LemError):
    """An NVML call about a device failed."""


class MigInstance(NamedTuple):
    """A MIG instance: a hardware partition of a GPU that CUDA sees as a device."""

    uuid: str
    name: str
    gpu_instance: int
    compute_instance: int


class Gpu(NamedTuple):
    """A physical GPU."""

    uuid: str
    name: str
    mig: tuple[MigInstance, ...] | None
    """Its instances; None where it is not in MIG mode."""


class Machine(NamedTuple):
    """All GPUs that this process may use, sorted by PCI bus address, because NVML's own order is not guaranteed."""

    gpus: tuple[Gpu, ...]
    unreadable: tuple[str, ...]
    """One sentence for each device that exists but can't be used."""


class GpuProcess(NamedTuple):
    """A process that holds memory of a device."""

    pid: int
    """The driver's pid: inside a container it may be that of the host's namespace."""
    memory_bytes: int | None
    """None where NVML has no figure."""


@contextlib.contextmanager
def open_nvml() -> Iterator[Nvml]:
    """Open NVML for the duration of the block.

    Raises:
        NvmlUnavailable: the package or the driver is missing, or the driver does not work.
    """
    try:
        import pynvml  # noqa: PLC0415 - a worker without GPUs needs neither the package nor the driver
    except ImportError as error:
        raise NvmlUnavailable(
            "the package nvidia-ml-py is not installed; install llm-energy-measurement[worker]."
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(
            f"no NVIDIA driver answers here ({error}); see what nvidia-smi says, and in a container ask for its GPUs."
        ) from error
    try:
        yield Nvml(pynvml)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


class Nvml:
    """An open NVML; devices are addressed by UUID."""

    def __init__(self, pynvml: ModuleType) -> None:
        self._nvml: Any = pynvml

    def machine(self) -> Machine:
        """List every GPU that this process may use.

        Raises:
            NvmlFailed: NVML can't count the GPUs.
        """
        found: list[tuple[tuple[int, int, int] | None, Gpu]] = []
        unreadable: list[str] = []
        for index in range(self._call("the number of GPUs", self._nvml.nvmlDeviceGetCount)):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                found.append((self._pci(handle), self._gpu(handle, unreadable)))
            except self._nvml.NVMLError as error:
                # The count includes GPUs that a cgroup denies to this process; CUDA does not see those either.
                if error.value != self._nvml.NVML_ERROR_NO_PERMISSION:
                    unreadable.append(f"GPU {index} can't be used ({error}); see what nvidia-smi says of it.")
        if all(address is not None for address, _ in found):
            found.sort(key=lambda one: one[0] or ())
        return Machine(tuple(gpu for _, gpu in found), tuple(unreadable))

    def memory_used(self, uuid: str) -> int | None:
        """Bytes in use on a device by all processes; None where NVML has no such figure. Raises NvmlFailed."""
        found = self._call(uuid, lambda: self._first(memory_calls(self._nvml, self._handle(uuid), "used")))
        return None if found is None else int(found)

    def compute_capability(self, uuid: str) -> tuple[int, int] | None:
        """CUDA compute capability (major, minor); of a MIG instance, that of its GPU. Raises NvmlFailed."""

        def read() -> Any:
            handle = self._handle(uuid)
            found = self._optional(lambda: self._nvml.nvmlDeviceGetCudaComputeCapability(handle))
            if found is not None:
                return found
            # A MIG handle has no capability; the parent's handle has.
            parent = self._optional(lambda: self._nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle))
            return (
                None
                if parent is None
                else self._optional(lambda: self._nvml.nvmlDeviceGetCudaComputeCapability(parent))
            )

        found = self._call(uuid, read)
        return None if found is None else (int(found[0]), int(found[1]))

    def temperature_c(self, uuid: str) -> int | None:
        """Temperature of the chip in °C; None where NVML offers none, as for MIG instances. Raises NvmlFailed."""
        found = self._call(uuid, lambda: self._first(temperature_calls(self._nvml, self._handle(uuid))))
        return None if found is None else int(found)

    def processes(self, uuid: str) -> tuple[GpuProcess, ...] | None:
        """Compute, MPS and graphics processes that hold memory of a device, each once.

        None where NVML does not list compute processes. Raises NvmlFailed.
        """
        listed = self._call(
            uuid, lambda: [self._running(kind, self._handle(uuid)) for kind in ("Compute", "MPSCompute", "Graphics")]
        )
        if listed[0] is None:
            return None
        found: dict[int, GpuProcess] = {}
        for one in (one for kind in listed for one in kind or ()):
            found.setdefault(int(one.pid), GpuProcess(int(one.pid), one.usedGpuMemory))
        return tuple(found.values())

    def _gpu(self, handle: Any, unreadable: list[str]) -> Gpu:
        uuid = str(self._nvml.nvmlDeviceGetUUID(handle))
        mode = self._optional(lambda: self._nvml.nvmlDeviceGetMigMode(handle))
        is_split = mode is not None and mode[0] == self._nvml.NVML_DEVICE_MIG_ENABLE
        return Gpu(
            uuid=uuid,
            name=str(self._nvml.nvmlDeviceGetName(handle)),
            mig=self._instances(uuid, handle, unreadable) if is_split else None,
        )

    def _instances(self, parent: str, handle: Any, unreadable: list[str]) -> tuple[MigInstance, ...]:
        found = []
        for index in range(self._nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                instance = self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            except self._nvml.NVMLError as error:
                if error.value in (self._nvml.NVML_ERROR_NOT_FOUND, self._nvml.NVML_ERROR_NO_PERMISSION):
                    continue
                raise
            uuid = str(self._nvml.nvmlDeviceGetUUID(instance))
            if "/" in uuid:
                unreadable.append(
                    f"MIG instance {index} of {parent} has no UUID; install NVIDIA's driver 470 or newer."
                )
                continue
            found.append(
                MigInstance(
                    uuid=uuid,
                    name=str(self._nvml.nvmlDeviceGetName(instance)),
                    gpu_instance=self._nvml.nvmlDeviceGetGpuInstanceId(instance),
                    compute_instance=self._nvml.nvmlDeviceGetComputeInstanceId(instance),
                )
            )
        return tuple(found)

    def _pci(self, handle: Any) -> tuple[int, int, int] | None:
        info = self._optional(lambda: self._nvml.nvmlDeviceGetPciInfo_v3(handle))
        return None if info is None else (int(info.domain), int(info.bus), int(info.device))

    def _running(self, kind: str, handle: Any) -> list[Any] | None:
        # Drivers before 510 lack the _v3 functions. pynvml's unversioned names raise another exception there.
        names = [f"nvmlDeviceGet{kind}RunningProcesses_v{version}" for version in (3, 2)]
        listed = self._first([partial(getattr(self._nvml, name), handle) for name in names])
        return None if listed is None else list(listed)

    def _handle(self, uuid: str) -> Any:
        return self._nvml.nvmlDeviceGetHandleByUUID(uuid)

    def _optional(self, read: Callable[[], Any]) -> Any:
        """The result of a call that a chip, a driver or the process's rights may not offer; None where they don't."""
        return self._first([read])

    def _first(self, calls: Sequence[Callable[[], Any]]) -> Any:
        """The result of the first of several functions for one reading that is offered; None where none is."""
        return first_answer(self._nvml.NVMLError, calls)

    def _call(self, what: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except self._nvml.NVMLError as error:
            raise NvmlFailed(f"NVML does not answer about {what} ({error}); see what nvidia-smi says.") from error
