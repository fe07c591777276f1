"""What a GPU and its driver are, as far as NVML tells: what somebody needs who wants to repeat a figure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pynvml
from pydantic.types import JsonValue

Ask = Callable[[str, Callable[[], Any]], Any]
"""Reads something that a chip, a driver or a container's rights may not offer; None where they don't."""


def gpu_facts(device: Any, chip: Any, ask: Ask) -> dict[str, JsonValue]:
    """Facts that don't change during an attempt, each null where it is not offered.

    `device` is what was leased and `chip` the GPU that it is on, which is another one for a MIG instance. Power limits
    are in W: the enforced one is what the chip keeps to, the current one what was set, the default one the maker's.
    """
    memory = ask("memory", lambda: pynvml.nvmlDeviceGetMemoryInfo(device))
    ecc = ask("ECC", lambda: pynvml.nvmlDeviceGetEccMode(chip))
    mig = ask("MIG mode", lambda: pynvml.nvmlDeviceGetMigMode(chip))
    persistence = ask("persistence mode", lambda: pynvml.nvmlDeviceGetPersistenceMode(chip))
    return {
        "name": _text(ask("name", lambda: pynvml.nvmlDeviceGetName(device))),
        "compute_capability": _pair(
            ask("compute capability", lambda: pynvml.nvmlDeviceGetCudaComputeCapability(chip)), "."
        ),
        "driver": _text(ask("driver version", pynvml.nvmlSystemGetDriverVersion)),
        "cuda_driver": _cuda(ask("CUDA version", pynvml.nvmlSystemGetCudaDriverVersion_v2)),
        "vbios": _text(ask("VBIOS version", lambda: pynvml.nvmlDeviceGetVbiosVersion(chip))),
        "power_limit_w": _watts(ask("power limit", lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(chip))),
        "power_limit_current_w": _watts(
            ask("current power limit", lambda: pynvml.nvmlDeviceGetPowerManagementLimit(chip))
        ),
        "power_limit_default_w": _watts(
            ask("default power limit", lambda: pynvml.nvmlDeviceGetPowerManagementDefaultLimit(chip))
        ),
        "sm_clock_max_mhz": ask(
            "highest SM clock", lambda: pynvml.nvmlDeviceGetMaxClockInfo(chip, pynvml.NVML_CLOCK_SM)
        ),
        "memory_clock_max_mhz": ask(
            "highest memory clock", lambda: pynvml.nvmlDeviceGetMaxClockInfo(chip, pynvml.NVML_CLOCK_MEM)
        ),
        "memory_total_bytes": None if memory is None else memory.total,
        "ecc": None if ecc is None else bool(ecc[0]),
        "mig": None if mig is None else bool(mig[0]),
        "persistence": None if persistence is None else bool(persistence),
        "pcie_generation": ask("PCIe generation", lambda: pynvml.nvmlDeviceGetMaxPcieLinkGeneration(chip)),
        "pcie_width": ask("PCIe width", lambda: pynvml.nvmlDeviceGetMaxPcieLinkWidth(chip)),
        "nvlinks": _nvlinks(chip, ask),
    }


def _nvlinks(chip: Any, ask: Ask) -> int | None:
    """Links that are up; None where the chip has none at all."""

    def count() -> int:
        up = int(pynvml.nvmlDeviceGetNvLinkState(chip, 0) == pynvml.NVML_FEATURE_ENABLED)
        for link in range(1, pynvml.NVML_NVLINK_MAX_LINKS):
            # A chip with fewer links than the library knows of refuses the numbers above its own.
            with contextlib.suppress(pynvml.NVMLError):
                up += pynvml.nvmlDeviceGetNvLinkState(chip, link) == pynvml.NVML_FEATURE_ENABLED
        return up

    links: int | None = ask("NVLink", count)
    return links


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _pair(values: tuple[int, int] | list[int] | None, between: str) -> str | None:
    return None if values is None else between.join(str(value) for value in values)


def _cuda(version: int | None) -> str | None:
    """13020 is 13.2 (1000 × major + 10 × minor)."""
    return None if version is None else f"{version // 1000}.{version % 1000 // 10}"
