"""Facts of a GPU and its driver, read from NVML, that are needed to reproduce a measurement."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import pynvml
from pydantic.types import JsonValue

from lem_worker.devices.nvml_calls import memory_calls


class Read(Protocol):
    """Calls NVML for a named reading; None where the chip, the driver or the container's rights do not offer it."""

    def __call__(self, name: str, *calls: Callable[[], Any]) -> Any:
        """Of several calls, the first that is not refused gives the reading."""


def gpu_facts(device: Any, chip: Any, read: Read) -> dict[str, JsonValue]:
    """Return facts that don't change during an attempt, each null where NVML does not offer it.

    `device` is the leased device and `chip` its GPU; the two differ for a MIG instance. Power limits are in W: the
    enforced one is in effect (the lowest of all limiters), the current one was set, the default one is the vendor's.
    """
    ecc = read("ECC", lambda: pynvml.nvmlDeviceGetEccMode(chip))
    return {
        **watched_facts(chip, read),
        "name": _text(read("name", lambda: pynvml.nvmlDeviceGetName(device))),
        "compute_capability": _pair(
            read("compute capability", lambda: pynvml.nvmlDeviceGetCudaComputeCapability(chip)), "."
        ),
        "cuda_driver": _cuda(read("CUDA version", pynvml.nvmlSystemGetCudaDriverVersion_v2)),
        "vbios": _text(read("VBIOS version", lambda: pynvml.nvmlDeviceGetVbiosVersion(chip))),
        "power_limit_default_w": _watts(
            read("default power limit", lambda: pynvml.nvmlDeviceGetPowerManagementDefaultLimit(chip))
        ),
        "sm_clock_max_mhz": read(
            "highest SM clock", lambda: pynvml.nvmlDeviceGetMaxClockInfo(chip, pynvml.NVML_CLOCK_SM)
        ),
        "memory_clock_max_mhz": read(
            "highest memory clock", lambda: pynvml.nvmlDeviceGetMaxClockInfo(chip, pynvml.NVML_CLOCK_MEM)
        ),
        "memory_total_bytes": read("total memory", *memory_calls(pynvml, device, "total")),
        "ecc": None if ecc is None else bool(ecc[0]),
        "pcie_generation": read("PCIe generation", lambda: pynvml.nvmlDeviceGetMaxPcieLinkGeneration(chip)),
        "pcie_width": read("PCIe width", lambda: pynvml.nvmlDeviceGetMaxPcieLinkWidth(chip)),
        "nvlinks": _nvlinks(chip, read),
    }


def watched_facts(chip: Any, read: Read) -> dict[str, JsonValue]:
    """Return the facts that may be changed from outside during an attempt, each null where NVML does not offer it.

    NVML has no function that returns a clock lock (nvidia-smi -lgc); the application clock is the nearest setting.
    """
    mig = read("MIG mode", lambda: pynvml.nvmlDeviceGetMigMode(chip))
    persistence = read("persistence mode", lambda: pynvml.nvmlDeviceGetPersistenceMode(chip))
    return {
        "driver": _text(read("driver version", pynvml.nvmlSystemGetDriverVersion)),
        "power_limit_w": _watts(read("power limit", lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(chip))),
        "power_limit_current_w": _watts(
            read("current power limit", lambda: pynvml.nvmlDeviceGetPowerManagementLimit(chip))
        ),
        "mig": None if mig is None else bool(mig[0]),
        "persistence": None if persistence is None else bool(persistence),
        "sm_clock_application_mhz": read(
            "application clock",
            # nvmlDeviceGetApplicationsClock is deprecated in drivers of 595.
            lambda: pynvml.nvmlDeviceGetClock(chip, pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_ID_APP_CLOCK_TARGET),
            lambda: pynvml.nvmlDeviceGetApplicationsClock(chip, pynvml.NVML_CLOCK_SM),
        ),
    }


def _nvlinks(chip: Any, read: Read) -> int | None:
    """Number of active links; None for a chip without NVLink."""

    def count() -> int:
        up = int(pynvml.nvmlDeviceGetNvLinkState(chip, 0) == pynvml.NVML_FEATURE_ENABLED)
        for link in range(1, pynvml.NVML_NVLINK_MAX_LINKS):
            # NVML_NVLINK_MAX_LINKS is the library's maximum; a chip with fewer links refuses the higher numbers.
            with contextlib.suppress(pynvml.NVMLError):
                up += pynvml.nvmlDeviceGetNvLinkState(chip, link) == pynvml.NVML_FEATURE_ENABLED
        return up

    links: int | None = read("NVLink", count)
    return links


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _pair(values: tuple[int, int] | list[int] | None, separator: str) -> str | None:
    return None if values is None else separator.join(str(value) for value in values)


def _cuda(version: int | None) -> str | None:
    """Format a version that NVML gives as 1000 × major + 10 × minor: 13020 is 13.2."""
    return None if version is None else f"{version // 1000}.{version % 1000 // 10}"
