"""NVML calls about one device, of which a failing one invalidates only its own reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from lem_worker.sampler.energy_source import ReadingFailed

_UNSUPPORTED = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
)
"""Answers of a chip, a driver or a container that does not offer the reading. All other errors may pass."""


class NvmlQueries:
    """Reads values by name. An unsupported one is null and never read again; a failed one is null until it succeeds."""

    def __init__(self, index: int, uuid: str) -> None:
        self._index = index
        self._uuid = uuid
        self._unsupported: set[str] = set()
        self._failing: dict[str, str] = {}
        self._new_failures: list[tuple[str, str, str | None]] = []

    def read(self, name: str, call: Callable[[], Any], column: str | None = None) -> Any:
        """Return the value of an NVML call, or None; `column` is its column in the stream `power`."""
        if name in self._unsupported:
            return None
        try:
            value = call()
        except pynvml.NVMLError as error:
            if error.value in _UNSUPPORTED:
                self._unsupported.add(name)
                self._failing.pop(name, None)
            else:
                self._note_failure(name, f"NVML can't read {name} of {self._uuid} ({error})", column)
            return None
        self._failing.pop(name, None)
        return value

    def is_supported(self, name: str) -> bool:
        """Whether the device has not refused the reading as unsupported; true before the first call."""
        return name not in self._unsupported

    def failure(self, name: str) -> str | None:
        """Why the last call failed; None where it did not."""
        return self._failing.get(name)

    def take_failures(self, now_ns: int) -> list[ReadingFailed]:
        """The readings that began to fail since the previous call of this method."""
        failures, self._new_failures = self._new_failures, []
        return [ReadingFailed(self._index, now_ns, name, reason, column) for name, reason, column in failures]

    def _note_failure(self, name: str, error: str, column: str | None) -> None:
        reason = f"{error}; see what nvidia-smi says of it."
        if self._failing.get(name) != reason:
            self._new_failures.append((name, reason, column))
        self._failing[name] = reason
