"""Energy of each request: the window's energy, divided at every instant over the sequences that the engines work on.

A request is a succession of steps: from the begin of its work to its first token, and from each token to the next;
tokens of one step share a time. The work of a step is spread evenly over its time. At every instant the job's energy is
divided over the requests in proportion to their work per time at that instant; where no request has a step it belongs
to none and is idle. In a batch whose sequences have their tokens at the same times this divides the energy of every
step by the tokens processed in it.

Work is counted in FLOPs (`lem_server.aggregation.work.flops`), so that a step with a prompt of p tokens weighs about as
much as p steps with one token. If a rank did not report its model's shape, every processed token weighs the same, which
leaves out the attention over the context.

The energies of all requests and the idle energy add up to the window's energy. A bound says by how much a request's
energy may be off because the readings are coarse and the sensors inexact; that energy is divided by work is the rule,
which no reading can check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lem_domain.results.figures import BoundParts, EnergyFigure
from lem_server.aggregation.energy.meters import BoundedMeter, EnergyCourse, Meter
from lem_server.aggregation.energy.traces import FloatArray, Interval
from lem_server.aggregation.evidence_reader import NULL, IntArray
from lem_server.aggregation.latency.inter_token import TokenTimes
from lem_server.aggregation.work.flops import ModelShape, flops_between
from lem_server.aggregation.work.requests import RankRequests

EVERY_TOKEN = ModelShape(matmul_parameters=0.5, layers=0.0, attention_width=0.0)
"""A shape by which every processed token is one unit of work."""

_MOST_DENSITY = 2.0**51
"""Work per time is rounded to whole numbers up to this, so that sums and differences of it are exact in a float. Work
that is a millionth as fast as the fastest keeps nine digits."""
_BLOCK = 1 << 20


_Positions = npt.NDArray[np.int32]


class Steps(NamedTuple):
    """Steps of requests, in order of request and time: the request's number, begin and end in ns, and the work."""

    request: IntArray
    begin_ns: IntArray
    end_ns: IntArray
    work: FloatArray


class DividedWindow(NamedTuple):
    """The window's energy by request, in J: energy and bound of each (NaN for a request without a step), and idle.

    `bound_j` is None if the window's energy has no bound. `resolution_s` is the longest time that a part's readings do
    not resolve.
    """

    energy_j: FloatArray
    bound_j: FloatArray | None
    idle_j: float
    resolution_s: float


def request_steps(rank: RankRequests, tokens: TokenTimes, shape: ModelShape, first_number: int = 0) -> Steps:
    """Return the steps of one rank's requests; requests are numbered from `first_number` in the order of the rank.

    Work begins when the engine begins it, or, if that is not recorded, when the request is released. A token without a
    time is in the step that ends with the next one. Steps without length are left out.
    """
    position, index, time_ns = tokens
    ends_step = np.ones(len(position), dtype=bool)
    ends_step[:-1] = (position[1:] != position[:-1]) | (time_ns[1:] != time_ns[:-1])
    position, index, end_ns = position[ends_step], index[ends_step], time_ns[ends_step]
    first = np.ones(len(position), dtype=bool)
    first[1:] = position[1:] != position[:-1]
    begin_ns, before = np.empty_like(end_ns), np.empty_like(index)
    begin_ns[1:], before[1:] = end_ns[:-1], index[:-1]
    began = np.where(rank.scheduled_ns != NULL, rank.scheduled_ns, rank.released_ns)
    begin_ns[first] = began[position[first]]

    prompt = rank.prompt_tokens[position]
    cached = np.where(rank.cached_prompt_tokens == NULL, 0, rank.cached_prompt_tokens)[position]
    # Positions in the sequence that the step has computed before and after, counted from the prompt's first token.
    # The last token of a prompt is computed also if all of it is cached.
    done = np.where(first, np.clip(cached, 0, np.maximum(prompt - 1, 0)), prompt + before)
    after = np.maximum(prompt + index, done + 1)
    work = flops_between(shape, done.astype(np.float64), after.astype(np.float64))
    use = end_ns > begin_ns
    return Steps(position[use] + first_number, begin_ns[use], end_ns[use], work[use])


