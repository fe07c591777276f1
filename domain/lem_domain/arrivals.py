"""Recorded traces of arrivals: one line of text per arrival."""

from __future__ import annotations

import math
from collections.abc import Sequence


class TraceError(ValueError):
    """A trace of arrivals is invalid; the message has the line and the remedy."""


def trace_lines(text: str) -> tuple[str, ...]:
    """The non-empty lines of a trace file, checked.

    Raises:
        TraceError: there are no arrivals, or a line is invalid.
    """
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    parse_trace(lines)
    return lines


def parse_trace(lines: Sequence[str]) -> tuple[float, ...]:
    """Arrivals in seconds from the start of the window, in ascending order.

    Raises:
        TraceError: there are no arrivals, or a line is not a time or before the line above.
    """
    arrivals: list[float] = []
    for number, line in enumerate(lines, start=1):
        try:
            seconds = float(line)
        except ValueError:
            raise TraceError(
                f"line {number} of the trace is {line[:40]!r}; write one time in seconds per line."
            ) from None
        if not math.isfinite(seconds) or seconds < (arrivals[-1] if arrivals else 0.0):
            raise TraceError(
                f"line {number} of the trace is {line[:40]!r}; write times in seconds, not negative and not before the "
                "line above."
            )
        arrivals.append(seconds)
    if not arrivals:
        raise TraceError("the trace has no arrivals; write one time in seconds per line.")
    if arrivals[-1] == 0:
        raise TraceError("all arrivals of the trace are at 0 s; use traffic.mode: offline for that.")
    return tuple(arrivals)
