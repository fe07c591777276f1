"""Cuts the window of one run into shorter ones and computes how their energy per token spreads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lem_domain.results.figures import EnergyFigure, Figure
from lem_domain.results.window_study import StudiedLength, WindowStudy
from lem_server.aggregation.checks.completeness import missing_parts
from lem_server.aggregation.energy.meters import not_sampled, total_energy
from lem_server.aggregation.energy.steady_state import SteadySpan, steady_span
from lem_server.aggregation.energy.totals import EnergyAccount
from lem_server.aggregation.energy.traces import Span
from lem_server.aggregation.errors import EvidenceMissing
from lem_server.aggregation.evidence_reader import EvidenceReader, IntArray
from lem_server.aggregation.inputs import AggregationInput, ChunkSource
from lem_server.aggregation.latency.inter_token import read_token_times, silent_ranks
from lem_server.aggregation.measured_energy import read_energy
from lem_server.aggregation.work.requests import RankRequests, read_requests
from lem_server.aggregation.work.windows import process_window, union_window

MOST_WINDOWS = 200
"""Windows of one length that are looked at, spread evenly: more say little, and each needs a bootstrap."""


def window_study(
    inputs: AggregationInput, chunks: ChunkSource, lengths_s: Sequence[float], target: float
) -> WindowStudy:
    """Compute the study of one attempt. Raises the errors of `lem_server.aggregation.result.aggregate`."""
    missing = missing_parts(inputs)
    if missing and not inputs.parameters.allow_partial:
        raise EvidenceMissing(missing)
    reader = EvidenceReader(inputs.held, chunks, allow_partial=inputs.parameters.allow_partial)
    ranks = [read_requests(reader, process) for process in inputs.ranks]
    window = union_window([found for rank in ranks if (found := process_window(rank)) is not None])
    account = read_energy(reader, inputs, ranks, window).account
    steady = steady_span(inputs.config, inputs.effective_config, ranks)
    tokens = silent_ranks(reader, ranks, inputs.method) or _token_times(reader, ranks)
    reader.verify_rest()
    whole = steady.span if isinstance(steady, SteadySpan) else Span(window.begin_ns, window.end_ns)
    unsteady_s = steady if isinstance(steady, str) else window.duration_s - whole.duration_s
    lengths = tuple(_studied(length, whole, tokens, account, unsteady_s) for length in sorted(set(lengths_s)))
    return WindowStudy(
        run_id=inputs.run_id,
        attempt_id=inputs.attempt_id,
        method=inputs.method,
        within="steady_state" if isinstance(steady, SteadySpan) else "window",
        duration_s=whole.duration_s,
        lengths=lengths,
        target=target,
        shortest_s=_shortest(lengths, target),
    )


def _token_times(reader: EvidenceReader, ranks: Sequence[RankRequests]) -> IntArray:
    """Return the times of all tokens of finished requests, in order."""
    parts = []
    for rank in ranks:
        tokens = read_token_times(reader, rank)
        parts.append(tokens.time_ns[rank.finished[tokens.position]])
    return np.sort(np.concatenate(parts))


def _studied(
    length_s: float, whole: Span, tokens: IntArray | str, account: EnergyAccount, unsteady_s: float | str
) -> StudiedLength:
    number = int(whole.duration_s / length_s * (1 + 1e-9))
    chosen = np.unique(np.linspace(0, max(number - 1, 0), min(number, MOST_WINDOWS)).astype(int)).tolist()
    spans = [
        Span(whole.begin_ns + round(at * length_s * 1e9), whole.begin_ns + round((at + 1) * length_s * 1e9))
        for at in chosen
    ]
    energies = [_energy(span, account) for span in spans]
    unknown = tokens if isinstance(tokens, str) else None
    per_token = []
    if not isinstance(tokens, str):
        for span, energy in zip(spans, energies, strict=True):
            inside = int(
                np.searchsorted(tokens, span.end_ns, "right") - np.searchsorted(tokens, span.begin_ns, "right")
            )
            if energy.joules is None:
                unknown = energy.reason
            elif inside == 0:
                unknown = f"no token was generated in a window of {length_s:g} s"
            else:
                per_token.append(energy.joules / inside)
    if unknown is None and not spans:
        unknown = f"the run has no {length_s:g} s"
    mean = math.fsum(per_token) / len(per_token) if per_token else 0.0
    reason_of_spread = unknown or ("two windows are needed" if len(per_token) < 2 else None)
    return StudiedLength(
        length_s=length_s,
        windows=len(spans),
        energy_per_output_token_j=Figure(value=None if unknown else mean, unit="J", reason=unknown),
        cv=Figure(
            value=None if reason_of_spread else float(np.std(per_token, ddof=1)) / mean,
            unit="1",
            reason=reason_of_spread,
        ),
        bound=_bound(energies, unknown),
        steady_share=(
            Figure(value=None, unit="1", reason=unsteady_s)
            if isinstance(unsteady_s, str)
            else Figure(value=max(0.0, 1 - unsteady_s / length_s), unit="1")
        ),
    )


def _energy(span: Span, account: EnergyAccount) -> EnergyFigure:
    total = account.result.total
    if total.joules is None:
        return total
    parts = {
        part: account.meters[part].energy(span) if part in account.meters else not_sampled() for part in account.parts
    }
    return total_energy(parts, "nothing measured energy")


def _bound(energies: Sequence[EnergyFigure], unknown: str | None) -> Figure:
    if unknown is not None:
        return Figure(value=None, unit="1", reason=unknown)
    shares = []
    for energy in energies:
        if energy.bound_j is None or not energy.joules:
            return Figure(value=None, unit="1", reason=energy.bound_reason or "no bound is stated")
        shares.append((energy.bound_j - (energy.sensor_bound_j or 0.0)) / abs(energy.joules))
    return Figure(value=math.fsum(shares) / len(shares), unit="1")


def _shortest(lengths: Sequence[StudiedLength], target: float) -> Figure:
    """Return the shortest length from which on every studied length is within the target."""
    shortest = None
    for one in reversed([one for one in lengths if one.cv.value is not None]):
        if (one.cv.value or 0.0) > target or (one.bound.value or 0.0) > target:
            break
        shortest = one.length_s
    reason = None if shortest is not None else "no studied length of which the run has two windows is within the target"
    return Figure(value=shortest, unit="s", reason=reason)
