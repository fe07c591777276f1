"""Progress of a long transfer on standard error: one moving line on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

_EVERY_S = {True: 0.1, False: 10.0}


def in_bytes(count: int) -> str:
    """`640 B`, `12.3 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


class TransferProgress:
    """Counts bytes and prints them; a transfer shorter than ten seconds prints nothing into a log."""

    def __init__(
        self,
        verb: str,
        *,
        quiet: bool,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._verb = verb
        self._quiet = quiet
        self._stream = stream or sys.stderr
        self._clock = clock
        self._moves = self._stream.isatty()
        self._began_at = self._printed_at = clock()
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moves and not self._quiet:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def add(self, count: int) -> None:
        """Count more bytes, and print the progress when it is due."""
        self._bytes += count
        now = self._clock()
        if self._quiet or now - self._printed_at < _EVERY_S[self._moves]:
            return
        self._printed_at = now
        line = f"{in_bytes(self._bytes)} {self._verb}, {in_bytes(round(self._bytes / (now - self._began_at)))}/s"
        self._stream.write(f"\r\x1b[K{line}" if self._moves else f"{line}\n")
        self._stream.flush()
