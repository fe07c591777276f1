"""A device whose power is known, its sensor, and an external meter with a clock and an error of its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from lem_server.aggregation.calibration.alignment import Power

FloatArray = npt.NDArray[np.float64]
Random = np.random.Generator

STEP_S = 0.001


def work_w(random: Random, length_s: float, *, low: float = 60, high: float = 450) -> FloatArray:
    """Power every ms: idle for a tenth, then levels of 1 to 20 s, some with a sawtooth or bursts, and idle again."""
    t = np.arange(round(length_s / STEP_S)) * STEP_S
    edges = np.cumsum(random.uniform(1, 20, round(length_s)))
    watts = random.uniform(low, high, len(edges) + 1)[np.searchsorted(edges, t)]
    watts += random.choice([0.0, 1.0]) * random.uniform(0, 60) * (t / random.uniform(0.5, 5) % 1)
    for begin in random.uniform(0, length_s, random.integers(0, round(length_s / 2))):
        watts[round(begin / STEP_S) : round((begin + random.uniform(0.01, 0.5)) / STEP_S)] += random.uniform(50, 150)
    watts[(t < length_s / 10) | (t > length_s * 0.9)] = low
    watts += np.repeat(random.normal(0, random.uniform(1, 4), len(t) // 10 + 1), 10)[: len(t)]
    found: FloatArray = np.maximum(watts, 5)
    return found


@dataclass(frozen=True)
class Sensor:
    """What a driver shows: gain × power + offset, the mean of a part of each period."""

    gain: float
    offset_w: float
    period_s: float = 0.1
    averaged_s: float = 0.025

    def read(self, watts: FloatArray, at_s: FloatArray, phase_s: float = 0.0) -> FloatArray:
        """Return the readings at times."""
        until = np.concatenate(([0.0], np.cumsum(watts) * STEP_S))
        grid = np.arange(len(until)) * STEP_S
        last = np.floor((at_s - phase_s) / self.period_s) * self.period_s + phase_s
        last = np.maximum(last, self.averaged_s)
        mean = (np.interp(last, grid, until) - np.interp(last - self.averaged_s, grid, until)) / self.averaged_s
        found: FloatArray = self.gain * mean + self.offset_w
        return found

    def sampled(self, random: Random, watts: FloatArray, every_s: float) -> Power:
        """Return the readings at jittered times."""
        number = round(len(watts) * STEP_S / every_s) - 1
        times: FloatArray = np.arange(number) * every_s + random.uniform(0, every_s / 2, number)
        return Power(times, np.round(self.read(watts, times, float(random.uniform(0, self.period_s))), 3))


@dataclass(frozen=True)
class Meter:
    """An external meter: a row every `period_s`, the mean since the row before, or the power at that instant."""

    period_s: float
    noise_w: float = 0.0
    gain: float = 1.0
    behind_s: float = 0.0
    """By how much its clock is behind."""
    instant: bool = False

    def log(self, random: Random, watts: FloatArray) -> Power:
        """Return its rows."""
        until = np.concatenate(([0.0], np.cumsum(watts) * STEP_S))
        grid = np.arange(len(until)) * STEP_S
        at = np.arange(float(random.uniform(1, 1.5)) * self.period_s, grid[-1], self.period_s)
        over_s = 0.02 if self.instant else self.period_s
        means = (np.interp(at, grid, until) - np.interp(at - over_s, grid, until)) / over_s
        return Power(at - self.behind_s, self.gain * means + random.normal(0, self.noise_w, len(at)))


def csv_text(log: Power, begin: datetime, *, header: str = "time,power_w") -> str:
    """Return a log as a file."""
    rows = zip(log.times_s.tolist(), log.watts.tolist(), strict=True)
    lines = [f"{(begin + timedelta(seconds=at)).astimezone(UTC).isoformat()},{watts:.3f}" for at, watts in rows]
    return "\n".join([header, *lines]) + "\n"
