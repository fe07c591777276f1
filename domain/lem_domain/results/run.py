"""The result of a run: figures with method, bound and reason, findings, and a verdict."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field
from pydantic.types import JsonValue

from lem_domain.ids import AttemptId, RunId, Sha256
from lem_domain.results.energy import (
    NOT_DIVIDED,
    EnergyResult,
)
from lem_domain.results.figures import (
    Distribution,
    EnergyFigure,
    Figure,
    ResultModel,
)
from lem_domain.results.findings import Finding, Verdict


class FootprintResult(ResultModel):
    """Carbon and cost of the job's energy over the window; each is null without its factor."""

    carbon: Figure = Field(description="Energy × PUE × carbon intensity, in gCO2e.")
    carbon_per_output_token: Figure
    carbon_from: str | None = Field(default=None, description="The factors and their sources.")
    cost: Figure = Field(description="Energy × PUE × price, in the currency of the price.")
    cost_per_output_token: Figure
    cost_from: str | None = Field(default=None, description="The factors and their sources.")


class QualityResult(ResultModel):
    """How well the model predicts a reference text, measured after the window."""

    perplexity: Figure = Field(description="exp(mean negative log-likelihood per predicted token).")
    tokens: int = Field(ge=0, description="Predicted tokens.")
    text: str | None = Field(default=None, description="Name of the reference text.")
    text_sha256: Sha256 | None = None


class WindowResult(ResultModel):
    """The measured window: from the first release of a request to the last token, over all processes."""

    begin_ns: int
    end_ns: int
    duration_s: float = Field(gt=0)
    processes: int = Field(ge=1)
    overlap: float = Field(ge=0, le=1, description="Shared part of the processes' windows, as a fraction of the whole.")


class WorkResult(ResultModel):
    """Requests and tokens of the window."""

    requests: int = Field(ge=0)
    failed_requests: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    cached_prompt_tokens: int | None = None
    generated_tokens: int = Field(ge=0)


class OutputsResult(ResultModel):
    """Digest of the generated tokens, so that cycles can be compared without their texts."""

    sha256: Sha256 | None = Field(description="SHA-256 over the ranks' digests; null if a rank reported none.")
    greedy: bool = Field(description="Whether equal inputs must give equal tokens.")
    repeat: bool | None = Field(
        description="Whether every repetition generated the tokens of the first; null if unknown."
    )


class SteadyState(ResultModel):
    """The part of the window in which every engine worked on as many sequences as it could get.

    Its energy per output token compares with published figures of steady states; that of the whole window is the job's.
    """

    begin_ns: int | None = None
    end_ns: int | None = None
    target_sequences: int | None = Field(default=None, description="Sequences that fill all engines.")
    duration_s: Figure
    mean_sequences: Figure = Field(description="Mean number of sequences that the engines worked on, with prefill.")
    generated_tokens: Figure = Field(description="Tokens of finished requests with a time in it.")
    output_rate_tok_s: Figure
    energy: EnergyFigure
    mean_power_w: Figure
    energy_per_output_token_j: Figure = Field(description="Its energy / its generated tokens.")

    @classmethod
    def absent(cls, reason: str) -> SteadyState:
        """A steady state without figures."""
        return cls(
            duration_s=Figure(value=None, unit="s", reason=reason),
            mean_sequences=Figure(value=None, unit="1", reason=reason),
            generated_tokens=Figure(value=None, unit="tok", reason=reason),
            output_rate_tok_s=Figure(value=None, unit="tok/s", reason=reason),
            energy=EnergyFigure(joules=None, reason=reason),
            mean_power_w=Figure(value=None, unit="W", reason=reason),
            energy_per_output_token_j=Figure(value=None, unit="J", reason=reason),
        )

    @classmethod
    def of_m1(cls) -> SteadyState:
        """The steady state of a result by method `m1`, which has none."""
        return cls.absent("method m1 has no steady state; aggregate the run by m2")


class SpeculationResult(ResultModel):
    """Draft tokens of speculative decoding, verified by the measured model, in the window."""

    drafted_tokens: int = Field(ge=0, description="Draft tokens.")
    accepted_tokens: int = Field(ge=0, description="Draft tokens that the model accepted.")


class SpeedResult(ResultModel):
    """Rates over the window, and latency per request."""

    output_rate_tok_s: Figure = Field(description="Generated tokens per second of window.")
    total_rate_tok_s: Figure = Field(description="Prompt and generated tokens per second of window.")
    request_rate_per_s: Figure
    goodput_per_s: Figure = Field(
        description="Finished requests within traffic.slo per second of window.",
    )
    ttft_ms: Distribution = Field(description="First token minus arrival.")
    itl_ms: Distribution = Field(description="Differences of successive token times of one request.")
    tpot_ms: Distribution = Field(description="(Last minus first token) / (generated - 1), per request.")
    e2e_ms: Distribution = Field(description="Last token minus arrival.")
    queue_ms: Distribution = Field(description="Scheduled minus arrival.")


class EfficiencyResult(ResultModel):
    """Energy in relation to work."""

    energy_per_output_token_j: Figure = Field(description="Primary metric: the job's energy / generated tokens.")
    energy_per_request_j: Figure
    output_tokens_per_j: Figure
    energy_delay_product_js: Figure = Field(description="Energy per request × mean E2E latency, in J·s.")
    energy_per_prompt_token_j: Figure = Field(description="Prefill energy / prompt tokens.")
    net_energy_per_output_token_j: Figure = Field(description="Net energy / generated tokens.")
    energy_per_output_token_without_constant_j: Figure = Field(
        default_factory=lambda: Figure(value=None, unit="J", reason=NOT_DIVIDED),
        exclude_if=lambda found: found.reason == NOT_DIVIDED,
        description="The job's energy without a model's constant / generated tokens; absent under `m1`.",
    )


