"""Work for a GPU of a simulated NVML: it writes the power of the near future into the state file."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

AHEAD_S = 1.0
"""A change that came later than a reading of the time that it changes would change the past."""


class SimulatedLoad:
    """Power of GPU 0 at rest and at work. A busy GPU has another power every few milliseconds, as real ones do."""

    def __init__(self, state: Path, rest_w: float, work_w: float) -> None:
        self._state = state
        self._rest_w = rest_w
        self._work_w = work_w
        self._lines = [line for line in state.read_text().splitlines() if not line.startswith("power 0 ")]
        [origin] = [line.split()[1] for line in self._lines if line.startswith("origin_ns ")]
        self._origin_s = int(origin) / 1e9
        self._points = [(0.0, rest_w)]

    def busy(self, seconds: float) -> None:
        """Work for some time."""
        chosen = random.Random(len(self._points))
        at, end = time.monotonic() + AHEAD_S, time.monotonic() + AHEAD_S + seconds
        changes = []
        while at < end:
            changes.append((at, self._work_w * chosen.uniform(0.9, 1.0)))
            at += chosen.uniform(0.005, 0.015)
        self._follow([*changes, (end, self._rest_w)], end)

    def steps(self, holds_s: Sequence[float]) -> list[tuple[float, bool]]:
        """Work and rest in turn, for these times, beginning with work; return when it changed."""
        at = time.monotonic() + AHEAD_S
        found = []
        for number, hold_s in enumerate(holds_s):
            found.append((at, number % 2 == 0))
            at += hold_s
        self._follow([(at, self._work_w if is_up else self._rest_w) for at, is_up in found], at)
        return found

    def _follow(self, changes: Sequence[tuple[float, float]], until: float) -> None:
        self._points += [(1e3 * (at - self._origin_s), watts) for at, watts in changes]
        curve = ",".join(f"{ms:.3f}:{watts:.3f}" for ms, watts in self._points)
        draft = self._state.with_suffix(".load")
        draft.write_text("\n".join((*self._lines, f"power 0 steps {curve}", "")))
        draft.replace(self._state)
        time.sleep(max(0.0, until - time.monotonic()))
