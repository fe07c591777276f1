"""Asks NVML about one device, so that a reading that can't be had costs that reading alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pynvml

from lem_worker.sampler.sources import ReadingFailed

_UNSUPPORTED = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
)
"""What a chip, a driver or a container's rights may not offer."""


class Asker:
    """What the device does not offer is null and not asked for again; what fails is null and asked for again."""

    def __init__(self, index: int, uuid: str) -> None:
        self._index = index
        self._uuid = uuid
        self._missing: set[str] = set()
        self._failing: dict[str, str] = {}
        self._news: list[tuple[str, str, str | None]] = []

    def ask(self, what: str, read: Callable[[], Any], column: str | None = None) -> Any:
        """The reading, or None; `column` is where it stands in the stream `power`."""
        if what in self._missing:
            return None
        try:
            value = read()
        except pynvml.NVMLError as error:
            if error.value in _UNSUPPORTED:
                self._missing.add(what)
                self._failing.pop(what, None)
            else:
                self._fails(what, f"NVML can't read {what} of {self._uuid} ({error})", column)
            return None
        self._failing.pop(what, None)
        return value

    def is_offered(self, what: str) -> bool:
        """The device has not said that it has no such reading."""
        return what not in self._missing

    def why_not(self, what: str) -> str | None:
        """Why the reading failed when it was last asked for; None where it did not."""
        return self._failing.get(what)

    def news(self, now_ns: int) -> list[ReadingFailed]:
        """The readings that began to fail since the last look."""
        news, self._news = self._news, []
        return [ReadingFailed(self._index, now_ns, what, why, column) for what, why, column in news]

    def _fails(self, what: str, error: str, column: str | None) -> None:
        why = f"{error}; see what nvidia-smi says of it."
        if self._failing.get(what) != why:
            self._news.append((what, why, column))
        self._failing[what] = why
