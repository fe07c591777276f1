"""Readings that a device can't have had (method `m2`): dropped from every figure, kept in the evidence, counted.

A counter with a step that it can't have made is continued over it by the power around: everything before and after the
step is still counted, and what the step leaves open is in the bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lem_domain.results.energy import RefusalKind, RefusedReadings
from lem_server.aggregation.energy.traces import FloatArray, Interval, Trace
from lem_server.aggregation.evidence_reader import NULL, BoolArray, IntArray

ABOVE_LIMIT = 1.5
"""Times the enforced limit: short excursions above a limit are real, this is not."""
STALL_PERIODS = 20
"""A counter that does not move for so many of its usual periods while power flows has stopped."""
FROZEN_PERIODS = 50
"""The same power, to the milliwatt, for so many of the reading's usual periods."""
FEW_UPDATES = 5
"""Fewer updates than this don't show what is usual."""
OTHER_UNIT = 10.0
"""A counter and readings that differ by this factor are not in the same unit; no sensor is so far off."""

_LARGEST_COUNT = 2**53
"""9 × 10^12 J in mJ: no counter gets there, but all ones ("not available") do."""
_WRAP = 2**32
"""A counter of 32 bits begins again at this count."""
_MOST_STEPS = 0.05
"""A counter with more impossible steps among its updates is not a counter."""
_USUAL_CHANGES = 20
_CAUGHT_UP = 0.5
_POWERED_W = 1.0


class Refusal(NamedTuple):
    """A stretch of time with readings of one kind that are in no figure; `readings` is their number."""

    kind: RefusalKind
    begin_ns: int
    end_ns: int
    readings: int

    def touches(self, interval: Interval) -> bool:
        """Return whether it shares time with an interval."""
        return self.begin_ns < interval.end_ns and self.end_ns > interval.begin_ns


class OpenStep(NamedTuple):
    """A step of a counter that was replaced by an estimate, which is off by at most `open_counts`."""

    begin_ns: int
    end_ns: int
    open_counts: float


class PlausibleTrace(NamedTuple):
    """A trace without impossible readings, and what was taken out of it.

    `unusable` is why the counter is in no figure at all.
    """

    trace: Trace
    refusals: tuple[Refusal, ...] = ()
    steps: tuple[OpenStep, ...] = ()
    unusable: str | None = None

    def stalled_in(self, interval: Interval) -> bool:
        """Return whether the counter did not move for long in the interval while power flowed."""
        return any(one.kind is RefusalKind.COUNTER_STALLED and one.touches(interval) for one in self.refusals)

    def replaced_counts(self, interval: Interval) -> float:
        """Return what the steps in an interval leave open that were replaced by an estimate."""
        return math.fsum(
            step.open_counts
            for step in self.steps
            if step.begin_ns < interval.end_ns and step.end_ns > interval.begin_ns
        )

    def refused_around(self, interval: Interval) -> tuple[RefusedReadings, ...]:
        """Count the refusals that touch an interval, by kind."""
        found: dict[RefusalKind, list[Refusal]] = {}
        for one in self.refusals:
            if one.touches(interval):
                found.setdefault(one.kind, []).append(one)
        return tuple(
            RefusedReadings(
                kind=kind,
                occurrences=len(ones),
                readings=sum(one.readings for one in ones),
                longest_s=max(one.end_ns - one.begin_ns for one in ones) / 1e9,
            )
            for kind, ones in found.items()
        )


def plausible(trace: Trace, joules_per_count: float, limit_w: float) -> PlausibleTrace:
    """Take out of a powered device's trace what its power limit, its physics and its other readings rule out."""
    power, refusals = _plausible_power(trace, limit_w)
    trace = Trace(trace.times_ns, trace.counts, power)
    counts, steps, found, unusable = _plausible_counts(trace, joules_per_count, limit_w * ABOVE_LIMIT)
    refusals += found
    return PlausibleTrace(
        Trace(trace.times_ns, counts, power),
        tuple(sorted(refusals, key=lambda one: (one.begin_ns, one.kind))),
        tuple(steps),
        unusable,
    )


