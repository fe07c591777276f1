"""Means of a meter and of a sensor's readings over the same times, and by how much their clocks differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lem_server.aggregation.energy.traces import FloatArray
from lem_server.aggregation.errors import CalibrationRefused
from lem_server.aggregation.evidence_reader import BoolArray

LEAST_PAIR_S = 0.5
"""Shorter means are dominated by the time that the sensor does not see, and by when it is read."""
READINGS_PER_PAIR = 5
MOST_PAIRS = 5000
FEWEST_PAIRS = 20
_GAP = 3.0
"""Times the usual distance."""
_UNLIKE = 0.5
"""Courses of power whose correlation has a square below this are not those of one device."""
_RIVAL = 10.0
"""In units of the variance of a residual: one that fits worse by less is no clear loser. 3.84 would be 95 %."""
_LIKELY = 3.84


class Power(NamedTuple):
    """Powers in W at times in s, rising; a power is the mean since the one before, or the one at that time."""

    times_s: FloatArray
    watts: FloatArray

    @property
    def period_s(self) -> float:
        """The usual distance."""
        return float(np.median(np.diff(self.times_s)))


class ClockOffset(NamedTuple):
    """What to add to the meter's times, and by how much that may be off, in s."""

    seconds: float
    uncertainty_s: float


@dataclass(frozen=True)
class Pairs:
    """The meter's means over successive times, and the readings to compare them with at any displacement."""

    begin_s: FloatArray
    end_s: FloatArray
    meter_w: FloatArray
    readings: Power
    joules: FloatArray
    """Integral of the readings until each of them."""

    def readings_w(self, offset_s: float) -> FloatArray:
        """Return the mean of the readings over each pair's time, displaced; NaN where there is a gap or no reading."""
        times = self.readings.times_s
        begin, end = self.begin_s + offset_s, self.end_s + offset_s
        means: FloatArray = (np.interp(end, times, self.joules) - np.interp(begin, times, self.joules)) / (end - begin)
        inside = (begin >= times[0]) & (end <= times[-1])
        widest = _GAP * max(self.readings.period_s, 0.1)
        first, last = np.searchsorted(times, begin, side="right") - 1, np.searchsorted(times, end)
        wide = np.concatenate(([0], np.cumsum(np.diff(times) > widest)))
        inside &= wide[np.clip(last, 0, len(times) - 1)] == wide[np.clip(first, 0, len(times) - 1)]
        means[~inside] = np.nan
        return means

    @property
    def pair_s(self) -> float:
        """The usual length."""
        return float(np.median(self.end_s - self.begin_s))


def paired(meter: Power, readings: Power) -> Pairs:
    """Divide the meter's log into means over at least `LEAST_PAIR_S` and a few readings, without gaps inside."""
    period = meter.period_s
    wanted = max(
        LEAST_PAIR_S, READINGS_PER_PAIR * readings.period_s, (meter.times_s[-1] - meter.times_s[0]) / MOST_PAIRS
    )
    each = max(1, math.ceil(wanted / period - 1e-6))
    begin = np.maximum(meter.times_s - 1.5 * period, np.concatenate(([-np.inf], meter.times_s[:-1])))
    begin[0] = meter.times_s[0] - period
    gaps = np.concatenate(([0], np.cumsum(np.diff(meter.times_s) > _GAP * period)))
    first = np.arange(0, len(meter.times_s) - each + 1, each)
    last = first + each - 1
    first, last = first[gaps[first] == gaps[last]], last[gaps[first] == gaps[last]]
    until = np.concatenate(([0.0], np.cumsum(meter.watts * (meter.times_s - begin))))
    length = np.concatenate(([0.0], np.cumsum(meter.times_s - begin)))
    means = (until[last + 1] - until[first]) / (length[last + 1] - length[first])
    steps = np.diff(readings.times_s) * (readings.watts[1:] + readings.watts[:-1]) / 2
    joules = np.concatenate(([0.0], np.cumsum(steps)))
    return Pairs(begin[first], meter.times_s[last], means, readings, joules)


def by_time_stamps(pairs: Pairs, clock_uncertainty_s: float, search_s: float, period_s: float) -> ClockOffset:
    """Return the displacement within what the time stamps leave open: where in its period a meter writes a row.

    Raises:
        CalibrationRefused: the courses of power are unlike each other, or fit at another displacement.
    """
    open_s = period_s + clock_uncertainty_s + pairs.readings.period_s
    near = _Search.over(pairs, open_s, max(open_s / 20, 0.005))
    best = near.best
    if near.apart[best] > _UNLIKE or not near.flat:
        far = _Search.over(pairs, search_s, pairs.pair_s / 2)
        displaced = far.offsets[far.best]
        if abs(displaced) > open_s + pairs.pair_s and far.apart[far.best] < near.apart[best] / 2 and far.is_clear:
            raise CalibrationRefused(
                f"the meter's clock differs from the run's by about {-displaced:+.3g} s; correct its times, or have "
                "the difference determined (clock: correlation)."
            )
    if near.flat:
        return ClockOffset(0.0, open_s)
    if near.apart[best] > _UNLIKE:
        raise CalibrationRefused(
            "the log does not follow the power of the run; check device, column, time zone and the meter's clock."
        )
    low, high = near.likely()
    return ClockOffset(float(near.offsets[best]), max((high - low) / 2, near.step_s))


