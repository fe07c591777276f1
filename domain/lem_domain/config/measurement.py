"""How a run is measured: traffic, warm-up, baselines, the window, sources of energy, and limits."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lem_domain.config.model_base import ConfigModel, Rule, unit
from lem_domain.config.source_names import SourceName
from lem_domain.ids import Sha256


def _no_limit(slo: SloConfig) -> str | None:
    return "slo states no limit; set ttft_ms, tpot_ms or both" if slo.ttft_ms is None and slo.tpot_ms is None else None


class SloConfig(ConfigModel):
    """What a request must keep to count as good; at least one of the two."""

    ttft_ms: float | None = Field(
        default=None, gt=0, description="Longest time to the first token.", json_schema_extra=unit("ms")
    )
    tpot_ms: float | None = Field(
        default=None, gt=0, description="Longest mean time per output token after it.", json_schema_extra=unit("ms")
    )

    rules: ClassVar[tuple[Rule, ...]] = (_no_limit,)


def _what_the_mode_lacks(traffic: TrafficConfig) -> str | None:
    if traffic.mode == "open" and traffic.arrivals == "trace":
        return None
    needed = {"closed": "concurrency", "open": "rate_per_s"}.get(traffic.mode)
    if needed is None or getattr(traffic, needed) is not None:
        return None
    return f"traffic.mode {traffic.mode} needs {needed}; set it"


def _what_has_no_effect(traffic: TrafficConfig) -> str | None:
    idle = [
        f"{name} has no effect under traffic.mode {traffic.mode}; remove it or set mode: {mode}"
        for mode, name in (("closed", "concurrency"), ("open", "rate_per_s"))
        if traffic.mode != mode and getattr(traffic, name) is not None
    ]
    return "; ".join(idle) or None


def _a_trace_in_its_place(traffic: TrafficConfig) -> str | None:
    replayed = traffic.mode == "open" and traffic.arrivals == "trace"
    given = (traffic.trace is not None) + (traffic.trace_file is not None)
    if replayed:
        if given != 1:
            return "traffic.arrivals trace needs one trace; set trace_file"
        return "rate_per_s has no effect beside a trace; remove it" if traffic.rate_per_s is not None else None
    if given:
        return "a trace has no effect without mode: open and arrivals: trace; set both or remove it"
    return "arrivals trace has no effect without mode: open; set it" if traffic.arrivals == "trace" else None


class TrafficConfig(ConfigModel):
    """How requests arrive."""

    mode: Literal["offline", "closed", "open"] = Field(
        default="offline",
        description="`offline`: the engine gets as many requests as it takes at once, and the next when it is done "
        "with them; `closed`: always `concurrency` requests are in flight, a finished one is replaced at once; `open`: "
        "requests arrive at their own times, however busy the engine is.",
    )
    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Requests in flight under `closed`.",
        json_schema_extra=unit("requests"),
    )
    rate_per_s: float | None = Field(
        default=None,
        gt=0,
        le=100_000,
        description="Mean arrivals per second under `open`.",
        json_schema_extra=unit("1/s"),
    )
    arrivals: Literal["poisson", "constant", "trace"] = Field(
        default="poisson",
        description="Distances of arrivals under `open`: exponential, all equal, or as in a recorded trace.",
    )
    trace_file: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="A text file beside the campaign file, one arrival a line in seconds from the beginning of the "
        "window; `lemctl` uploads it and submits its digest instead. It is replayed as a whole, and again from its "
        "beginning while the window lasts.",
    )
    trace: Sha256 | None = Field(default=None, description="Digest of an uploaded trace.")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of `poisson`.")
    slo: SloConfig | None = Field(default=None, description="Limits of latency that make a request a good one.")

    rules: ClassVar[tuple[Rule, ...]] = (
        _what_the_mode_lacks,
        _what_has_no_effect,
        _a_trace_in_its_place,
    )


def _baseline_min_above_max(baseline: BaselineConfig) -> str | None:
    if baseline.min_s <= baseline.max_s:
        return None
    return f"min_s {baseline.min_s:g} is above max_s {baseline.max_s:g}; lower it"


class BaselineConfig(ConfigModel):
    """Power of the leased devices (or the host) without requests: before the engine is there, and with it waiting."""

    enabled: bool = Field(default=True, description="Measure baselines; without them net energy is null.")
    required: bool = Field(
        default=False, description="A run whose baselines can't be measured fails instead of having no net energy."
    )
    min_s: float = Field(
        default=10.0, ge=1, le=3600, description="Each lasts at least so long.", json_schema_extra=unit("s")
    )
    max_s: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="Each ends after so long, stationary (standard error of the mean below 1 %) or not.",
        json_schema_extra=unit("s"),
    )
    ttl_s: float = Field(
        default=3600.0,
        ge=0,
        le=604_800,
        description="An idle baseline of the same devices by the same worker is used again for so long; 0 never.",
        json_schema_extra=unit("s"),
    )

    rules: ClassVar[tuple[Rule, ...]] = (_baseline_min_above_max,)


class SettleConfig(ConfigModel):
    """Waiting between warm-up and window; off unless a condition is set."""

    temperature_c: int | None = Field(
        default=None, ge=20, le=110, description="No leased device is warmer.", json_schema_extra=unit("°C")
    )
    idle_power: bool = Field(
        default=False, description="Power is back within 10 % of the ready baseline (or of its lowest so far)."
    )
    max_s: float = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="The window opens after so long all the same.",
        json_schema_extra=unit("s"),
    )


def _window_min_above_max(window: WindowConfig) -> str | None:
    if window.max_duration_s is None or window.min_duration_s <= window.max_duration_s:
        return None
    return f"min_duration_s {window.min_duration_s:g} is above max_duration_s {window.max_duration_s:g}; lower it"


class WindowConfig(ConfigModel):
    """How long the measured window lasts: whole repetitions of the prompt set until both minima hold."""

    min_duration_s: float = Field(
        default=10.0,
        ge=0,
        le=86_400,
        description="Shortest window; power counters update every 20 to 100 ms.",
        json_schema_extra=unit("s"),
    )
    min_requests: int = Field(default=1, ge=1, description="Fewest requests.", json_schema_extra=unit("requests"))
    max_duration_s: float | None = Field(
        default=None,
        gt=0,
        le=604_800,
        description="No request is begun after so long, whether the minima hold and the prompt set is whole or not; "
        "what is in flight is finished. An engine that batches continuously gets the whole set at once under offline "
        "traffic, and looks at this in between.",
        json_schema_extra=unit("s"),
    )

    rules: ClassVar[tuple[Rule, ...]] = (_window_min_above_max,)


def _warmup_min_above_max(warmup: WarmupConfig) -> str | None:
    if warmup.min_requests <= warmup.max_requests:
        return None
    return f"min_requests {warmup.min_requests} is above max_requests {warmup.max_requests}; lower it"


class WarmupConfig(ConfigModel):
    """Requests sent before the window through the same path, until their latency is steady."""

    enabled: bool = Field(default=True, description="Warm up at all.")
    min_requests: int = Field(
        default=5,
        ge=1,
        le=10_000,
        description="Fewest warm-up requests; a batch is one.",
        json_schema_extra=unit("requests"),
    )
    max_requests: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="The cap, converged or not; a batch is one.",
        json_schema_extra=unit("requests"),
    )
    cv_threshold: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="Converged when the last `window_size` latencies' coefficient of variation is below.",
        json_schema_extra=unit("1"),
    )
    window_size: int = Field(
        default=5,
        ge=2,
        le=100,
        description="How many latencies the criterion looks at.",
        json_schema_extra=unit("requests"),
    )
    power_slope: float | None = Field(
        default=0.02,
        gt=0,
        le=1,
        description="The leased devices' power has settled when a linear fit over its last 5 s changes by less than "
        "this fraction of its mean over them; null does not look at power, nor does it without power samples.",
        json_schema_extra=unit("1"),
    )

    rules: ClassVar[tuple[Rule, ...]] = (_warmup_min_above_max,)


class EnergyConfig(ConfigModel):
    """Where power and energy are read, and how often."""

    sources: tuple[SourceName, ...] | Literal["auto"] = Field(
        default="auto", description="`auto` takes every source that the worker's machine has, or a list of names."
    )
    interval_ms: int = Field(
        default=50,
        ge=5,
        le=5000,
        description="Cadence of the sampler; a slower source is read as often as it can be.",
        json_schema_extra=unit("ms"),
    )
    required: bool = Field(default=False, description="A run whose energy can't be read fails instead of giving null.")


class RecordConfig(ConfigModel):
    """What evidence is kept beside power and requests."""

    tokens: bool = Field(default=True, description="The time of every generated token (needed for ITL percentiles).")
    power: bool = Field(
        default=True, description="Samples of power and energy; without them every figure of energy is null."
    )
    outputs: bool = Field(default=False, description="The generated text, as events.")


class LimitsConfig(ConfigModel):
    """Past any of these the attempt is ended and its processes are killed."""

    load_s: float = Field(default=900, gt=0, description="Loading the model.", json_schema_extra=unit("s"))
    warmup_s: float = Field(default=600, gt=0, description="Warming up.", json_schema_extra=unit("s"))
    run_s: float = Field(default=3600, gt=0, description="The whole attempt.", json_schema_extra=unit("s"))
    silence_s: float = Field(
        default=300, gt=0, description="No sign of progress from a rank.", json_schema_extra=unit("s")
    )
