"""Findings about the work: warm-up, the engine's configuration, traffic, outputs and failed requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from pydantic.types import JsonValue

from lem_domain.config.hashing import canonical_json
from lem_domain.results.findings import FindingCode, Severity
from lem_domain.wire.runs import EffectiveConfig
from lem_server.aggregation.checks.reported import LOW_OVERLAP, engine_versions, repeated_devices
from lem_server.aggregation.energy.steady_state import LEAST_FULL, most_sequences, wanted_sequences
from lem_server.aggregation.findings.rule import Occurrence, RunFacts, rule
from lem_server.aggregation.json_values import finite_number
from lem_server.aggregation.work.requests import RankRequests
from lem_server.aggregation.work.warmups import Warmup

MOST_CUT = 0.3
"""The ML.ENERGY benchmark rejects a run in which more outputs are cut."""

LATE_SHARE = 0.05
_LATE_NS = 1_000_000
_LATE_GAP = 0.1
"""A request is late if it was released more than 1 ms and more than a tenth of the mean distance after its arrival."""


@rule(
    FindingCode.WARMUP_NOT_CONVERGED,
    otherwise="note if it was switched off",
    remedy="raise `warmup.max_requests` or keep other work off the machine",
)
def warmup_not_converged(facts: RunFacts) -> Iterator[Occurrence]:
    """Warm-up reached its cap, or its outcome was not recorded."""
    settings = facts.inputs.config.warmup
    if not settings.enabled:
        yield Occurrence(
            "Warm-up was switched off, so the window includes the extra cost of the first requests",
            severity=Severity.NOTE,
            remedy="set `warmup.enabled`",
        )
        return
    cold = {process: warmup for process, warmup in facts.warmups.items() if warmup is None or not warmup.converged}
    if cold:
        listed = ", ".join(f"{process} {_warmup_text(warmup)}" for process, warmup in cold.items())
        numbers = {f"{process}.cv": warmup.cv for process, warmup in cold.items() if warmup and warmup.cv is not None}
        yield Occurrence(
            f"Latency or power was not steady when the window opened ({listed}; the coefficient of variation must be "
            f"below {settings.cv_threshold:g})",
            {**numbers, "cv_threshold": settings.cv_threshold},
        )


@rule(
    FindingCode.NOT_SETTLED,
    remedy="raise `settle.max_s`, cool the devices, or choose a condition that they can meet",
)
def not_settled(facts: RunFacts) -> Iterator[Occurrence]:
    """A condition of `settle` did not hold when the window opened."""
    settling = facts.record.settling
    if settling is not None and not settling.settled:
        yield Occurrence(
            f"The devices had not settled when the window opened: {settling.reason or 'the reason was not recorded'}",
            {"max_s": facts.inputs.config.settle.max_s},
        )


@rule(
    FindingCode.COMPILED_IN_WINDOW,
    remedy="use prompts of fewer lengths, a smaller `batch_size`, or leave `torch_compile.dynamic` out",
)
def compiled_in_window(facts: RunFacts) -> Iterator[Occurrence]:
    """An engine compiled a graph inside the window, for a shape that it had not compiled before."""
    reported = {process: summary.get("compilation") for process, summary in facts.inputs.summaries.items()}
    counts = {
        process: count
        for process, compilation in reported.items()
        if isinstance(compilation, Mapping) and (count := finite_number(compilation.get("compiled_graphs_in_window")))
    }
    if counts:
        listed = ", ".join(f"{process} {count:g}" for process, count in sorted(counts.items()))
        yield Occurrence(
            f"Graphs were compiled inside the window ({listed}), and its figures include their time and energy",
            {f"{process}.graphs": count for process, count in counts.items()},
        )


@rule(
    FindingCode.NOT_AS_REQUESTED,
    Severity.ERROR,
    otherwise="warning if nothing was read back, or if `allow` names every difference",
    remedy="request a value that the engine supports",
)
def not_as_requested(facts: RunFacts) -> Iterator[Occurrence]:
    """A requested value is not in force, ranks ran different versions of the engine, or a device was leased twice."""
    yield from _differences(facts.inputs.effective_config, facts.inputs.config.allow)
    versions = engine_versions(facts.inputs.ranks, facts.inputs.summaries)
    if len(set(versions.values())) > 1:
        listed = "; ".join(f"{rank} ran {engine}" for rank, engine in versions.items())
        yield Occurrence(
            f"The ranks ran different versions of the engine: {listed}",
            {"engines": len(set(versions.values()))},
            remedy="restart the worker and repeat the run, so that all ranks load what is installed now",
        )
    repeated = repeated_devices(facts.inputs)
    if repeated:
        yield Occurrence(
            f"The run's lease lists {', '.join(repeated)} more than once, so it had fewer devices than requested (the "
            "energy of each is counted once)",
            {"devices": len(repeated)},
            remedy="run it again, and report the worker's list of devices",
        )


@rule(
    FindingCode.WINDOW_CUT,
    remedy="raise the limit, or compare with fewer prompts",
)
def window_cut(facts: RunFacts) -> Iterator[Occurrence]:
    """A rank's window ended at `window.max_duration_s` before it held the minimum of requests in whole repetitions."""
    limit_s = facts.inputs.config.window.max_duration_s
    cut = [process for process, summary in facts.inputs.summaries.items() if summary.get("window_cut") is True]
    if cut and limit_s is not None:
        yield Occurrence(
            f"The window of {', '.join(sorted(cut))} ended at window.max_duration_s ({limit_s:g} s) before it held the "
            "minimum of requests in whole repetitions of the prompts, so other runs may have sent other prompts",
            {"max_duration_s": limit_s},
        )


