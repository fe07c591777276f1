"""The latest reading of each part (device or host domain) of one quantity."""

from __future__ import annotations


class LatestReadings:
    """Readings by part. A part that stops reporting makes the whole incomplete until it reports again."""

    def __init__(self) -> None:
        self._values: dict[str, int] = {}
        self._missing: set[str] = set()

    @property
    def was_reported(self) -> bool:
        """Whether any part reports the quantity or reported it earlier."""
        return bool(self._values or self._missing)

    def update(self, part: str, value: int) -> None:
        """Store a new reading."""
        self._values[part] = value
        self._missing.discard(part)

    def invalidate(self, part: str) -> None:
        """Forget the part's reading, because it no longer describes the present."""
        self._values.pop(part, None)
        self._missing.add(part)

    def complete(self) -> dict[str, int] | None:
        """The readings by part; None while one is missing."""
        return None if self._missing else self._values