def _plausible_power(trace: Trace, limit_w: float) -> tuple[IntArray, list[Refusal]]:
    power = trace.power_mw.copy()
    there = power != NULL
    refusals: list[Refusal] = []
    for kind, bad in (
        (RefusalKind.POWER_NOT_POSITIVE, there & (power <= 0)),
        (RefusalKind.POWER_ABOVE_LIMIT, there & (power > ABOVE_LIMIT * limit_w * 1e3)),
        (RefusalKind.POWER_FROZEN, _frozen(trace.times_ns, np.where(power > 0, power, NULL))),
    ):
        refusals += _stretches(kind, trace.times_ns, there, bad)
        power[bad] = NULL
    return power, refusals


def _frozen(times: IntArray, power: IntArray) -> BoolArray:
    """Return the readings after the first of a stretch that is too long for a reading that otherwise changes."""
    bad = np.zeros(len(times), dtype=bool)
    use = np.flatnonzero(power != NULL)
    if len(use) < FROZEN_PERIODS:
        return bad
    begins = np.concatenate(([0], np.flatnonzero(np.diff(power[use]) != 0) + 1))
    lengths = np.diff(times[use][np.append(begins, len(use) - 1)])
    if len(begins) <= _USUAL_CHANGES:
        return bad  # power that never changed is level, or simulated
    for stretch in np.flatnonzero(lengths > FROZEN_PERIODS * np.median(lengths)).tolist():
        end = begins[stretch + 1] if stretch + 1 < len(begins) else len(use)
        bad[use[begins[stretch] + 1 : end]] = True
    return bad


def _plausible_counts(
    trace: Trace, joules_per_count: float, most_w: float
) -> tuple[IntArray, list[OpenStep], list[Refusal], str | None]:
    counts = trace.counts.copy()
    there = counts != NULL
    outside = there & ((counts < 0) | (counts >= _LARGEST_COUNT))
    refusals = _stretches(RefusalKind.COUNTER_OUT_OF_RANGE, trace.times_ns, there, outside)
    counts[outside] = NULL
    use = np.flatnonzero(counts != NULL)
    if len(use) < 2:
        return counts, [], refusals, None
    times = trace.times_ns[use]
    counter = _Counter(times, counts[use], most_w / joules_per_count / 1e9, _mean_counts(trace, joules_per_count))
    unusable = counter.continue_over_steps()
    counts[use] = counter.counts
    if unusable is None:
        unusable = counter.find_stalls() or _other_unit(trace, times, counter.counts, joules_per_count)
    if unusable is not None:
        kind = RefusalKind.COUNTER_STALLED if counter.never_moves else RefusalKind.COUNTER_UNIT
        refusals.append(Refusal(kind, int(times[0]), int(times[-1]), len(use)))
    else:
        refusals += counter.refusals
    return counts, counter.steps, refusals, unusable