def by_correlation(pairs: Pairs, search_s: float) -> ClockOffset:
    """Return the displacement at which meter and readings have the highest correlation.

    Its uncertainty is the range of displacements whose residual is not significantly larger: the profile of the
    likelihood [Venzon, Moolgavkar 1988], with the number of residuals reduced for their correlation.

    Raises:
        CalibrationRefused: there is none, it is at the end of the search, or others fit as well.
    """
    coarse = _Search.over(pairs, search_s, pairs.pair_s / 2)
    if coarse.flat or coarse.apart[coarse.best] > _UNLIKE:
        raise CalibrationRefused(
            f"no difference of the clocks of up to {search_s:g} s makes the log follow the power of the run; check "
            "device and column, or search further (search_s)."
        )
    if not coarse.is_clear:
        raise CalibrationRefused(
            "the difference of the clocks can't be determined: power repeats itself or hardly changes, so that several "
            "differences fit as well; correct the meter's times (clock: timestamps)."
        )
    middle = float(coarse.offsets[coarse.best])
    fine = _Search.over(pairs, pairs.pair_s, pairs.pair_s / 40, middle)
    low, high = fine.likely()
    return ClockOffset(float(fine.offsets[fine.best]), max((high - low) / 2, fine.step_s))


class _Search(NamedTuple):
    """Displacements with the part of the variance that a straight line leaves (1 - r²)."""

    offsets: FloatArray
    apart: FloatArray
    independent: float
    """Number of independent residuals at the best one."""
    flat: bool
    """Whether power hardly changes."""

    @classmethod
    def over(cls, pairs: Pairs, most_s: float, step_s: float, middle_s: float = 0.0) -> _Search:
        steps = max(1, math.ceil(most_s / step_s))
        offsets = middle_s + np.arange(-steps, steps + 1) * (most_s / steps)
        shown = [pairs.readings_w(float(offset)) for offset in offsets]
        counts = np.array([np.isfinite(one).sum() for one in shown])
        least = max(FEWEST_PAIRS, counts.max() / 2)
        apart = np.array(
            [_apart(pairs.meter_w, one) if count >= least else 1.0 for one, count in zip(shown, counts, strict=True)]
        )
        at = shown[int(np.argmin(apart))]
        use = np.isfinite(at)
        meter = pairs.meter_w[use]
        flat = len(meter) < FEWEST_PAIRS or float(np.ptp(np.percentile(meter, [5, 95]))) < hardly_varies_w(meter)
        return cls(offsets.astype(np.float64), apart, _independent(meter, at[use]), flat)

    @property
    def best(self) -> int:
        return int(np.argmin(self.apart))

    @property
    def step_s(self) -> float:
        return float(self.offsets[1] - self.offsets[0])

    def likely(self, above: float = _LIKELY) -> tuple[float, float]:
        """Return the first and last displacement that are not excluded."""
        kept = self.offsets[self._kept(above)]
        return float(kept[0]), float(kept[-1])

    @property
    def is_clear(self) -> bool:
        """Whether those that are not excluded are neighbours, and inside the search."""
        kept = np.flatnonzero(self._kept(_RIVAL))
        return bool(kept[-1] - kept[0] < max(len(kept), 5) and kept[0] > 0 and kept[-1] < len(self.offsets) - 1)

    def _kept(self, above: float) -> BoolArray:
        least = float(self.apart[self.best])
        found: BoolArray = self.apart <= least * (1 + above / self.independent) + 1e-9
        return found


def hardly_varies_w(watts: FloatArray) -> float:
    """Return the range of power below which gain and offset can't be separated."""
    return max(10.0, 0.1 * float(np.median(watts)))


def _apart(meter: FloatArray, shown: FloatArray) -> float:
    use = np.isfinite(shown)
    x, y = meter[use] - meter[use].mean(), shown[use] - shown[use].mean()
    squares = float(x @ x) * float(y @ y)
    product = float(x @ y)
    return 1.0 if squares == 0 or product <= 0 else max(0.0, 1 - product**2 / squares)


def _independent(meter: FloatArray, shown: FloatArray) -> float:
    """Return the number of residuals / the time over which they are correlated (AR(1))."""
    if len(meter) < FEWEST_PAIRS:
        return 1.0
    slope, offset = np.polyfit(meter, shown, 1)
    rest = shown - slope * meter - offset
    squares = float(rest @ rest)
    lag = float(rest[1:] @ rest[:-1]) / squares if squares else 0.0
    return max(4.0, len(rest) * (1 - max(0.0, lag)) / (1 + max(0.0, lag)))
