"""How a run is measured: traffic, warm-up, baselines, the window, sources of energy, and limits."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lem_domain.config.model_base import ConfigModel, unit


class SloConfig(ConfigModel):
    """What a request must keep to count as good; at least one of the two."""

    ttft_ms: float | None = Field(
        default=None, gt=0, description="Longest time to the first token.", json_schema_extra=unit("ms")
    )
    tpot_ms: float | None = Field(
        default=None, gt=0, description="Longest mean time per output token after it.", json_schema_extra=unit("ms")
    )

    @model_validator(mode="after")
    def _at_least_one(self) -> Self:
        if self.ttft_ms is None and self.tpot_ms is None:
            raise ValueError("slo states no limit; set ttft_ms, tpot_ms or both")
        return self


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
    arrivals: Literal["poisson", "constant"] = Field(
        default="poisson", description="Distances of arrivals under `open`: exponential, or all equal."
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of `poisson`.")
    slo: SloConfig | None = Field(default=None, description="Limits of latency that make a request a good one.")

    @model_validator(mode="after")
    def _what_the_mode_needs(self) -> Self:
        needed = {"closed": "concurrency", "open": "rate_per_s"}.get(self.mode)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"traffic.mode {self.mode} needs {needed}; set it")
        for mode, name in (("closed", "concurrency"), ("open", "rate_per_s")):
            if self.mode != mode and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect under traffic.mode {self.mode}; remove it or set mode: {mode}")
        return self


class BaselineConfig(ConfigModel):
    """Power of the leased devices (or the host) without requests: before the engine is there, and with it waiting."""

    enabled: bool = Field(default=True, description="Measure baselines; without them net energy is null.")
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

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s {self.min_s:g} is above max_s {self.max_s:g}; lower it")
        return self


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


class WarmupConfig(ConfigModel):
    """Requests sent before the window through the same path, until their latency is steady."""

    enabled: bool = Field(default=True, description="Warm up at all.")
    min_requests: int = Field(
        default=5, ge=1, le=10_000, description="Fewest warm-up requests (batches).", json_schema_extra=unit("requests")
    )
    max_requests: int = Field(
        default=50, ge=1, le=10_000, description="The cap, converged or not.", json_schema_extra=unit("requests")
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

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_requests > self.max_requests:
            raise ValueError(f"min_requests {self.min_requests} is above max_requests {self.max_requests}; lower it")
        return self


class EnergyConfig(ConfigModel):
    """Where power and energy are read, and how often."""

    sources: tuple[Literal["nvml", "rapl", "codecarbon", "simulated"], ...] | Literal["auto"] = Field(
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
    outputs: bool = Field(default=False, description="The generated text, as events.")


class LimitsConfig(ConfigModel):
    """Past any of these the attempt is ended and its processes are killed."""

    load_s: float = Field(default=900, gt=0, description="Loading the model.", json_schema_extra=unit("s"))
    warmup_s: float = Field(default=600, gt=0, description="Warming up.", json_schema_extra=unit("s"))
    run_s: float = Field(default=3600, gt=0, description="The whole attempt.", json_schema_extra=unit("s"))
    silence_s: float = Field(
        default=300, gt=0, description="No sign of progress from a rank.", json_schema_extra=unit("s")
    )