class _Counter:
    """The samples of a counter, of which impossible ones are dropped (`NULL`) and impossible steps replaced.

    `most` and `mean_of` are counts per ns: the most that can flow, and what the power readings show between two
    instants (None without readings there).
    """

    def __init__(self, times: IntArray, counts: IntArray, most: float, mean_of: _MeanCounts) -> None:
        self.counts = counts.copy()
        self.refusals: list[Refusal] = []
        self.steps: list[OpenStep] = []
        self._times = times
        self._most = most
        self._mean_of = mean_of
        updates = np.flatnonzero(np.diff(counts) != 0) + 1
        self._updates = len(updates)
        gaps = np.diff(times[updates])
        self._usual_ns = float(np.median(gaps)) if len(updates) > FEW_UPDATES else 0.0
        # The longest time for which a count may be old.
        self._lag_ns = 2 * self._usual_ns or float(gaps.max() if len(gaps) else times[-1] - times[0])
        self._sampling_ns = float(np.median(np.diff(times)))
        rises = np.diff(counts)
        self._usual_rise = float(np.median(rises[rises > 0])) if (rises > 0).any() else 0.0

    @property
    def never_moves(self) -> bool:
        """Whether the counter showed one value only."""
        return self._updates == 0

    def continue_over_steps(self) -> str | None:
        """Drop glitches, add wraps, and replace leaps and resets; return why the counter is unusable."""
        index = self._next_impossible(0)
        wrong = 0
        while index is not None:
            wrong += 1
            if wrong > max(3, _MOST_STEPS * self._updates):
                return "the energy counter rises by more than the power limit allows, again and again"
            if not self._drop_glitch(index):
                self._replace_step(index)
            index = self._next_impossible(index)
        return None

    def find_stalls(self) -> str | None:
        """Record stretches in which the counter does not move while power flows; return why it is unusable."""
        there = self.counts != NULL
        times, counts = self._times[there], self.counts[there]
        moves = np.flatnonzero(np.diff(counts) > 0) + 1
        if not len(moves):
            flows = self._mean_of(int(times[0]), int(times[-1]))
            return "the energy counter never moves while power flows" if flows else None
        if self._usual_ns == 0:
            return None
        mean = (int(counts[-1]) - int(counts[0])) / max(1, int(times[moves[-1]] - times[0]))
        edges = [*zip(moves[:-1].tolist(), moves[1:].tolist(), strict=True), (int(moves[-1]), len(times) - 1)]
        for last, following in edges:
            length = int(times[following] - times[last])
            if length <= STALL_PERIODS * max(self._usual_ns, self._sampling_ns):
                continue
            flowed = self._mean_of(int(times[last]), int(times[following]))
            expected = (mean if flowed is None else flowed) * length
            if expected < FEW_UPDATES * self._usual_rise and flowed is not None:
                continue  # little power: a coarse counter has nothing to show
            if int(counts[following]) - int(counts[last]) < _CAUGHT_UP * expected:
                self.refusals.append(
                    Refusal(RefusalKind.COUNTER_STALLED, int(times[last]), int(times[following]), int(following - last))
                )
        return None

    def _next_impossible(self, begin: int) -> int | None:
        """Return the position of the next sample whose step from the one before it can't be, of those not dropped."""
        at = begin + np.flatnonzero(self.counts[begin:] != NULL)
        steps = np.diff(self.counts[at])
        elapsed = np.diff(self._times[at]) + self._slack_ns(at)
        wrong = np.flatnonzero((steps < 0) | (steps > self._most * elapsed + 1))
        return int(at[wrong[0] + 1]) if len(wrong) else None

    def _slack_ns(self, at: IntArray) -> FloatArray:
        """Return how long before the first of two samples the energy of their step may have begun to flow."""
        times, counts = self._times[at], self.counts[at]
        moved = np.concatenate(([True], np.diff(counts) != 0))
        updated = times[np.maximum.accumulate(np.where(moved, np.arange(len(at)), 0))]
        slack = (times - updated)[:-1].astype(np.float64)
        return slack + self._lag_ns + self._sampling_ns

    def _drop_glitch(self, index: int) -> bool:
        """Drop up to three samples after which the counter continues where it was before them."""
        there = np.flatnonzero(self.counts != NULL)
        at = int(np.searchsorted(there, index))
        before = there[at - 1]
        for later in there[at + 1 : at + 4].tolist():
            step = int(self.counts[later]) - int(self.counts[before])
            elapsed = int(self._times[later] - self._times[before]) + self._lag_ns + self._sampling_ns
            if 0 <= step <= self._most * elapsed + 1:
                dropped = slice(index, later)
                rises = int(self.counts[index]) > int(self.counts[before])
                kind = RefusalKind.COUNTER_LEAP if rises else RefusalKind.COUNTER_RESET
                self.refusals.append(Refusal(kind, int(self._times[before]), int(self._times[later]), later - index))
                self.counts[dropped] = NULL
                return True
        return False

    def _replace_step(self, index: int) -> None:
        """Continue the counter over an impossible step by a wrap, or else by the power around it."""
        there = np.flatnonzero(self.counts != NULL)
        before = int(there[int(np.searchsorted(there, index)) - 1])
        step = int(self.counts[index]) - int(self.counts[before])
        begin_ns, end_ns = int(self._times[before]), int(self._times[index])
        elapsed = end_ns - begin_ns
        if step < 0 and step + _WRAP <= self._most * (elapsed + self._lag_ns + self._sampling_ns):
            self._shift(index, _WRAP)
            return
        flowed = self._mean_of(begin_ns, end_ns)
        rate = self._rate_around(before, index) if flowed is None else flowed
        self._shift(index, round(rate * elapsed) - step)
        kind = RefusalKind.COUNTER_LEAP if step > 0 else RefusalKind.COUNTER_RESET
        self.refusals.append(Refusal(kind, begin_ns, end_ns, 0))
        # What the step hid flowed since the update before it, at a power that may be twice the mean, or none.
        self.steps.append(OpenStep(begin_ns, end_ns, rate * (elapsed + self._lag_ns) + 1))

    def _shift(self, index: int, counts: int) -> None:
        later = self.counts[index:]
        later[later != NULL] += counts

    def _rate_around(self, before: int, index: int) -> float:
        """Return the mean counts per ns over the seconds before and after a step, without the step."""
        second = 1_000_000_000
        rates = []
        for low, high in ((self._times[before] - second, before), (self._times[index] + second, index)):
            other = int(np.clip(np.searchsorted(self._times, low), 0, len(self._times) - 1))
            first, last = sorted((other, high))
            values = self.counts[first : last + 1]
            values = values[values != NULL]
            elapsed = int(self._times[last] - self._times[first])
            if len(values) > 1 and elapsed > 0 and (np.diff(values) >= 0).all():
                rates.append((int(values[-1]) - int(values[0])) / elapsed)
        usual = [rate for rate in rates if rate <= self._most]
        return sum(usual) / len(usual) if usual else self._most / ABOVE_LIMIT


