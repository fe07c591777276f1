"""What aggregation says about a run: figures with method, bound and reason, findings, and a verdict."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.types import JsonValue

from lem_domain.ids import AttemptId, RunId, Sha256

METHOD_VERSION = "m1"
"""Version of the formulas in docs/measurement.md; a change to any of them is a new version."""


class ResultModel(BaseModel):
    """Frozen and strict."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EnergyMethod(StrEnum):
    """How an energy figure came about; never mixed without saying so."""

    COUNTER = "counter"
    INTEGRATED = "integrated"
    MODELLED = "modelled"


class Figure(ResultModel):
    """One number with its unit, or null with a reason; never 0 for something that was not measured."""

    value: float | None
    unit: str
    reason: str | None = Field(default=None, description="Why the value is null.")

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        if (self.value is None) == (self.reason is None):
            raise ValueError("a figure has either a value or a reason why it has none")
        return self


class EnergyFigure(ResultModel):
    """An energy over the measured window, or null with a reason."""

    joules: float | None
    method: EnergyMethod | None = None
    source: str | None = Field(default=None, description="The source that gave the samples, for example codecarbon.")
    bound_j: float | None = Field(
        default=None,
        ge=0,
        description="The truth lies within joules ± bound_j as far as sampling goes; null where the "
        "method has no stated bound (a modelled figure has none).",
    )
    reason: str | None = Field(default=None, description="Why the value is null.")

    @model_validator(mode="after")
    def _null_has_a_reason(self) -> Self:
        if (self.joules is None) == (self.reason is None):
            raise ValueError("an energy has either a value or a reason why it has none")
        if self.joules is not None and self.method is None:
            raise ValueError("an energy names its method")
        return self


class DeviceEnergy(ResultModel):
    """The energy of one leased device."""

    uuid: str
    energy: EnergyFigure
    mean_power_w: Figure
    peak_power_w: Figure
    samples: int = Field(ge=0, description="Power samples inside the window.")


class HostEnergy(ResultModel):
    """The energy of one part of the host (package, dram)."""

    domain: str
    energy: EnergyFigure
    mean_power_w: Figure
    samples: int = Field(ge=0, description="Samples inside the window.")


class EnergyResult(ResultModel):
    """Energy over the measured window, per part and in all; figures of different parts stay apart."""

    devices: tuple[DeviceEnergy, ...]
    host: tuple[HostEnergy, ...]
    total: EnergyFigure = Field(description="The job's energy: the sum over what `includes` lists.")
    includes: tuple[str, ...] = Field(
        description="What is in `total`: device UUIDs where accelerators were leased, else the host's domains."
    )
    mean_power_w: Figure


class Distribution(ResultModel):
    """A distribution over the concatenated values of all processes; percentiles interpolate linearly."""

    unit: str
    count: int = Field(ge=0)
    mean: float | None
    sd: float | None = Field(description="Sample standard deviation (n - 1); null below two values.")
    min: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None
    reason: str | None = Field(default=None, description="Why there are no values.")


class WindowResult(ResultModel):
    """The measured window: from the release of the first request to the last token of the last, over all processes."""

    begin_ns: int
    end_ns: int
    duration_s: float = Field(gt=0)
    processes: int = Field(ge=1)
    overlap: float = Field(ge=0, le=1, description="Shared part of the processes' windows, as a fraction of the whole.")


class WorkResult(ResultModel):
    """How much was done in the window."""

    requests: int = Field(ge=0)
    failed_requests: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    cached_prompt_tokens: int | None = None
    generated_tokens: int = Field(ge=0)


class SpeedResult(ResultModel):
    """Rates over the window, and latency per request."""

    output_rate_tok_s: Figure = Field(description="Generated tokens per second of window.")
    total_rate_tok_s: Figure = Field(description="Prompt and generated tokens per second of window.")
    request_rate_per_s: Figure
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


class Severity(StrEnum):
    """What a finding does to the verdict."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class FindingCode(StrEnum):
    """What aggregation or the worker noticed."""

    ENERGY_UNAVAILABLE = "energy_unavailable"
    ENERGY_MODELLED = "energy_modelled"
    SHORT_WINDOW = "short_window"
    FEW_SAMPLES = "few_samples"
    SAMPLING_GAPS = "sampling_gaps"
    WARMUP_NOT_CONVERGED = "warmup_not_converged"
    NOT_AS_REQUESTED = "not_as_requested"
    MISSING_EVIDENCE = "missing_evidence"
    LOW_OVERLAP = "low_overlap"
    FAILED_REQUESTS = "failed_requests"


class Finding(ResultModel):
    """Something a reader of the result must know."""

    code: FindingCode
    severity: Severity
    message: str = Field(description="What was found, with its numbers, and what to do.")
    numbers: dict[str, float] = Field(default_factory=dict)


Verdict = Literal["valid", "questionable", "invalid"]


def verdict_of(findings: tuple[Finding, ...]) -> Verdict:
    """Invalid with any error, questionable with any warning, else valid."""
    severities = {finding.severity for finding in findings}
    if Severity.ERROR in severities:
        return "invalid"
    return "questionable" if Severity.WARNING in severities else "valid"


class RunResult(ResultModel):
    """The aggregate of one run: a pure function of its chunk digests, the method version and the parameters."""

    run_id: RunId
    attempt_id: AttemptId
    config_hash: Sha256
    method: str = Field(description="Version of the formulas.")
    evidence_sha256: Sha256 = Field(description="Digest over the digests of all chunks that went in.")
    parameters: dict[str, JsonValue] = Field(description="What the user asked of the aggregation.")
    verdict: Verdict
    findings: tuple[Finding, ...]
    window: WindowResult
    work: WorkResult
    speed: SpeedResult
    energy: EnergyResult
    efficiency: EfficiencyResult


class CycleSummary(ResultModel):
    """One metric over the cycles of one experiment."""

    metric: str = Field(description="Dotted path into RunResult, for example efficiency.energy_per_output_token_j.")
    unit: str
    values: tuple[float, ...] = Field(description="One per aggregated cycle that has the figure, in order of cycles.")
    mean: float | None
    sd: float | None = Field(description="Sample standard deviation; null below two values.")
    cv: float | None = Field(description="sd / mean.")
    reason: str | None = Field(default=None, description="Why there is no value.")
