"""NVML's return codes by what they say of a call, and readings that have several functions.

Codes and functions are those of the header of driver 615 (nvmlReturn_t); `nvml` is the module pynvml, which a worker
without GPUs may lack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

REFUSALS = frozenset(
    {
        2,  # invalid argument: an index, a field or a structure that this driver does not know
        3,  # not supported
        4,  # no permission
        13,  # function not found
        22,  # ECC is not supported under vGPU
        24,  # the frequency is not supported
        25,  # the version of an argument does not match
        26,  # deprecated: another function has this reading now
        30,  # this type of reset is not supported
    }
)
"""Answers of a chip, a driver or a container that does not offer a reading. Any of them may also be a moment's mistake
(Zeus and InferenceX met "not supported" for an energy counter that worked before), so each is asked again. All other
errors are failures: of the device (15 lost, 16 reset required), of the driver (9, 10, 11, 17, 18, 20, 27, 29, 999)."""


def first_answer(error_type: type[Exception], calls: Sequence[Callable[[], Any]]) -> Any:
    """Return the answer of the first call that is not refused; None if all are.

    NVML renames functions and refuses the old name as deprecated, or does not have the new one yet.

    Raises:
        error_type: a call failed otherwise; it is pynvml's NVMLError.
    """
    for call in calls:
        try:
            return call()
        except error_type as error:
            if getattr(error, "value", None) not in REFUSALS:
                raise
    return None


def memory_calls(nvml: Any, device: Any, part: str) -> tuple[Callable[[], int], ...]:
    """The calls for `used` or `total` bytes; the first function is deprecated in drivers of 595.

    The second version shows what the driver reserves apart from what is used; here both count as used.
    """

    def newer() -> int:
        memory = nvml.nvmlDeviceGetMemoryInfo(device, version=nvml.nvmlMemory_v2)
        return int(memory.total) if part == "total" else int(memory.used) + int(memory.reserved)

    return (lambda: int(getattr(nvml.nvmlDeviceGetMemoryInfo(device), part)), newer)


def temperature_calls(nvml: Any, chip: Any) -> tuple[Callable[[], int], ...]:
    """The calls for the chip's temperature in °C; the first function is deprecated in drivers of 595."""
    calls: list[Callable[[], int]] = [lambda: int(nvml.nvmlDeviceGetTemperature(chip, nvml.NVML_TEMPERATURE_GPU))]
    if hasattr(nvml, "nvmlDeviceGetTemperatureV"):  # from nvidia-ml-py 12.575 on
        calls.append(lambda: int(nvml.nvmlDeviceGetTemperatureV(chip, nvml.NVML_TEMPERATURE_GPU)))
    return tuple(calls)
