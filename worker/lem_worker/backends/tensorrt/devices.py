"""Checks by NVML that the leased devices can run TensorRT-LLM.

NVML, because CUDA must not be initialised in the rank before the engine starts its processes.
"""

from __future__ import annotations

from collections.abc import Sequence

from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.backends.tensorrt.cache import GpuKind
from lem_worker.devices.nvml_session import NvmlFailed, NvmlUnavailable, open_nvml
from lem_worker.process.failures import BackendUnavailable

LOWEST_CAPABILITY = (8, 0)
"""Ampere, according to NVIDIA's support matrix of TensorRT-LLM 1.x."""


def require_gpus(devices: Sequence[Device]) -> tuple[GpuKind, ...]:
    """Return the kinds of the leased GPUs; a compute capability that NVML does not report is None and accepted.

    Raises:
        BackendUnavailable: no GPU was leased, or one is too old.
    """
    gpus = [device for device in devices if device.kind is DeviceKind.GPU]
    if not gpus:
        leased = ", ".join(device.name for device in devices) or "nothing"
        raise BackendUnavailable(
            f"TensorRT-LLM needs an NVIDIA GPU of compute capability 8.0 or newer and the run leased {leased}; "
            "start the worker on a machine that has one."
        )
    kinds = tuple(GpuKind(gpu.name, _capability(gpu.uuid)) for gpu in gpus)
    for gpu, kind in zip(gpus, kinds, strict=True):
        if kind.compute_capability is not None and kind.compute_capability < LOWEST_CAPABILITY:
            major, minor = kind.compute_capability
            raise BackendUnavailable(
                f"{gpu.name} ({gpu.uuid}) has compute capability {major}.{minor} and TensorRT-LLM needs 8.0 or newer "
                "(Ampere); leave it out of the worker's CUDA_VISIBLE_DEVICES, or use the pytorch backend on it."
            )
    return kinds


def _capability(uuid: str) -> tuple[int, int] | None:
    try:
        with open_nvml() as nvml:
            return nvml.compute_capability(uuid)
    except (NvmlUnavailable, NvmlFailed):
        return None
