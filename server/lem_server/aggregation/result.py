"""Aggregation itself: from the facts and chunks of one attempt to its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lem_domain.config.hashing import config_hash
from lem_domain.config.measurement import SloConfig
from lem_domain.evidence.streams import StreamName
from lem_domain.results.run import (
    METHOD_VERSION,
    Distribution,
    Figure,
    Finding,
    RunResult,
    SpeedResult,
    TelemetryResult,
    WindowResult,
    WorkResult,
    verdict_of,
)
from lem_server.aggregation.checks.completeness import missing_parts
from lem_server.aggregation.checks.reported import checks_of, repeated_devices, told_engines
from lem_server.aggregation.energy.arithmetic import compute_of
from lem_server.aggregation.energy.device_telemetry import telemetry_of
from lem_server.aggregation.energy.efficiency import efficiency_of
from lem_server.aggregation.energy.footprint import footprint_of
from lem_server.aggregation.energy.power_traces import DeviceSamples, read_devices, read_host_traces
from lem_server.aggregation.energy.prefill_probe import read_probe
from lem_server.aggregation.energy.sampler_record import SamplerRecord, read_sampler
from lem_server.aggregation.energy.sources import read_sources
from lem_server.aggregation.energy.totals import EnergyAccount, energy_account
from lem_server.aggregation.errors import EvidenceMissing
from lem_server.aggregation.evidence_reader import EvidenceReader
from lem_server.aggregation.findings import devices as device_findings
from lem_server.aggregation.findings import energy as energy_findings
from lem_server.aggregation.findings import work as findings
from lem_server.aggregation.findings.trends import latency_trend, power_trend, temperature_change_c
from lem_server.aggregation.identity import computed_by, inputs_digest
from lem_server.aggregation.inputs import AggregationInput, ChunkSource
from lem_server.aggregation.latency import distributions as latency
from lem_server.aggregation.latency.generated_tokens import outputs_of
from lem_server.aggregation.latency.perplexity import quality_of
from lem_server.aggregation.latency.requests import RankRequests, read_requests, work_of
from lem_server.aggregation.latency.speculation import speculation_of
from lem_server.aggregation.latency.tokens import read_intervals
from lem_server.aggregation.latency.warmups import read_warmup
from lem_server.aggregation.latency.windows import process_window, union_window


def aggregate(inputs: AggregationInput, chunks: ChunkSource) -> RunResult:
    """The result of one attempt by method `m1` (docs/measurement.md).

    A pure function: the same inputs and bytes give the same result to the last bit, in whatever order the chunks come.
    One stream is held at a time, beside one int64 per token for the inter-token latencies. Every chunk's digest is
    verified, also of streams that no figure needs. Means of rates over processes and averages of percentiles are never
    taken: sums, unions and concatenations first, ratios last.

    Raises:
        EvidenceMissing: something is not there (with `allow_partial` a finding says so instead).
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
    work = work_of(ranks)
    itl_ms, token_findings = _inter_token(reader, ranks)
    speed = _speed(ranks, work, window, itl_ms, inputs.config.traffic.slo)
    samples = read_devices(reader, inputs.devices)
    record = read_sampler(reader, inputs.summaries)
    account = energy_account(
        inputs.config,
        inputs.devices,
        {uuid: found.trace for uuid, found in samples.items()},
        read_host_traces(reader),
        read_sources(inputs.summaries),
        record,
        ranks,
        window,
        read_probe(inputs.ranks, inputs.summaries) if inputs.config.prefill_probe else None,
    )
    warmups = {process: read_warmup(reader, process, inputs.summaries) for process in inputs.ranks}
    reader.verify_rest()
    telemetry = telemetry_of(inputs.devices, samples, inputs.ranks, inputs.summaries, record, window)
    outputs = outputs_of(inputs.ranks, inputs.summaries, inputs.config)

    noticed = (
        *findings.missing_evidence((*missing, *reader.missing)),
        *token_findings,
        *_about_energy(inputs, window, account, ranks, record),
        *_about_devices(inputs, window, samples, telemetry, record),
        *findings.warmup_not_converged(warmups, inputs.config),
        *findings.compiled_in_window(inputs.summaries),
        *findings.not_as_requested(inputs.effective_config, inputs.config.allow),
        *findings.engines_differ(told_engines(inputs.ranks, inputs.summaries)),
        *findings.device_repeated(repeated_devices(inputs)),
        *findings.window_cut(inputs.summaries, inputs.config),
        *findings.low_overlap(window),
        *findings.late_arrivals(ranks, inputs.config),
        *findings.output_mismatch(outputs),
        *findings.failed_requests(work, next((rank.first_error for rank in ranks if rank.first_error), None)),
    )
    return RunResult(
        run_id=inputs.run_id,
        attempt_id=inputs.attempt_id,
        config_hash=config_hash(inputs.config),
        method=METHOD_VERSION,
        evidence_sha256=reader.evidence_sha256(),
        parameters=inputs.parameters.model_dump(mode="json"),
        inputs_sha256=inputs_digest(inputs),
        computed_by=computed_by(),
        verdict=verdict_of(noticed),
        findings=noticed,
        checks=checks_of(inputs, (*missing, *reader.missing), window),
        window=window,
        work=work,
        outputs=outputs,
        speculation=speculation_of(inputs.ranks, inputs.summaries),
        speed=speed,
        energy=account.result,
        efficiency=efficiency_of(account.result, work, speed.e2e_ms),
        compute=compute_of(ranks, inputs.summaries, inputs.devices, window),
        telemetry=telemetry,
        footprint=footprint_of(inputs.config, account.result.total, work, inputs.summaries),
        quality=quality_of(inputs.summaries, asked=inputs.config.quality),
    )