class ComputeResult(ResultModel):
    """Estimated arithmetic: 2 × N_active × processed tokens + 4 × layers × width × context lengths."""

    flops: Figure
    mfu: Figure = Field(
        description="FLOPs / (window × dense peak of the devices for this number format); null above 1."
    )
    peak_flops_per_s: Figure = Field(description="That peak, summed over the leased devices.")
    peak_source: str | None = Field(default=None, description="The data sheet that states the peak.")


class DeviceTelemetry(ResultModel):
    """Readings of one device over the window; each applies until the next."""

    uuid: str
    temperature_start_c: Figure = Field(
        default_factory=lambda: Figure(value=None, unit="°C", reason="results of LEM 0.1 have none; aggregate again"),
        description="The reading that applied when the window opened.",
    )
    temperature_mean_c: Figure
    temperature_max_c: Figure
    sm_clock_mean_mhz: Figure
    memory_clock_mean_mhz: Figure
    gpu_utilisation_mean_percent: Figure
    memory_utilisation_mean_percent: Figure
    memory_peak_mb: Figure = Field(description="Used by all processes on the device, 10^6 bytes.")
    throttled: dict[str, float] | None = Field(
        description="Share of the window by reason, without those at 0; null if the device does not report throttling."
    )
    violated: dict[str, float] | None = Field(
        default=None,
        description="Share of the window in which power, thermal, board or reliability kept clocks low, by counters of "
        "the driver, without those at 0; null if the device has none.",
    )


class ProcessMemory(ResultModel):
    """Peak memory of one rank during its window, without loading, compiling and warm-up."""

    process: str
    device_peak_mb: Figure = Field(description="Of the rank's tensors on its device, 10^6 bytes.")
    rss_peak_mb: Figure = Field(description="Resident memory of the rank's process on the host, 10^6 bytes.")
    kv_cache_peak: Figure = Field(
        description="Highest share of the engine's KV cache in use at once.",
    )


class SamplerTelemetry(ResultModel):
    """The cost of sampling over the whole attempt."""

    interval_ms: Figure
    late_or_missed: Figure = Field(description="Share of ticks that were late or missed.")
    cpu_share: Figure = Field(description="Processor time of the sampler / its run time; 1 is a whole core.")


class TelemetryResult(ResultModel):
    """Measurements other than energy and time."""

    devices: tuple[DeviceTelemetry, ...] = ()
    processes: tuple[ProcessMemory, ...] = ()
    sampler: SamplerTelemetry | None = None


class CheckName(StrEnum):
    """Checks of a run's evidence."""

    PROCESSES_PRESENT = "processes_present"
    CHUNKS_CONTIGUOUS = "chunks_contiguous"
    COMPLETION_MARKERS = "completion_markers"
    DIGESTS_WHOLE = "digests_whole"
    WINDOWS_OVERLAP = "windows_overlap"
    DEVICES_DISTINCT = "devices_distinct"
    ONE_ENGINE_VERSION = "one_engine_version"
    NO_FOREIGN_PROCESS = "no_foreign_process"


class Check(ResultModel):
    """One check of the evidence with its outcome, whether it passed or not."""

    name: CheckName
    passed: bool | None = Field(description="Null if the check was not possible.")
    detail: str = Field(description="The values that were examined; if the check was not possible, the reason.")


class RunResult(ResultModel):
    """The aggregate of one run: a pure function of its evidence, other inputs, parameters and LEM's version."""

    run_id: RunId
    attempt_id: AttemptId
    config_hash: Sha256
    method: str = Field(description="Version of the formulas.")
    evidence_sha256: Sha256 = Field(description="Digest over the digests of all aggregated chunks.")
    parameters: dict[str, JsonValue] = Field(description="The parameters of the aggregation.")
    inputs_sha256: Sha256 = Field(
        description="Digest over the other inputs: configuration, devices, manifest, completion markers, and the "
        "configuration in force."
    )
    computed_by: str = Field(
        description="LEM's version and a digest of the form of its results; the same value gives the same bytes, "
        "another value is stored as another result."
    )
    verdict: Verdict
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...] = Field(description="Every check of the evidence, passed or not.")
    window: WindowResult
    work: WorkResult
    outputs: OutputsResult
    speculation: SpeculationResult | None = Field(default=None, description="Null without speculative decoding.")
    speed: SpeedResult
    energy: EnergyResult
    efficiency: EfficiencyResult
    steady: SteadyState = Field(
        default_factory=SteadyState.of_m1,
        exclude_if=lambda found: found == SteadyState.of_m1(),
        description="Absent under `m1`.",
    )
    compute: ComputeResult
    telemetry: TelemetryResult
    footprint: FootprintResult | None = Field(default=None, description="Null unless carbon or cost is configured.")
    quality: QualityResult | None = Field(default=None, description="Null unless quality is on.")


class CycleSummary(ResultModel):
    """One metric over the cycles of one experiment."""

    metric: str = Field(description="Dotted path into RunResult, for example efficiency.energy_per_output_token_j.")
    unit: str
    values: tuple[float, ...] = Field(description="One per aggregated cycle that has the figure, in cycle order.")
    mean: float | None
    sd: float | None = Field(description="Sample standard deviation; null below two values.")
    cv: float | None = Field(description="sd / mean.")
    reason: str | None = Field(default=None, description="Why there is no value.")


class PublicationCondition(ResultModel):
    """One condition of the publication profile (docs/measurement.md, Across cycles), met by all cycles or not."""

    name: Literal["cycles", "steady_state", "start_temperature", "baselines", "findings"]
    met: bool
    detail: str = Field(description="The values that were compared.")
