"""Formats of exported tables. A module in this folder is a format of its name, with a constant `FORMAT`.

A writer takes batches one after another and returns the bytes that are ready. Only `finish` ends the document: without
it a reader of Parquet, Arrow or JSON refuses what there is. CSV and JSON lines have no such end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import pyarrow as pa

from lem_domain.tables import TableFormat


class TableWriter(Protocol):
    """Writes one table. Its methods run in a thread, one at a time."""

    def write(self, batch: pa.RecordBatch) -> bytes:
        """Take the next rows; return what can be sent, perhaps nothing."""

    def finish(self) -> bytes:
        """Return the rest of the document."""


@dataclass(frozen=True)
class Format:
    """A format."""

    media_type: str
    writer: Callable[[pa.Schema], TableWriter]


class Sink:
    """A file to write to, for libraries that need one; what was written is taken out in between."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        """Keep the bytes."""
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered elsewhere."""

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def format_of(name: TableFormat) -> Format:
    """Return a format."""
    found: Format = import_module(f"{__name__}.{name.value}").FORMAT
    return found
