"""The steady state: the part of the window in which every engine works on as many sequences as it can get.

The span and its figures follow the ML.ENERGY benchmark (arXiv 2505.06371), so that they compare with published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lem_domain.backends.registry import backend_spec
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.figures import Figure
from lem_domain.results.run import SteadyState
from lem_domain.wire.runs import EffectiveConfig, EffectiveParameter
from lem_server.aggregation.energy.meters import Meter, mean_power, not_sampled, total_energy
from lem_server.aggregation.energy.traces import Span
from lem_server.aggregation.evidence_reader import NULL
from lem_server.aggregation.work.requests import RankRequests

LEAST_FULL = 0.8
"""The ML.ENERGY benchmark rejects a run whose mean batch is below this part of the wanted one."""


class SteadySpan(NamedTuple):
    """The span in which every rank was full; `targets` are the sequences that fill each rank."""

    span: Span
    targets: tuple[int, ...]


def wanted_sequences(config: ExperimentConfig, effective: EffectiveConfig | None, ranks: int) -> tuple[int | None, ...]:
    """Return for each rank how many sequences at once the configuration asks for; None if it does not say.

    That is the smaller of the engine's limit, where the user set it, and the requests in flight under closed traffic.
    """
    limit = _limit(config, effective)
    # A limit that is not in force has its own finding, not_as_requested.
    requested = limit.requested if limit and limit.confirmed and isinstance(limit.requested, int) else None
    if config.traffic.mode != "closed":
        return (requested if config.traffic.mode == "offline" else None,) * ranks
    shares = (_share_of_concurrency(config, number, ranks) for number in range(ranks))
    return tuple(share if requested is None else min(share, requested) for share in shares)


def most_sequences(rank: RankRequests) -> int:
    """Return the most sequences that a rank worked on at the same time, prefill included."""
    worked = rank.last_token_ns != NULL
    begins, ends = np.sort(_begin_ns(rank)[worked]), np.sort(rank.last_token_ns[worked])
    if not len(begins):
        return 0
    # At each begin: the requests that have begun, less those that have ended by then.
    return int((np.arange(1, len(begins) + 1) - np.searchsorted(ends, begins, side="right")).max())


def steady_span(
    config: ExperimentConfig, effective: EffectiveConfig | None, ranks: Sequence[RankRequests]
) -> SteadySpan | str:
    """Return the span in which every rank was full, or why there is none.

    A rank is full with as many sequences as its engine takes at once, or fewer if fewer requests are there: the
    requests in flight under closed traffic, the prompts under offline traffic. A rank with continuous batching is full
    from the moment in which so many requests have their first token, until fewer requests are left. A rank whose
    batches run in lockstep is full from the begin of its first full batch to the last token of its last.
    """
    if config.traffic.mode == "open":
        return "open traffic does not fill an engine; use closed or offline traffic"
    parameter = _limit(config, effective)
    limit = parameter.effective if parameter is not None and isinstance(parameter.effective, int) else None
    if limit is None and config.traffic.mode == "offline":
        return "the engine did not report how many sequences it works on at once"
    targets, spans = [], []
    for number, rank in enumerate(ranks):
        available = (
            _share_of_concurrency(config, number, len(ranks))
            if config.traffic.mode == "closed"
            else len(np.unique(rank.prompt_index))
        )
        target = min(available, limit) if limit is not None else available
        span = _full_span(rank, target)
        if span is None:
            return f"{rank.process} never had {target} sequences at once"
        targets.append(target)
        spans.append(span)
    if not spans:
        return "no rank recorded requests"
    whole = Span(max(span.begin_ns for span in spans), min(span.end_ns for span in spans))
    if whole.end_ns <= whole.begin_ns:
        return "the ranks were never full at the same time"
    return SteadySpan(whole, tuple(targets))


def mean_sequences(ranks: Sequence[RankRequests], span: Span) -> float:
    """Return the mean number of sequences that the engines worked on in the span, prefill included, over all ranks."""
    total_ns = 0
    for rank in ranks:
        worked = rank.last_token_ns != NULL
        begin = np.maximum(_begin_ns(rank)[worked], span.begin_ns)
        end = np.minimum(rank.last_token_ns[worked], span.end_ns)
        total_ns += int(np.maximum(0, end - begin).sum())
    return total_ns / (span.end_ns - span.begin_ns)


def steady_state(
    found: SteadySpan | str,
    ranks: Sequence[RankRequests],
    generated_tokens: int | str,
    meters: Mapping[str, Meter],
    parts: Sequence[str],
    least_s: float,
) -> SteadyState:
    """Return the figures of the span; null with the reason if it is too short or the engines were not full in it.

    `generated_tokens` are the finished requests' tokens with a time in the span, or why they are unknown.
    """
    if isinstance(found, str):
        return SteadyState.absent(found)
    span, target = found.span, sum(found.targets)
    sequences = mean_sequences(ranks, span)
    reason = None
    if span.duration_s < least_s:
        reason = f"it lasted {span.duration_s:.3g} s of at least {least_s:g} s (window.steady_min_s)"
    elif sequences < LEAST_FULL * target:
        reason = f"the engine worked on {sequences:.3g} sequences on average, below {LEAST_FULL:.0%} of {target}"
    duration = Figure(value=span.duration_s, unit="s")
    mean = Figure(value=sequences, unit="1")
    if reason is not None:
        facts = {"begin_ns": span.begin_ns, "end_ns": span.end_ns, "target_sequences": target}
        return SteadyState.absent(reason).model_copy(update={**facts, "duration_s": duration, "mean_sequences": mean})
    energies = {part: meters[part].energy(span) if part in meters else not_sampled() for part in parts}
    energy = total_energy(energies, "nothing measured energy during the steady state")
    unknown, tokens = (generated_tokens, None) if isinstance(generated_tokens, str) else (None, generated_tokens)
    return SteadyState(
        begin_ns=span.begin_ns,
        end_ns=span.end_ns,
        target_sequences=target,
        duration_s=duration,
        mean_sequences=mean,
        generated_tokens=Figure(value=tokens, unit="tok", reason=unknown),
        output_rate_tok_s=Figure.of(None if tokens is None else tokens / span.duration_s, "tok/s", unknown),
        energy=energy,
        mean_power_w=mean_power(energy, span),
        energy_per_output_token_j=Figure.of(None, "J", unknown)
        if tokens is None
        else energy.per(tokens, "J", "no token was generated in it"),
    )


def _limit(config: ExperimentConfig, effective: EffectiveConfig | None) -> EffectiveParameter | None:
    spec = backend_spec(config.backend)
    name = f"{spec.name}.{spec.sequences_key}"
    parameters = effective.parameters if effective is not None else ()
    return next((parameter for parameter in parameters if parameter.name == name), None)


def _share_of_concurrency(config: ExperimentConfig, rank: int, ranks: int) -> int:
    """The first ranks get the remainder, as in `lem_worker.rank.traffic.make_arrivals`."""
    concurrency = config.traffic.concurrency or 0
    return concurrency // ranks + (rank < concurrency % ranks)


def _begin_ns(rank: RankRequests) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.where(rank.scheduled_ns != NULL, rank.scheduled_ns, rank.released_ns)


def _full_span(rank: RankRequests, target: int) -> Span | None:
    worked = (rank.first_token_ns != NULL) & (rank.last_token_ns != NULL)
    if target < 1 or int(worked.sum()) < target:
        return None
    if not bool((rank.batch_id[worked] == NULL).any()):
        _, batch, rows = np.unique(rank.batch_id[worked], return_inverse=True, return_counts=True)
        full = rows[batch] >= target
        if not full.any():
            return None
        return Span(int(_begin_ns(rank)[worked][full].min()), int(rank.last_token_ns[worked][full].max()))
    begin_ns = np.sort(rank.first_token_ns[worked])[target - 1]
    # A request that failed before its first token never took a slot of the engine.
    end_ns = np.sort(rank.last_token_ns[worked])[int(worked.sum()) - target]
    return Span(int(begin_ns), int(end_ns)) if end_ns > begin_ns else None