@rule(
    FindingCode.BATCH_NOT_REACHED,
    when=f"a rank never worked on {LEAST_FULL:.0%} of the sequences that the configuration asks for at once",
    remedy="send more prompts, raise `traffic.concurrency`, or give the KV cache more memory",
)
def batch_not_reached(facts: RunFacts) -> Iterator[Occurrence]:
    """A rank worked on fewer sequences at once than requested."""
    wanted = wanted_sequences(facts.inputs.config, facts.inputs.effective_config, len(facts.ranks))
    for rank, target in zip(facts.ranks, wanted, strict=True):
        most = most_sequences(rank)
        if target is not None and most and most < LEAST_FULL * target:
            yield Occurrence(
                f"{rank.process} worked on at most {most} sequences at once where {target} were asked for",
                {"sequences": most, "target": target},
            )


@rule(
    FindingCode.OUTPUTS_CUT,
    when=f"in natural mode more than {MOST_CUT:.0%} of the finished requests ended at `output.max_tokens`",
    remedy="raise `output.max_tokens`",
)
def outputs_cut(facts: RunFacts) -> Iterator[Occurrence]:
    """Many answers were cut at their limit instead of reaching their end."""
    finished = facts.work.requests - facts.work.failed_requests
    cut = sum(rank.cut_outputs for rank in facts.ranks)
    if facts.inputs.config.output.mode == "natural" and finished and cut > MOST_CUT * finished:
        yield Occurrence(
            f"{cut} of {finished} answers were cut at output.max_tokens ({facts.inputs.config.output.max_tokens}), so "
            "their energy is below that of whole answers",
            {"cut": cut, "finished": finished},
        )


@rule(
    FindingCode.LOW_OVERLAP,
    when=f"the processes worked together for less than {LOW_OVERLAP:.0%} of the window",
    remedy="give the processes equal work and a longer window",
)
def low_overlap(facts: RunFacts) -> Iterator[Occurrence]:
    """The processes worked together for only a part of the window."""
    window = facts.window
    if window.overlap < LOW_OVERLAP:
        yield Occurrence(
            f"The {window.processes} processes worked together for only {window.overlap:.0%} of the window, so rates "
            "and energy mix full and partial load",
            {"overlap": window.overlap, "processes": window.processes},
        )


