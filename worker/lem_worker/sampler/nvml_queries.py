"""NVML calls about one device, of which a failing one invalidates only its own reading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml

from lem_worker.devices.nvml_calls import REFUSALS
from lem_worker.process.evidence_rows import Clock
from lem_worker.sampler.energy_source import ReadingFailed, ReadingReturned

_WAITED_SHARE = 4
"""A failing reading is asked again after a quarter of the time for which it has failed: that lengthens its gap by at
most a quarter, and a driver in trouble is left alone."""
_LONGEST_WAIT_NS = 10_000_000_000
ALL_ONES = frozenset({2**32 - 1, 2**64 - 1})
"""NVML's own values for "not available" (NVML_VALUE_NOT_AVAILABLE), which may come with success."""


class NonsenseValue(Exception):
    """A call succeeded with a value that can't be the reading."""


@dataclass
class _Reading:
    """What is known of one reading."""

    calls: int | None = None
    """The position of the call that answered; None before the first answer."""
    refusal: str | None = None
    """Why it is not offered; only before the first answer."""
    failure: str | None = None
    since_ns: int = 0
    """Begin of the refusal or failure."""
    due_ns: int = 0


class NvmlQueries:
    """Reads values by name; no refusal and no failure is final.

    A reading that never answered is unsupported; one that answered before has failed, also where the driver says that
    it is not supported. Both are null and asked again, at growing distances.
    """

    def __init__(self, index: int, uuid: str, clock: Clock) -> None:
        self._index = index
        self._uuid = uuid
        self._clock = clock
        self._readings: dict[str, _Reading] = {}
        self._news: list[ReadingFailed | ReadingReturned] = []

    def read(self, name: str, *calls: Callable[[], Any], column: str | None = None) -> Any:
        """Return the value of an NVML call, or None; `column` is its column in the stream `power`.

        Of several calls, the newest name first, the first one that answers is asked from then on.
        """
        reading = self._readings.setdefault(name, _Reading())
        now_ns = self._clock()
        if (reading.refusal or reading.failure) and now_ns < reading.due_ns:
            return None
        refusal: str | None = None
        for position, call in enumerate(calls) if reading.calls is None else [(reading.calls, calls[reading.calls])]:
            try:
                value = call()
            except pynvml.NVMLError as error:
                if error.value in REFUSALS and reading.calls is None:
                    refusal = refusal or str(error)
                    continue
                self._note_failure(name, reading, f"can't read {name} of {self._uuid} ({error})", column)
                return None
            except NonsenseValue as error:
                self._note_failure(name, reading, f"has no value for {name} of {self._uuid} ({error})", column)
                return None
            self._note_answer(name, reading, position, column)
            return value
        self._postpone(reading, self._clock(), is_new=not (reading.refusal or reading.failure))
        reading.refusal, reading.failure = reading.refusal or refusal, None
        return None

    def is_supported(self, name: str) -> bool:
        """Whether the device has not refused the reading at every call so far; true before the first one."""
        reading = self._readings.get(name)
        return reading is None or reading.refusal is None

    def refused(self) -> list[str]:
        """The readings that never answered, sorted."""
        return sorted(name for name, reading in self._readings.items() if reading.refusal is not None)

    def failure(self, name: str) -> str | None:
        """Why the last call failed; None where it did not."""
        reading = self._readings.get(name)
        return None if reading is None else reading.failure

    def failing_s(self, name: str) -> float:
        """For how long the reading has failed; 0 where it does not."""
        reading = self._readings.get(name)
        return 0.0 if reading is None or reading.failure is None else (self._clock() - reading.since_ns) / 1e9

    def take_news(self) -> list[ReadingFailed | ReadingReturned]:
        """The readings that began to fail, or succeeded again, since the previous call of this method."""
        news, self._news = self._news, []
        return news

    def _note_answer(self, name: str, reading: _Reading, position: int, column: str | None) -> None:
        now_ns = self._clock()
        if reading.refusal is not None:
            reason = f"NVML said at first that it can't read {name} of {self._uuid} ({reading.refusal})."
            self._news.append(ReadingFailed(self._index, reading.since_ns, name, reason, column))
        if reading.refusal is not None or reading.failure is not None:
            away_s = (now_ns - reading.since_ns) / 1e9
            self._news.append(ReadingReturned(self._index, now_ns, name, away_s))
        reading.calls, reading.refusal, reading.failure = position, None, None

    def _note_failure(self, name: str, reading: _Reading, what: str, column: str | None) -> None:
        now_ns = self._clock()
        reason = f"NVML {what}; see what nvidia-smi says of it."
        if reading.failure != reason:
            self._news.append(ReadingFailed(self._index, now_ns, name, reason, column))
        self._postpone(reading, now_ns, is_new=reading.failure is None and reading.refusal is None)
        reading.failure, reading.refusal = reason, None

    @staticmethod
    def _postpone(reading: _Reading, now_ns: int, *, is_new: bool) -> None:
        if is_new:
            reading.since_ns = now_ns
        reading.due_ns = now_ns + wait_ns(now_ns - reading.since_ns)


def wait_ns(failing_ns: int) -> int:
    """Return the time until what has failed for so long is tried again."""
    return min(failing_ns // _WAITED_SHARE, _LONGEST_WAIT_NS)


def number(value: Any, least: int, most: int) -> int:
    """Return a value in its range.

    Raises:
        NonsenseValue: it is outside, as NVML's value for "not available" is.
    """
    found = int(value)
    if found in ALL_ONES or not least <= found <= most:
        raise NonsenseValue(f"it answered {found}")
    return found