class _MeanCounts(NamedTuple):
    """Counts per ns by the power readings between two instants; None if there are none, or no power flows."""

    times_ns: IntArray
    counts_per_ns: FloatArray
    least: float

    def __call__(self, begin_ns: int, end_ns: int) -> float | None:
        low, high = np.searchsorted(self.times_ns, [begin_ns, end_ns], side="left")
        near = self.counts_per_ns[max(0, int(low) - 1) : int(high) + 1]
        mean = float(near.mean()) if len(near) else 0.0
        return mean if mean > self.least else None


def _mean_counts(trace: Trace, joules_per_count: float) -> _MeanCounts:
    use = trace.power_mw != NULL
    scale = 1e-3 / joules_per_count / 1e9
    return _MeanCounts(trace.times_ns[use], trace.power_mw[use] * scale, _POWERED_W * 1e3 * scale)


def _other_unit(trace: Trace, times: IntArray, counts: IntArray, joules_per_count: float) -> str | None:
    """Return that counter and power readings are not in the same unit."""
    there = counts != NULL
    times, counts = times[there], counts[there]
    if len(times) < 2 or times[-1] == times[0]:
        return None
    use = (trace.power_mw != NULL) & (trace.times_ns >= times[0]) & (trace.times_ns <= times[-1])
    if use.sum() < FEW_UPDATES:
        return None
    read_w = float(trace.power_mw[use].mean()) / 1e3
    counted_w = (int(counts[-1]) - int(counts[0])) * joules_per_count / (int(times[-1] - times[0]) / 1e9)
    if counted_w <= 0 or read_w <= _POWERED_W or 1 / OTHER_UNIT < counted_w / read_w < OTHER_UNIT:
        return None
    return f"the energy counter shows {counted_w:.3g} W on average and the power readings {read_w:.3g} W"


def _stretches(kind: RefusalKind, times: IntArray, there: BoolArray, bad: BoolArray) -> list[Refusal]:
    """Return the stretches of bad readings, each from the reading before it to the one after it."""
    at, wrong = times[there], bad[there]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wrong, [False])).astype(np.int8)))
    return [
        Refusal(kind, int(at[max(0, begin - 1)]), int(at[min(end, len(at) - 1)]), end - begin)
        for begin, end in _pairs(edges.tolist())
    ]


def _pairs(edges: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(edges[::2], edges[1::2], strict=True))
