"""Findings about evidence and work: each with its numbers, its severity and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import canonical_json
from lem_domain.results.run import (
    Finding,
    FindingCode,
    OutputsResult,
    Severity,
    WindowResult,
    WorkResult,
)
from lem_domain.wire.runs import EffectiveConfig
from lem_server.aggregation.energy.sampler_record import number_of
from lem_server.aggregation.errors import MissingPart
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.latency.requests import RankRequests
from lem_server.aggregation.latency.warmups import Warmup

LOW_OVERLAP = 0.5

LATE_SHARE = 0.05
"""So many requests may be late before the arrivals are not the ones asked for."""
_LATE_NS = 1_000_000
_LATE_GAP = 0.1
"""A request is late that was handed over more than 1 ms and more than a tenth of the mean distance too late."""


def missing_evidence(parts: Sequence[MissingPart]) -> tuple[Finding, ...]:
    """Evidence that is not there (only under allow_partial; strict aggregation refuses)."""
    if not parts:
        return ()
    return (
        Finding(
            code=FindingCode.MISSING_EVIDENCE,
            severity=Severity.ERROR,
            message=f"Computed without {'; '.join(map(str, parts))}; don't compare with it, run the experiment again.",
            numbers={"parts": len(parts), "chunks": sum(len(part.seqs) for part in parts)},
        ),
    )


def token_mismatch(miscounted: int, strangers: int) -> tuple[Finding, ...]:
    """Token times that don't fit the requests: some of them were lost or belong to nobody."""
    if not miscounted and not strangers:
        return ()
    return (
        Finding(
            code=FindingCode.MISSING_EVIDENCE,
            severity=Severity.WARNING,
            message=f"{miscounted} requests have another number of token times than of generated tokens, and "
            f"{strangers} token times belong to no request; distrust the inter-token latencies and report the backend.",
            numbers={"miscounted_requests": miscounted, "stray_tokens": strangers},
        ),
    )


def warmup_not_converged(warmups: Mapping[str, Warmup | None], config: ExperimentConfig) -> tuple[Finding, ...]:
    """Warm-up was off, hit its cap, or left no word of how it ended."""
    if not config.warmup.enabled:
        message = (
            "Warm-up was switched off, so the window holds what the first requests cost extra; set warmup.enabled."
        )
        return (Finding(code=FindingCode.WARMUP_NOT_CONVERGED, severity=Severity.INFO, message=message),)
    cold = {process: warmup for process, warmup in warmups.items() if warmup is None or not warmup.converged}
    if not cold:
        return ()
    listed = ", ".join(f"{process} {_warmup_text(warmup)}" for process, warmup in cold.items())
    numbers = {f"{process}.cv": warmup.cv for process, warmup in cold.items() if warmup and warmup.cv is not None}
    return (
        Finding(
            code=FindingCode.WARMUP_NOT_CONVERGED,
            severity=Severity.WARNING,
            message=f"Latency or power was not steady when the window opened ({listed}; wanted is a coefficient of "
            f"variation below {config.warmup.cv_threshold:g}); raise warmup.max_requests or keep other work off the "
            "machine.",
            numbers={**numbers, "cv_threshold": config.warmup.cv_threshold},
        ),
    )


def compiled_in_window(summaries: Summaries) -> tuple[Finding, ...]:
    """The engine met shapes in the window that it had not compiled for before."""
    told = {process: summary.get("compilation") for process, summary in summaries.items()}
    counts = {
        process: count
        for process, compilation in told.items()
        if isinstance(compilation, Mapping) and (count := number_of(compilation.get("compiled_graphs_in_window")))
    }
    if not counts:
        return ()
    listed = ", ".join(f"{process} {count:g}" for process, count in sorted(counts.items()))
    return (
        Finding(
            code=FindingCode.COMPILED_IN_WINDOW,
            severity=Severity.WARNING,
            message=f"Graphs were compiled inside the window ({listed}), and their time and energy are in its figures; "
            "use prompts of fewer lengths, a smaller batch_size, or leave torch_compile.dynamic out.",
            numbers={f"{process}.graphs": count for process, count in counts.items()},
        ),
    )


def not_as_requested(effective: EffectiveConfig | None, allowed: Sequence[str] = ()) -> tuple[Finding, ...]:
    """The engine says that a requested value is not in force, or nothing was read back from it.

    A warning where the user allowed every difference.
    """
    if effective is None:
        message = (
            "Nothing was read back from the engine, so nobody knows whether the requested configuration took effect."
        )
        return (Finding(code=FindingCode.NOT_AS_REQUESTED, severity=Severity.WARNING, message=message),)
    different = [parameter for parameter in effective.parameters if not parameter.confirmed]
    if not different:
        return ()
    listed = "; ".join(
        f"{item.name} is {_text(item.effective)} where {_text(item.requested)} was requested" for item in different
    )
    if all(item.name in allowed for item in different):
        severity, remedy = Severity.WARNING, "the configuration allows it, so compare with the value in force"
    else:
        severity, remedy = Severity.ERROR, "request a value that it supports"
    return (
        Finding(
            code=FindingCode.NOT_AS_REQUESTED,
            severity=severity,
            message=f"The engine did not run as requested: {listed}; {remedy}.",
            numbers={"parameters": len(different)},
        ),
    )