def _about_energy(
    inputs: AggregationInput,
    window: WindowResult,
    account: EnergyAccount,
    ranks: Sequence[RankRequests],
    record: SamplerRecord,
) -> tuple[Finding, ...]:
    energy, config = account.result, inputs.config
    meters = [account.meters[part] for part in account.parts if part in account.meters]
    return (
        *energy_findings.energy_unavailable(energy, config),
        *energy_findings.energy_modelled(energy),
        *energy_findings.short_window(window, energy, config),
        *energy_findings.few_samples(energy),
        *energy_findings.sampling_gaps(account.gaps, energy),
        *energy_findings.sampler_overload(record, energy),
        *energy_findings.sensor_disagreement(energy),
        *energy_findings.baseline_drift(energy),
        *energy_findings.negative_net_energy(energy),
        *energy_findings.not_stationary(power_trend(meters, window), latency_trend(ranks, window)),
    )


def _about_devices(
    inputs: AggregationInput,
    window: WindowResult,
    samples: Mapping[str, DeviceSamples],
    telemetry: TelemetryResult,
    record: SamplerRecord,
) -> tuple[Finding, ...]:
    changes = {uuid: temperature_change_c(found.held.get("temperature_c"), window) for uuid, found in samples.items()}
    return (
        *device_findings.throttled(telemetry.devices),
        *device_findings.temperature_drift(changes),
        *device_findings.foreign_process(record, inputs.devices, window),
        *device_findings.mig_parent_power(record, [device.uuid for device in inputs.devices]),
        *device_findings.clock_jump(record.clocks, window),
    )


def _inter_token(reader: EvidenceReader, ranks: Sequence[RankRequests]) -> tuple[Distribution, tuple[Finding, ...]]:
    """ITL over all ranks; null as soon as one rank that finished requests recorded no token times."""
    recorded = set(reader.processes_with(StreamName.TOKENS))
    silent = [rank.process for rank in ranks if rank.process not in recorded and bool(rank.finished.any())]
    if silent:
        return latency.distribution_ms(_empty(), f"no token times were recorded by {', '.join(silent)}"), ()
    values = np.empty(sum(reader.rows(rank.process, StreamName.TOKENS) for rank in ranks), dtype=np.int64)
    used = miscounted = strangers = 0
    for rank in ranks:
        found = read_intervals(reader, rank)
        values[used : used + len(found.itl_ns)] = found.itl_ns
        used += len(found.itl_ns)
        miscounted += found.miscounted
        strangers += found.strangers
    distribution = latency.distribution_ms(values[:used], "no finished request has two tokens with times")
    return distribution, findings.token_mismatch(miscounted, strangers)


def _speed(
    ranks: Sequence[RankRequests], work: WorkResult, window: WindowResult, itl_ms: Distribution, slo: SloConfig | None
) -> SpeedResult:
    finished = work.requests - work.failed_requests
    return SpeedResult(
        output_rate_tok_s=Figure(value=work.generated_tokens / window.duration_s, unit="tok/s"),
        total_rate_tok_s=Figure(value=(work.prompt_tokens + work.generated_tokens) / window.duration_s, unit="tok/s"),
        request_rate_per_s=Figure(value=finished / window.duration_s, unit="1/s"),
        goodput_per_s=latency.goodput_per_s(ranks, slo, window),
        ttft_ms=latency.ttft_ms(ranks),
        itl_ms=itl_ms,
        tpot_ms=latency.tpot_ms(ranks),
        e2e_ms=latency.e2e_ms(ranks),
        queue_ms=latency.queue_ms(ranks),
    )


def _empty() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.empty(0, dtype=np.int64)
