"""The latest reading of each part of one quantity, and whether all parts that should tell it still do."""

from __future__ import annotations


class Latest:
    """A part that ceased to tell is missing until it tells again: what the others say is not the whole then."""

    def __init__(self) -> None:
        self._values: dict[str, int] = {}
        self._missing: set[str] = set()

    @property
    def is_told(self) -> bool:
        """Some part tells it, or did."""
        return bool(self._values or self._missing)

    def tell(self, part: str, value: int) -> None:
        """A new reading."""
        self._values[part] = value
        self._missing.discard(part)

    def lose(self, part: str) -> None:
        """The part does not tell any more; its last reading says nothing of what comes."""
        self._values.pop(part, None)
        self._missing.add(part)

    def whole(self) -> dict[str, int] | None:
        """The readings by part; None while one is missing."""
        return None if self._missing else self._values
