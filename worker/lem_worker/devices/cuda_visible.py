"""Applies CUDA_VISIBLE_DEVICES to the GPUs of the machine, because NVML ignores it and lists all of them.

The rules are those of the CUDA programming guide, "CUDA Environment Variables". A number is an index in CUDA's order,
which is that of the PCI bus with CUDA_DEVICE_ORDER=PCI_BUS_ID. Without it the fastest GPU comes first by a rule that is
not documented; only equal GPUs keep the order of the bus. So an ambiguous number is refused instead of guessed: a run
must never be measured on another GPU than the one that was meant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from lem_domain.errors import LemError
from lem_worker.devices.nvml_session import Gpu, Machine, MigInstance, NvmlFailed, NvmlUnavailable, open_nvml

D = TypeVar("D", Gpu, MigInstance)

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
_BY_GPU_AND_INSTANCE = re.compile(r"MIG-(GPU-[^/]+)/(\d+)/(\d+)")


class AmbiguousDevices(LemError):
    """CUDA_VISIBLE_DEVICES can't be resolved for certain."""


class VisibleGpus(NamedTuple):
    """The devices that the worker may use, in the order of the setting."""

    devices: tuple[Gpu | MigInstance, ...]
    remarks: tuple[str, ...]
    """One sentence for each exclusion."""
    has_gpus: bool = False
    """Whether the machine has GPUs, usable or not."""


def visible_gpus(environment: Mapping[str, str] = os.environ) -> VisibleGpus:
    """Return the devices that this worker may use; none, with the reason as a remark, without a working driver.

    Raises:
        AmbiguousDevices: the setting can't be resolved for certain.
    """
    try:
        with open_nvml() as nvml:
            machine = nvml.machine()
    except (NvmlUnavailable, NvmlFailed) as error:
        return VisibleGpus((), (str(error),))
    has_gpus = bool(machine.gpus or machine.unreadable)
    return _apply_setting(machine, environment)._replace(has_gpus=has_gpus)


def _apply_setting(machine: Machine, environment: Mapping[str, str]) -> VisibleGpus:
    """The GPUs and MIG instances that the environment leaves of a machine; without the variable, all.

    A GPU in MIG mode is replaced by its instances. An entry without a match ends the list, as it does for CUDA.
    """
    setting = environment.get(VISIBLE)
    if setting is None:
        return _all_devices(machine)
    chosen: list[Gpu | MigInstance] = []
    remarks = list(machine.unreadable)
    for entry in (one.strip() for one in setting.split(",")):
        device = _find_entry(entry, machine, environment)
        if device is None:
            remarks.append(_ended_at(entry, setting))
            break
        if device in chosen:
            remarks.append(f"{VISIBLE} names {device.uuid} twice, which makes CUDA see no device; name each once.")
            return VisibleGpus((), tuple(remarks))
        chosen.append(device)
    return VisibleGpus(tuple(chosen), tuple(remarks))


def _all_devices(machine: Machine) -> VisibleGpus:
    devices: list[Gpu | MigInstance] = []
    remarks = list(machine.unreadable)
    for gpu in machine.gpus:
        devices += [gpu] if gpu.mig is None else gpu.mig
        if gpu.mig == ():
            remarks.append(f"{gpu.uuid} is in MIG mode and has no instance; create one, or switch MIG off.")
    return VisibleGpus(tuple(devices), tuple(remarks))


def _find_entry(entry: str, machine: Machine, environment: Mapping[str, str]) -> Gpu | MigInstance | None:
    if entry.startswith("MIG-"):
        return _find_instance(entry, machine)
    gpu = (
        _find_by_prefix(machine.gpus, entry)
        if entry.startswith("GPU-")
        else _find_by_number(entry, machine, environment)
    )
    if gpu is None or gpu.mig is None:
        return gpu
    if len(gpu.mig) > 1:
        raise AmbiguousDevices(
            f"{VISIBLE} names {gpu.uuid}, which is split into {len(gpu.mig)} MIG instances; "
            "name the instances instead, as nvidia-smi -L shows them."
        )
    return gpu.mig[0] if gpu.mig else None


def _find_instance(entry: str, machine: Machine) -> MigInstance | None:
    by_number = _BY_GPU_AND_INSTANCE.fullmatch(entry)
    if by_number is None:
        return _find_by_prefix([one for gpu in machine.gpus for one in gpu.mig or ()], entry)
    gpu = _find_by_prefix(machine.gpus, by_number[1])
    wanted = (int(by_number[2]), int(by_number[3]))
    instances = () if gpu is None else gpu.mig or ()
    return next((one for one in instances if (one.gpu_instance, one.compute_instance) == wanted), None)


def _find_by_prefix(devices: Sequence[D], prefix: str) -> D | None:
    found = [one for one in devices if one.uuid.startswith(prefix)]
    return found[0] if len(found) == 1 else None


def _find_by_number(entry: str, machine: Machine, environment: Mapping[str, str]) -> Gpu | None:
    if not (entry.isascii() and entry.isdigit()):
        return None
    if machine.unreadable:
        raise AmbiguousDevices(
            f"{VISIBLE} has a number, and not all GPUs can be read ({machine.unreadable[0].rstrip('.')}); "
            "name the GPUs by UUID, as nvidia-smi -L shows them."
        )
    names = sorted({gpu.name for gpu in machine.gpus})
    if len(names) > 1 and environment.get(ORDER) != "PCI_BUS_ID":
        raise AmbiguousDevices(
            f"{VISIBLE}={environment[VISIBLE]} has a number, and CUDA's order of different GPUs ({', '.join(names)})"
            f" is undefined; set {ORDER}=PCI_BUS_ID, or name the GPUs by UUID."
        )
    number = int(entry)
    return machine.gpus[number] if number < len(machine.gpus) else None


def _ended_at(entry: str, setting: str) -> str:
    if not entry:
        return f"{VISIBLE} is empty or has an empty entry, at which CUDA ends the list; unset it to use every GPU."
    return (
        f"{VISIBLE}={setting} names {entry!r}, which is no GPU of this machine; CUDA ends the list there, "
        "so the entries after it are not used."
    )
