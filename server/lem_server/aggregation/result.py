"""Computes the result of one attempt from its facts and chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lem_domain.config.hashing import config_hash
from lem_domain.config.measurement import SloConfig
from lem_domain.evidence.streams import StreamName
from lem_domain.results.figures import Distribution, Figure
from lem_domain.results.findings import verdict_of
from lem_domain.results.method import MethodVersion
from lem_domain.results.run import RunResult, SpeedResult, SteadyState, WindowResult, WorkResult
from lem_server.aggregation.checks.completeness import missing_parts
from lem_server.aggregation.checks.reported import evidence_checks
from lem_server.aggregation.energy.efficiency import efficiency_result
from lem_server.aggregation.energy.footprint import footprint_result
from lem_server.aggregation.energy.steady_state import steady_span, steady_state
from lem_server.aggregation.energy.telemetry import telemetry_result
from lem_server.aggregation.energy.traces import Interval
from lem_server.aggregation.errors import EvidenceMissing
from lem_server.aggregation.evidence_reader import EvidenceReader
from lem_server.aggregation.findings import RULES, RunFacts
from lem_server.aggregation.identity import computed_by, inputs_digest
from lem_server.aggregation.inputs import AggregationInput, ChunkSource
from lem_server.aggregation.latency import distributions as latency
from lem_server.aggregation.latency.inter_token import read_intervals, silent_ranks
from lem_server.aggregation.measured_energy import read_energy
from lem_server.aggregation.work.flops import compute_result
from lem_server.aggregation.work.outputs import outputs_result
from lem_server.aggregation.work.perplexity import quality_result
from lem_server.aggregation.work.requests import RankRequests, read_requests, work_result
from lem_server.aggregation.work.speculation import speculation_result
from lem_server.aggregation.work.warmups import read_warmup
from lem_server.aggregation.work.windows import process_window, union_window


def aggregate(inputs: AggregationInput, chunks: ChunkSource) -> RunResult:
    """Compute the result of one attempt by the method of `inputs` (docs/measurement.md).

    A pure function: the same inputs and bytes give the same result to the last bit, in whatever order the chunks come.
    It holds one stream at a time, and one int64 per token for the inter-token latencies. It verifies every chunk's
    digest, also of streams that no figure needs. Rates and percentiles are never averaged over processes: sums, unions
    and concatenations come first, ratios last.

    Raises:
        EvidenceMissing: evidence is missing (with `allow_partial` this is a finding instead).
        EvidenceCorrupt: a chunk's bytes are not those that were recorded; never allowed.
        EvidenceInvalid: the evidence contradicts itself or holds no window.
    """
    partial = inputs.parameters.allow_partial
    missing = missing_parts(inputs)
    if missing and not partial:
        raise EvidenceMissing(missing)
    reader = EvidenceReader(inputs.held, chunks, allow_partial=partial)

    ranks = [read_requests(reader, process) for process in inputs.ranks]
    window = union_window([found for rank in ranks if (found := process_window(rank)) is not None])
    work = work_result(ranks)
    steady = steady_span(inputs.config, inputs.effective_config, ranks)
    tokens = _tokens(reader, ranks, None if isinstance(steady, str) else steady.span, inputs.method)
    speed = _speed(ranks, work, window, tokens.itl_ms, inputs.config.traffic.slo)
    measured = read_energy(reader, inputs, ranks, window)
    account, record, samples = measured.account, measured.record, measured.samples
    warmups = {process: read_warmup(reader, process, inputs.summaries) for process in inputs.ranks}
    reader.verify_rest()
    facts = RunFacts(
        inputs=inputs,
        missing=(*missing, *reader.missing),
        ranks=ranks,
        window=window,
        work=work,
        outputs=outputs_result(inputs.ranks, inputs.summaries, inputs.config),
        account=account,
        record=record,
        samples=samples,
        telemetry=telemetry_result(inputs.devices, samples, inputs.ranks, inputs.summaries, record, window),
        warmups=warmups,
        miscounted_requests=tokens.miscounted,
        stray_tokens=tokens.stray,
    )
    steady_result = (
        SteadyState.of_m1()
        if inputs.method is MethodVersion.M1
        else steady_state(
            steady, ranks, tokens.in_span, account.meters, account.parts, inputs.config.window.steady_min_s
        )
    )
    return _result(facts, speed, steady_result, reader.evidence_sha256())


def _result(facts: RunFacts, speed: SpeedResult, steady: SteadyState, evidence_sha256: str) -> RunResult:
    inputs, window, work, energy = facts.inputs, facts.window, facts.work, facts.account.result
    findings = tuple(finding for rule in RULES.values() for finding in rule.findings(facts))
    return RunResult(
        run_id=inputs.run_id,
        attempt_id=inputs.attempt_id,
        config_hash=config_hash(inputs.config),
        method=inputs.method,
        evidence_sha256=evidence_sha256,
        parameters=inputs.parameters.model_dump(mode="json"),
        inputs_sha256=inputs_digest(inputs),
        computed_by=computed_by(),
        verdict=verdict_of(findings),
        findings=findings,
        checks=evidence_checks(inputs, facts.missing, window, facts.record),
        window=window,
        work=work,
        outputs=facts.outputs,
        speculation=speculation_result(inputs.ranks, inputs.summaries),
        speed=speed,
        energy=energy,
        efficiency=efficiency_result(energy, work, speed.e2e_ms),
        steady=steady,
        compute=compute_result(facts.ranks, inputs.summaries, inputs.devices, window),
        telemetry=facts.telemetry,
        footprint=footprint_result(inputs.config, energy.total, work, inputs.summaries),
        quality=quality_result(inputs.summaries, requested=inputs.config.quality),
    )


class _Tokens(NamedTuple):
    """What the token times of all ranks give.

    `miscounted` are requests with another number of token times than of tokens, `stray` token times of no request, and
    `in_span` the tokens of the steady state, or why their number is unknown.
    """

    itl_ms: Distribution
    miscounted: int
    stray: int
    in_span: int | str


def _tokens(
    reader: EvidenceReader, ranks: Sequence[RankRequests], span: Interval | None, method: MethodVersion
) -> _Tokens:
    """Read the token times. ITL is null as soon as one rank that generated tokens recorded none."""
    reason = silent_ranks(reader, ranks, method)
    if reason is not None:
        return _Tokens(latency.distribution_ms(np.empty(0, dtype=np.int64), reason), 0, 0, reason)
    values = np.empty(sum(reader.rows(rank.process, StreamName.TOKENS) for rank in ranks), dtype=np.int64)
    used = miscounted = stray = in_span = 0
    for rank in ranks:
        found = read_intervals(reader, rank, span)
        values[used : used + len(found.itl_ns)] = found.itl_ns
        used += len(found.itl_ns)
        miscounted += found.miscounted
        stray += found.stray
        in_span += found.in_span
    distribution = latency.distribution_ms(values[:used], "no finished request has two tokens with times")
    return _Tokens(distribution, miscounted, stray, in_span)


def _speed(
    ranks: Sequence[RankRequests], work: WorkResult, window: WindowResult, itl_ms: Distribution, slo: SloConfig | None
) -> SpeedResult:
    finished = work.requests - work.failed_requests
    return SpeedResult(
        output_rate_tok_s=Figure(value=work.generated_tokens / window.duration_s, unit="tok/s"),
        total_rate_tok_s=Figure(value=(work.prompt_tokens + work.generated_tokens) / window.duration_s, unit="tok/s"),
        request_rate_per_s=Figure(value=finished / window.duration_s, unit="1/s"),
        goodput_per_s=latency.goodput_per_s(ranks, slo, window),
        ttft_ms=latency.since_arrival_ms(
            ranks, lambda rank: rank.first_token_ns, "no request has a time of its first token"
        ),
        itl_ms=itl_ms,
        tpot_ms=latency.tpot_ms(ranks),
        e2e_ms=latency.since_arrival_ms(
            ranks, lambda rank: rank.last_token_ns, "no finished request has a time of its last token"
        ),
        queue_ms=latency.since_arrival_ms(
            ranks, lambda rank: rank.scheduled_ns, "the engine does not report when it began to work on a request"
        ),
    )
