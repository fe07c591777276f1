"""The interface between the code that measures and the spool: rows of one evidence stream, and the clock they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

Clock = Callable[[], int]
"""Nanoseconds of CLOCK_MONOTONIC, which every process of an attempt shares."""


class EvidenceRows(Protocol):
    """Takes the rows of one evidence stream."""

    def append(self, **columns: object) -> None:
        """Add one row."""

    def extend(self, **columns: Sequence[object]) -> None:
        """Add rows, given as columns of equal length."""
