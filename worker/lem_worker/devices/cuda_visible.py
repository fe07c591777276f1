"""Which GPUs CUDA_VISIBLE_DEVICES leaves to this worker: NVML shows them all, whatever it says.

The rules are those of the CUDA programming guide, "CUDA Environment Variables". A number counts CUDA's own order, which
is that of the PCI bus with CUDA_DEVICE_ORDER=PCI_BUS_ID. Without it the fastest GPU comes first by a rule that is not
written down; only among equal GPUs does that leave the order of the bus. So numbers that can't be resolved for certain
are refused instead of guessed, and nothing is ever measured on another GPU than the one that was meant.
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
    """The setting does not say for certain which devices are meant."""


class Visible(NamedTuple):
    """What the worker may use, in the order of the setting."""

    devices: tuple[Gpu | MigInstance, ...]
    remarks: tuple[str, ...]
    """One sentence for each thing that was left out."""


def visible(machine: Machine, environment: Mapping[str, str]) -> Visible:
    """The GPUs and MIG instances that the environment leaves of a machine; without the variable, all.

    A GPU that is split stands for its instances. An entry that names nothing ends the list, as it does for CUDA.

    Raises:
        AmbiguousDevices: an entry can't be resolved for certain.
    """
    setting = environment.get(VISIBLE)
    if setting is None:
        return _everything(machine)
    chosen: list[Gpu | MigInstance] = []
    remarks = list(machine.unreadable)
    for entry in (one.strip() for one in setting.split(",")):
        device = _named(entry, machine, environment)
        if device is None:
            remarks.append(_ends_at(entry, setting))
            break
        if device in chosen:
            remarks.append(f"{VISIBLE} names {device.uuid} twice, and CUDA then sees no device; name each once.")
            return Visible((), tuple(remarks))
        chosen.append(device)
    return Visible(tuple(chosen), tuple(remarks))


def visible_gpus(environment: Mapping[str, str] = os.environ) -> Visible:
    """What this worker may use; nothing, with the reason as a remark, where there is no GPU or no working driver.

    Raises:
        AmbiguousDevices: the setting can't be resolved for certain.
    """
    try:
        with open_nvml() as nvml:
            machine = nvml.machine()
    except (NvmlUnavailable, NvmlFailed) as error:
        return Visible((), (str(error),))
    return visible(machine, environment)


def _everything(machine: Machine) -> Visible:
    devices: list[Gpu | MigInstance] = []
    remarks = list(machine.unreadable)
    for gpu in machine.gpus:
        devices += [gpu] if gpu.mig is None else gpu.mig
        if gpu.mig == ():
            remarks.append(f"{gpu.uuid} is in MIG mode and has no instance; create one, or switch MIG off.")
    return Visible(tuple(devices), tuple(remarks))


def _named(entry: str, machine: Machine, environment: Mapping[str, str]) -> Gpu | MigInstance | None:
    if entry.startswith("MIG-"):
        return _instance(entry, machine)
    gpu = _begins(machine.gpus, entry) if entry.startswith("GPU-") else _numbered(entry, machine, environment)
    if gpu is None or gpu.mig is None:
        return gpu
    if len(gpu.mig) > 1:
        raise AmbiguousDevices(
            f"{VISIBLE} names {gpu.uuid}, which is split into {len(gpu.mig)} MIG instances; "
            "name those that are meant, as nvidia-smi -L shows them."
        )
    return gpu.mig[0] if gpu.mig else None


def _instance(entry: str, machine: Machine) -> MigInstance | None:
    by_number = _BY_GPU_AND_INSTANCE.fullmatch(entry)
    if by_number is None:
        return _begins([one for gpu in machine.gpus for one in gpu.mig or ()], entry)
    gpu = _begins(machine.gpus, by_number[1])
    wanted = (int(by_number[2]), int(by_number[3]))
    instances = () if gpu is None else gpu.mig or ()
    return next((one for one in instances if (one.gpu_instance, one.compute_instance) == wanted), None)


def _begins(devices: Sequence[D], beginning: str) -> D | None:
    found = [one for one in devices if one.uuid.startswith(beginning)]
    return found[0] if len(found) == 1 else None


def _numbered(entry: str, machine: Machine, environment: Mapping[str, str]) -> Gpu | None:
    if not (entry.isascii() and entry.isdigit()):
        return None
    if machine.unreadable:
        raise AmbiguousDevices(
            f"{VISIBLE} counts GPUs, and not all of them can be read ({machine.unreadable[0].rstrip('.')}); "
            "name the GPUs by UUID, as nvidia-smi -L shows them."
        )
    names = sorted({gpu.name for gpu in machine.gpus})
    if len(names) > 1 and environment.get(ORDER) != "PCI_BUS_ID":
        raise AmbiguousDevices(
            f"{VISIBLE}={environment[VISIBLE]} counts GPUs of different kinds ({', '.join(names)}), whose order CUDA "
            f"does not promise; set {ORDER}=PCI_BUS_ID, or name the GPUs by UUID."
        )
    number = int(entry)
    return machine.gpus[number] if number < len(machine.gpus) else None


def _ends_at(entry: str, setting: str) -> str:
    if not entry:
        return f"{VISIBLE} is empty or has an empty entry, where its list ends for CUDA; unset it to use every GPU."
    return (
        f"{VISIBLE}={setting} names {entry!r}, which is no GPU of this machine; its list ends there for CUDA, "
        "so what comes after it is not used."
    )
