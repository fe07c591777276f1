"""Prefill and decode inside the window, for batches that run in lockstep in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lem_domain.results.energy import PhaseEnergy, PhaseSplit
from lem_domain.results.figures import EnergyFigure, EnergyMethod, Figure
from lem_server.aggregation.energy.counts_at import counts_at
from lem_server.aggregation.energy.meters import BoundedMeter, Meter, not_sampled, total_energy
from lem_server.aggregation.energy.traces import Interval, Trace
from lem_server.aggregation.evidence_reader import NULL, IntArray
from lem_server.aggregation.work.requests import RankRequests

MOST_UNCERTAIN = 0.5
"""A phase's energy is null if its bound is a larger part of it."""


class Batches(NamedTuple):
    """Successive batches in order of time: begin, first token and last token of each, in ns."""

    begin_ns: IntArray
    first_ns: IntArray
    last_ns: IntArray


def phase_split(
    ranks: Sequence[RankRequests], meters: Mapping[str, Meter], parts: Sequence[str], window: Interval
) -> PhaseSplit:
    """Return time and energy of prefill and decode, summed over batches (docs/measurement.md, Energy).

    The energy is the sum of C(end) - C(begin) over the batches, on the interpolated counters of the job's parts. Its
    bound is the energy that the counters cannot assign to a phase, plus their sensors' accuracy over its time.
    """
    batches = lockstep_batches(ranks)
    if isinstance(batches, str):
        nothing = PhaseEnergy(
            energy=EnergyFigure(joules=None, reason=batches), time_s=Figure(value=None, unit="s", reason=batches)
        )
        return PhaseSplit(batches=0, prefill=nothing, decode=nothing)
    used = {part: meters.get(part) for part in parts}
    return PhaseSplit(
        batches=len(batches.begin_ns),
        prefill=_phase("prefill", batches.begin_ns, batches.first_ns, used, window),
        decode=_phase("decode", batches.first_ns, batches.last_ns, used, window),
    )


def lockstep_batches(ranks: Sequence[RankRequests]) -> Batches | str:
    """Return the batches, or why they cannot be separated.

    A batch begins when the engine begins to work on it, or, if that is not recorded, when its last request is released.
    """
    if len(ranks) != 1:
        return "several processes work at the same time, so the devices' energy can't be divided by phase"
    (rank,) = ranks
    use = (rank.first_token_ns != NULL) & (rank.last_token_ns != NULL) & rank.finished
    if not use.any():
        return "no finished request has token times"
    if bool((rank.batch_id[use] == NULL).any()):
        return "requests join and leave the engine's batch at any time, so prefill and decode overlap"
    _, batch = np.unique(rank.batch_id[use], return_inverse=True)
    begin = np.where(rank.scheduled_ns[use] != NULL, rank.scheduled_ns[use], rank.released_ns[use])
    begins, firsts, lasts = (
        _latest(batch, times) for times in (begin, rank.first_token_ns[use], rank.last_token_ns[use])
    )
    order = np.argsort(begins, kind="stable")
    found = Batches(begins[order], firsts[order], lasts[order])
    if bool((found.first_ns < found.begin_ns).any()) or bool((found.begin_ns[1:] < found.last_ns[:-1]).any()):
        return "batches overlap in time, so the devices' energy can't be divided by phase"
    return found


def _latest(batch: IntArray, times: IntArray) -> IntArray:
    latest = np.full(int(batch.max()) + 1, NULL, dtype=np.int64)
    np.maximum.at(latest, batch, times)
    return latest


def _phase(
    name: str, begin_ns: IntArray, end_ns: IntArray, meters: Mapping[str, Meter | None], window: Interval
) -> PhaseEnergy:
    seconds = int((end_ns - begin_ns).sum()) / 1e9
    time_s = Figure(value=seconds, unit="s")
    if seconds == 0:
        return PhaseEnergy(energy=EnergyFigure(joules=None, reason=f"there is no {name} in the window"), time_s=time_s)
    parts = {
        part: not_sampled() if meter is None else _part_energy(meter, begin_ns, end_ns, window)
        for part, meter in meters.items()
    }
    total = total_energy(parts, "nothing measured energy during the window")
    if total.joules is None or total.bound_j is None or total.bound_j <= MOST_UNCERTAIN * total.joules:
        return PhaseEnergy(energy=total, time_s=time_s)
    periods_s = [meter.trace.counter_period_s(window) or window.duration_s for meter in meters.values() if meter]
    return PhaseEnergy(
        energy=EnergyFigure(
            joules=None,
            source=total.source,
            reason=f"{name} lasts {1e3 * seconds / len(begin_ns):.3g} ms per batch and the energy counter shows a new "
            f"value every {1e3 * max(periods_s):.3g} ms, which leaves {total.joules:.3g} J uncertain by "
            f"{total.bound_j:.3g} J, more than half of it; longer phases or a faster counter are needed",
        ),
        time_s=time_s,
    )


def _part_energy(meter: Meter, begin_ns: IntArray, end_ns: IntArray, window: Interval) -> EnergyFigure:
    if meter.best is not EnergyMethod.COUNTER:
        return EnergyFigure(joules=None, source=meter.source, reason="a model of power cannot separate phases")
    counted = meter.counted(window)
    if counted.joules is None:
        return EnergyFigure(joules=None, source=meter.source, reason=f"phases need a counter, and {counted.reason}")
    energy, bound = _counts_between(meter.trace, begin_ns, end_ns, window)
    if isinstance(meter, BoundedMeter):
        return meter.part_of(window, energy, bound, int((end_ns - begin_ns).sum()) / 1e9)
    sensor_j = None if meter.sensor_w is None else meter.sensor_w * int((end_ns - begin_ns).sum()) / 1e9
    return EnergyFigure(
        joules=energy * meter.joules_per_count,
        method=EnergyMethod.COUNTER,
        source=meter.source,
        bound_j=bound * meter.joules_per_count + (sensor_j or 0.0),
        sensor_bound_j=sensor_j,
    )


def _counts_between(trace: Trace, begin_ns: IntArray, end_ns: IntArray, window: Interval) -> tuple[float, float]:
    """Return the sum of C(end) - C(begin), and the bound of its error.

    Energy outside of the ranges of the true counts is assigned correctly, so the error is at most what the ranges cover
    together, and at most the sum of their larger halves.
    """
    values, low, high = counts_at(trace, np.concatenate((begin_ns, end_ns)), window)
    batches = len(begin_ns)
    energy = float(values[batches:].sum() - values[:batches].sum())
    halves = float(np.maximum(high - values, values - low).sum())
    return energy, min(halves, _covered(low, high))


def _covered(low: IntArray, high: IntArray) -> float:
    """Return how much the ranges cover together; overlaps count once."""
    order = np.argsort(low, kind="stable")
    low, high = low[order], high[order]
    reached = np.concatenate((low[:1], np.maximum.accumulate(high)[:-1]))
    return float(np.maximum(0, high - np.maximum(low, reached)).sum())