def engines_differ(told: Mapping[str, str]) -> tuple[Finding, ...]:
    """Ranks of one run ran different versions of the engine, so the result is of none of them."""
    engines = sorted(set(told.values()))
    if len(engines) < 2:
        return ()
    listed = "; ".join(f"{rank} ran {engine}" for rank, engine in told.items())
    return (
        Finding(
            code=FindingCode.NOT_AS_REQUESTED,
            severity=Severity.ERROR,
            message=f"The ranks did not run one version of the engine: {listed}; start the worker again and repeat the "
            "run, so that all of them load what is installed now.",
            numbers={"engines": len(engines)},
        ),
    )


def device_repeated(repeated: Sequence[str]) -> tuple[Finding, ...]:
    """A device was leased more than once, so there were fewer than the ranks were given."""
    if not repeated:
        return ()
    return (
        Finding(
            code=FindingCode.NOT_AS_REQUESTED,
            severity=Severity.ERROR,
            message=f"The run's lease holds {', '.join(repeated)} more than once, so it had fewer devices than asked "
            "for (its energy is counted once); run it again, and report the worker's list of devices.",
            numbers={"devices": len(repeated)},
        ),
    )


def window_cut(summaries: Summaries, config: ExperimentConfig) -> tuple[Finding, ...]:
    """A rank's window ended at `window.max_duration_s` before it held what it should."""
    cut = [process for process, summary in summaries.items() if summary.get("window_cut") is True]
    if not cut or config.window.max_duration_s is None:
        return ()
    return (
        Finding(
            code=FindingCode.WINDOW_CUT,
            severity=Severity.WARNING,
            message=f"The window of {', '.join(sorted(cut))} ended at window.max_duration_s before it held the fewest "
            "requests in whole repetitions of the prompt set, so other runs may have sent other prompts; raise the "
            "limit, or use fewer prompts to compare.",
            numbers={"max_duration_s": config.window.max_duration_s},
        ),
    )


def low_overlap(window: WindowResult) -> tuple[Finding, ...]:
    """The processes were at work together for less than half of the window."""
    if window.overlap >= LOW_OVERLAP:
        return ()
    return (
        Finding(
            code=FindingCode.LOW_OVERLAP,
            severity=Severity.WARNING,
            message=f"The {window.processes} processes were at work together for only {window.overlap:.0%} of the "
            "window, so rates and energy mix full and partial load; give them equal work and a longer window.",
            numbers={"overlap": window.overlap, "processes": window.processes},
        ),
    )


def failed_requests(work: WorkResult, first_error: str | None) -> tuple[Finding, ...]:
    """Requests ended in an error: their energy is in the total, their tokens and latencies are not."""
    if not work.failed_requests:
        return ()
    return (
        Finding(
            code=FindingCode.FAILED_REQUESTS,
            severity=Severity.ERROR if work.failed_requests == work.requests else Severity.WARNING,
            message=f"{work.failed_requests} of {work.requests} requests failed (the first: {first_error}); their "
            "energy is counted, their tokens and latencies are not; find the cause in the run's log.",
            numbers={"failed_requests": work.failed_requests, "requests": work.requests},
        ),
    )


def output_mismatch(outputs: OutputsResult) -> tuple[Finding, ...]:
    """Greedy decoding gave other tokens for the same prompt later in the run."""
    if not outputs.greedy or outputs.repeat is not False:
        return ()
    return (
        Finding(
            code=FindingCode.OUTPUT_MISMATCH,
            severity=Severity.WARNING,
            message="The same prompts gave other tokens in a later repetition although decoding is greedy, so the work "
            "was not the same each time; look for batches of changing size or kernels that are not deterministic.",
        ),
    )


def late_arrivals(ranks: Sequence[RankRequests], config: ExperimentConfig) -> tuple[Finding, ...]:
    """Under open traffic, requests were handed over later than their planned arrival."""
    if config.traffic.mode != "open" or not any(len(rank) for rank in ranks):
        return ()
    late_ns = np.concatenate([rank.released_ns - rank.arrival_ns for rank in ranks])
    rate_per_s = config.traffic.rate_per_s
    share = float((late_ns > max(_LATE_NS, _LATE_GAP * _mean_distance_ns(ranks, rate_per_s))).mean())
    if share <= LATE_SHARE:
        return ()
    slower = "use a trace of fewer arrivals a second" if rate_per_s is None else "lower traffic.rate_per_s"
    return (
        Finding(
            code=FindingCode.LATE_ARRIVALS,
            severity=Severity.WARNING,
            message=f"{share:.0%} of the requests were handed over late, at worst by {late_ns.max() / 1e6:.3g} ms, so "
            f"the traffic was not the one asked for; {slower} or keep other work off the machine.",
            numbers={"late_share": share, "latest_ms": float(late_ns.max()) / 1e6},
        ),
    )


def _mean_distance_ns(ranks: Sequence[RankRequests], rate_per_s: float | None) -> float:
    """Between successive arrivals, of all ranks together; a trace has no rate, so that of its arrivals stands."""
    if rate_per_s is not None:
        return 1e9 / rate_per_s
    arrival_ns = np.concatenate([rank.arrival_ns for rank in ranks])
    return float(np.ptp(arrival_ns)) / max(len(arrival_ns) - 1, 1)


def _warmup_text(warmup: Warmup | None) -> str:
    if warmup is None:
        return "recorded nothing of its warm-up"
    after = f" after {warmup.requests} requests" if warmup.requests is not None else ""
    if warmup.power_slope is not None:
        after += f", power changing by {warmup.power_slope:.1%} over its last 5 s"
    return f"reached {warmup.cv:.3g}{after}" if warmup.cv is not None else f"had too few latencies to tell{after}"


def _text(value: JsonValue) -> str:
    return canonical_json(value).decode()
