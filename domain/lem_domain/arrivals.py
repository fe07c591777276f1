"""Recorded traces of arrivals: a line of text per arrival, as they are uploaded and replayed."""

from __future__ import annotations

import math
from collections.abc import Sequence


class TraceError(ValueError):
    """A trace of arrivals can't be used; says which line and what to change."""


def trace_lines(text: str) -> tuple[str, ...]:
    """The lines of a trace file that aren't empty; the arrivals are checked.

    Raises:
        TraceError: there is none, or one is no time.
    """
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    parse_trace(lines)
    return lines


def parse_trace(lines: Sequence[str]) -> tuple[float, ...]:
    """Arrivals in seconds from the beginning of the window, none before the one above it.

    Raises:
        TraceError: there is none, or a line holds something else.
    """
    arrivals: list[float] = []
    for number, line in enumerate(lines, start=1):
        try:
            seconds = float(line)
        except ValueError:
            raise TraceError(
                f"line {number} of the trace is {line[:40]!r}; write one time in seconds a line."
            ) from None
        if not math.isfinite(seconds) or seconds < (arrivals[-1] if arrivals else 0.0):
            raise TraceError(
                f"line {number} of the trace is {line[:40]!r}; times are in seconds, none negative, none before the "
                "line above."
            )
        arrivals.append(seconds)
    if not arrivals:
        raise TraceError("the trace holds no arrivals; write one time in seconds a line.")
    if arrivals[-1] == 0:
        raise TraceError("all arrivals of the trace are at 0 s; use traffic.mode: offline for that.")
    return tuple(arrivals)