@rule(
    FindingCode.LATE_ARRIVALS,
    when=f"more than {LATE_SHARE:.0%} of the arrivals under open traffic were released more than 1 ms and a tenth of "
    "the mean distance late",
    remedy="lower `traffic.rate_per_s` or keep other work off the machine",
)
def late_arrivals(facts: RunFacts) -> Iterator[Occurrence]:
    """Under open traffic, requests were released later than planned."""
    ranks, traffic = facts.ranks, facts.inputs.config.traffic
    if traffic.mode != "open" or not any(len(rank) for rank in ranks):
        return
    late_ns = np.concatenate([rank.released_ns - rank.arrival_ns for rank in ranks])
    share = float((late_ns > max(_LATE_NS, _LATE_GAP * _mean_distance_ns(ranks, traffic.rate_per_s))).mean())
    if share > LATE_SHARE:
        latest_ms = float(late_ns.max()) / 1e6
        trace = traffic.rate_per_s is None
        yield Occurrence(
            f"{share:.0%} of the requests were released late, the latest by {latest_ms:.3g} ms, so the traffic was not "
            "as requested",
            {"late_share": share, "latest_ms": latest_ms},
            remedy="use a trace of fewer arrivals per second or keep other work off the machine" if trace else None,
        )


@rule(
    FindingCode.OUTPUT_MISMATCH,
    when="greedy decoding generated different tokens in a later repetition, another cycle, or an experiment that must "
    "generate the same",
    remedy="look for batches of changing size or kernels that are not deterministic",
)
def output_mismatch(facts: RunFacts) -> Iterator[Occurrence]:
    """Greedy decoding generated different tokens for the same prompt."""
    if facts.outputs.greedy and facts.outputs.repeat is False:
        yield Occurrence(
            "The same prompts generated different tokens in a later repetition although decoding is greedy, so the "
            "repetitions did not do the same work"
        )


@rule(
    FindingCode.FAILED_REQUESTS,
    otherwise="error if all did",
    remedy="find the cause in the run's log",
)
def failed_requests(facts: RunFacts) -> Iterator[Occurrence]:
    """Requests failed."""
    failed, requests = facts.work.failed_requests, facts.work.requests
    if failed:
        first = next((rank.first_error for rank in facts.ranks if rank.first_error), None)
        yield Occurrence(
            f"{failed} of {requests} requests failed (the first: {first}); their energy is included, their tokens and "
            "latencies are not",
            {"failed_requests": failed, "requests": requests},
            Severity.ERROR if failed == requests else None,
        )


def _differences(effective: EffectiveConfig | None, allowed: Sequence[str]) -> Iterator[Occurrence]:
    if effective is None:
        yield Occurrence(
            "Nothing was read back from the engine, so it is unknown whether the requested configuration was in force",
            severity=Severity.WARNING,
            remedy="check the engine's log",
        )
        return
    different = [parameter for parameter in effective.parameters if not parameter.confirmed]
    if different:
        listed = "; ".join(
            f"{item.name} is {_json(item.effective)} where {_json(item.requested)} was requested" for item in different
        )
        all_allowed = all(item.name in allowed for item in different)
        yield Occurrence(
            f"The engine did not run as requested: {listed}",
            {"parameters": len(different)},
            Severity.WARNING if all_allowed else None,
            "the configuration allows it, so compare with the value in force" if all_allowed else None,
        )


def _mean_distance_ns(ranks: Sequence[RankRequests], rate_per_s: float | None) -> float:
    """Return the mean time between arrivals of all ranks; a trace has no rate, so it is taken from its arrivals."""
    if rate_per_s is not None:
        return 1e9 / rate_per_s
    arrival_ns = np.concatenate([rank.arrival_ns for rank in ranks])
    return float(np.ptp(arrival_ns)) / max(len(arrival_ns) - 1, 1)


def _warmup_text(warmup: Warmup | None) -> str:
    if warmup is None:
        return "recorded no outcome of its warm-up"
    after = f" after {warmup.requests} batches" if warmup.requests is not None else ""
    if warmup.power_slope is not None:
        after += f", power changing by {warmup.power_slope:.1%} over its last trend"
    return f"reached {warmup.cv:.3g}{after}" if warmup.cv is not None else f"had too few latencies{after}"


def _json(value: JsonValue) -> str:
    return canonical_json(value).decode()