def joined_steps(parts: Sequence[Steps]) -> Steps:
    """Join the steps of several ranks, whose requests have different numbers."""
    if len(parts) == 1:
        return parts[0]
    return Steps(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def divide_window(
    steps: Steps,
    requests: int,
    meters: Mapping[str, Meter],
    parts: Sequence[str],
    total: EnergyFigure,
    window: Interval,
) -> DividedWindow | str:
    """Divide the energy of the window over its requests, or say why that is not possible.

    `total` is the sum over `parts`; `requests` is the number of all requests.
    """
    if total.joules is None:
        return str(total.reason)

    def course(at_ns: IntArray) -> EnergyCourse | str:
        return _summed_course(meters, parts, window, at_ns)

    return _divide(steps, requests, course, total.bound_parts, window)


def _summed_course(
    meters: Mapping[str, Meter], parts: Sequence[str], window: Interval, at_ns: IntArray
) -> EnergyCourse | str:
    joules, open_j = np.zeros(len(at_ns)), np.zeros(len(at_ns))
    late_j = hidden_j = resolution_s = 0.0
    for part in parts:
        meter = meters[part]
        if not isinstance(meter, BoundedMeter):
            return "method m1 does not divide energy over requests; use m2"
        found = meter.course(window, at_ns)
        if isinstance(found, str):
            return f"{part}: {found}"
        joules += found.joules
        open_j += found.open_j
        late_j, hidden_j = late_j + found.late_j, hidden_j + found.hidden_j
        resolution_s = max(resolution_s, found.resolution_s)
    return EnergyCourse(joules, open_j, late_j, hidden_j, resolution_s)


def _divide(
    steps: Steps,
    requests: int,
    course: Callable[[IntArray], EnergyCourse | str],
    bound: BoundParts | None,
    window: Interval,
) -> DividedWindow | str:
    begin_ns = np.maximum(steps.begin_ns, window.begin_ns)
    end_ns = np.minimum(steps.end_ns, window.end_ns)
    inside = end_ns > begin_ns
    request, begin_ns, end_ns = steps.request[inside], begin_ns[inside], end_ns[inside]
    if not len(request):
        return "no request has token times in the window"
    density = steps.work[inside] / (steps.end_ns - steps.begin_ns)[inside]
    edges = np.union1d(np.unique(begin_ns), np.unique(end_ns))
    edges = np.union1d(edges, np.array([window.begin_ns, window.end_ns], dtype=np.int64))
    found = course(edges)
    if isinstance(found, str):
        return found
    begin = np.searchsorted(edges, begin_ns).astype(np.int32)
    end = np.searchsorted(edges, end_ns).astype(np.int32)
    del begin_ns, end_ns
    density = _whole(density, begin, end, len(edges))

    together = np.cumsum(_sum_at(begin, density, len(edges)) - _sum_at(end, density, len(edges)))[:-1]
    works = together > 0
    share = np.zeros(len(together))  # of the energy of an interval, for a density of 1
    share[works] = 1 / together[works]
    joules, seconds = np.diff(found.joules), np.diff(edges) / 1e9
    idle_j = math.fsum(joules[~works].tolist())
    has_steps = np.bincount(request, minlength=requests) > 0
    energy_j = _shares(request, begin, end, density, joules * share, requests)
    busy_j, divided_j = math.fsum(joules[works].tolist()), math.fsum(energy_j.tolist())
    if divided_j > 0:
        energy_j *= busy_j / divided_j  # what was lost to rounding, in proportion
    bound_j = None
    if bound is not None:
        shared_s = _shares(request, begin, end, density, seconds * share, requests)
        bound_j = _open_j(request, begin, end, density, share, found, requests)
        bound_j += _sensor_j(bound, energy_j, shared_s, found, window)
        bound_j[~has_steps] = np.nan
    energy_j[~has_steps] = np.nan
    return DividedWindow(energy_j, bound_j, idle_j, found.resolution_s)


def _whole(density: FloatArray, begin: _Positions, end: _Positions, edges: int) -> FloatArray:
    """Return densities as whole numbers, in a unit in which their sum at any time is exact."""
    together = np.cumsum(_sum_at(begin, density, edges) - _sum_at(end, density, edges))
    unit = _MOST_DENSITY / max(float(together.max()), float(density.max()))
    whole: FloatArray = np.maximum(np.rint(density * unit), 1.0)
    return whole


def _sum_at(index: _Positions, values: FloatArray, length: int) -> FloatArray:
    return np.bincount(index, weights=values, minlength=length).astype(np.float64, copy=False)


def _shares(
    request: IntArray,
    begin: _Positions,
    end: _Positions,
    density: FloatArray,
    per_density: FloatArray,
    requests: int,
) -> FloatArray:
    """Sum density × what flows per density over the steps of each request."""
    # In long double, because what flows while few work is large in this sum, and small differences of it are needed.
    until = np.concatenate((np.zeros(1, np.longdouble), np.cumsum(per_density, dtype=np.longdouble)))
    total = np.zeros(requests)
    for start in range(0, len(request), _BLOCK):
        block = slice(start, start + _BLOCK)
        each = density[block] * (until[end[block]] - until[begin[block]]).astype(np.float64)
        total += np.bincount(request[block], weights=each, minlength=requests)
    return total


def _open_j(
    request: IntArray,
    begin: _Positions,
    end: _Positions,
    density: FloatArray,
    share: FloatArray,
    course: EnergyCourse,
    requests: int,
) -> FloatArray:
    """Return by how much the energies may be off because the course of the energy is open.

    A request's energy is the sum of its share × the differences of the course. Summed by parts, it is the sum of
    the changes of its share × the course there, so it is off by at most the sum of |change| × what is open there.
    """
    changes = np.abs(np.diff(share)) * course.open_j[1:-1]
    within = np.concatenate((np.zeros(1), np.cumsum(changes)))
    total = np.zeros(requests)
    follows = np.zeros(len(request), dtype=bool)  # on a step of the same request without a pause
    follows[1:] = (request[1:] == request[:-1]) & (begin[1:] == end[:-1])
    for start in range(0, len(request), _BLOCK):
        block = slice(start, start + _BLOCK)
        first, last, weight = begin[block], end[block] - 1, density[block]
        each = weight * (within[last] - within[first])
        number = np.arange(start, start + len(first))
        before = np.where(follows[block], density[number - 1] * share[np.maximum(first - 1, 0)], 0.0)
        each += np.abs(weight * share[first] - before) * course.open_j[first]
        followed = np.append(follows, False)[number + 1]
        each += np.where(followed, 0.0, weight * share[last] * course.open_j[last + 1])
        total += np.bincount(request[block], weights=each, minlength=requests)
    return total


def _sensor_j(
    bound: BoundParts, energy_j: FloatArray, shared_s: FloatArray, course: EnergyCourse, window: Interval
) -> FloatArray:
    """Return the parts of the bounds that are not of the times of steps.

    Energy that was not seen by chance grows with the root of time, so a request has at most the root of its part of
    the time.
    """
    whole_j = float(course.joules[-1])
    by_chance = np.sqrt(shared_s / window.duration_s) * (bound.coverage_j + course.late_j)
    found: FloatArray = (
        (bound.sensor_gain or 0.0) * np.abs(energy_j)
        + (bound.sensor_offset_w or 0.0) * shared_s
        + by_chance
        + course.hidden_j
        + (bound.disagreement_j * energy_j / whole_j if whole_j > 0 else 0.0)
    )
    return found
