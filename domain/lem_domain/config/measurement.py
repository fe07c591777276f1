"""Configuration of a run's measurement: traffic, warm-up, baselines, window, energy sources, evidence and limits."""

from __future__ import annotations

from typing import ClassVar, Literal

from lem_domain.config.calibration import DeviceCalibration, named_twice
from lem_domain.config.model_base import ConfigModel, Rule, key, not_above
from lem_domain.config.source_names import SourceName
from lem_domain.ids import Sha256


def _slo_without_limit(slo: SloConfig) -> str | None:
    return "slo has no limit; set ttft_ms, tpot_ms or both" if slo.ttft_ms is None and slo.tpot_ms is None else None


class SloConfig(ConfigModel):
    """Latency limits of a good request; at least one of the two."""

    ttft_ms: float | None = key(None, "Longest time to first token.", gt=0, unit="ms")
    tpot_ms: float | None = key(None, "Longest mean time per output token after it.", gt=0, unit="ms")

    rules: ClassVar[tuple[Rule, ...]] = (_slo_without_limit,)


def _missing_load(traffic: TrafficConfig) -> str | None:
    if traffic.mode == "open" and traffic.arrivals == "trace":
        return None
    needed = {"closed": "concurrency", "open": "rate_per_s"}.get(traffic.mode)
    if needed is None or getattr(traffic, needed) is not None:
        return None
    return f"traffic.mode {traffic.mode} needs {needed}; set it"


def _unused_load(traffic: TrafficConfig) -> str | None:
    idle = [
        f"{name} has no effect under traffic.mode {traffic.mode}; remove it or set mode: {mode}"
        for mode, name in (("closed", "concurrency"), ("open", "rate_per_s"))
        if traffic.mode != mode and getattr(traffic, name) is not None
    ]
    return "; ".join(idle) or None


def _trace_and_arrivals_disagree(traffic: TrafficConfig) -> str | None:
    replayed = traffic.mode == "open" and traffic.arrivals == "trace"
    given = (traffic.trace is not None) + (traffic.trace_file is not None)
    if replayed:
        if given != 1:
            return "traffic.arrivals trace needs one trace; set trace_file"
        return "rate_per_s has no effect with a trace; remove it" if traffic.rate_per_s is not None else None
    if given:
        return "a trace has no effect without mode: open and arrivals: trace; set both or remove it"
    return "arrivals trace has no effect without mode: open; set it" if traffic.arrivals == "trace" else None


class TrafficConfig(ConfigModel):
    """How requests arrive."""

    mode: Literal["offline", "closed", "open"] = key(
        "offline",
        "`offline`: the engine gets as many requests as it accepts at once, and the next ones when those "
        "are finished; `closed`: `concurrency` requests are always in flight, a finished one is replaced at once; "
        "`open`: requests arrive at scheduled times, however busy the engine is.",
    )
    concurrency: int | None = key(None, "Requests in flight under `closed`.", ge=1, le=10_000, unit="requests")
    rate_per_s: float | None = key(None, "Mean arrivals per second under `open`.", gt=0, le=100_000, unit="1/s")
    arrivals: Literal["poisson", "constant", "trace"] = key(
        "poisson", "Intervals between arrivals under `open`: exponential, constant, or as in a recorded trace."
    )
    trace_file: str | None = key(
        None,
        "A text file, relative to the campaign file: one arrival per line, in seconds from the start of "
        "the window. `lemctl` uploads it and submits its digest instead. The whole trace is replayed, again and again "
        "while the window lasts.",
        min_length=1,
        max_length=1000,
    )
    trace: Sha256 | None = key(None, "Digest of an uploaded trace.")
    seed: int = key(0, "Seed of `poisson`.", ge=0, le=2**63 - 1)
    slo: SloConfig | None = key(None, "Latency limits of a good request.")

    rules: ClassVar[tuple[Rule, ...]] = (
        _missing_load,
        _unused_load,
        _trace_and_arrivals_disagree,
    )


class BaselineConfig(ConfigModel):
    """Power of the leased devices (or the host) without requests: before the engine is loaded, and when it is ready."""

    enabled: bool = key(True, "Measure baselines; without them net energy is null.")
    required: bool = key(False, "Fail a run whose baselines can't be measured, instead of giving it no net energy.")
    min_s: float = key(10.0, "Shortest duration of each baseline.", ge=1, le=3600, unit="s")
    max_s: float = key(
        60.0,
        "Longest duration of each baseline; it ends earlier when power is stationary (standard error of "
        "the mean below 1 %).",
        ge=1,
        le=3600,
        unit="s",
    )
    ttl_s: float = key(
        3600.0,
        "How long an idle baseline is reused for the same devices of the same worker; 0 never reuses it.",
        ge=0,
        le=604_800,
        unit="s",
    )

    rules: ClassVar[tuple[Rule, ...]] = (not_above("min_s", "max_s"),)


class SettleConfig(ConfigModel):
    """Waiting between warm-up and window; off unless a condition is set."""

    temperature_c: int | None = key(None, "Wait until no leased device is warmer.", ge=20, le=110, unit="°C")
    idle_power: bool = key(False, "Wait until power is within 10 % of the ready baseline (or of its lowest so far).")
    max_s: float = key(120.0, "Longest wait; the window then opens regardless.", gt=0, le=3600, unit="s")


class WindowConfig(ConfigModel):
    """Length of the measured window: whole repetitions of the prompt set until both minima are reached."""

    min_duration_s: float = key(
        10.0, "Shortest window; power counters update every 20 to 100 ms.", ge=0, le=86_400, unit="s"
    )
    min_requests: int = key(1, "Fewest requests.", ge=1, unit="requests")
    max_duration_s: float | None = key(
        None,
        "No request starts after this time, even if the minima are not reached or the prompt set is "
        "incomplete; requests in flight are finished. An engine with continuous batching gets the whole set at once "
        "under offline traffic.",
        gt=0,
        le=604_800,
        unit="s",
    )

    repeat: Literal["back_to_back", "drained"] | None = key(
        None,
        "How repetitions of the prompt set follow each other under offline traffic on an engine with continuous "
        "batching. `back_to_back`: a finished request is replaced at once by the next of the following repetition, so "
        "that the engine stays full; `drained`: a repetition starts when the last request of the one before it is "
        "done. Null is `back_to_back` for such an engine; one that runs batches in lockstep always works `drained`.",
    )
    steady_min_s: float = key(
        30.0, "Shortest steady state that gets figures; a shorter one is null.", ge=0, le=86_400, unit="s"
    )

    rules: ClassVar[tuple[Rule, ...]] = (not_above("min_duration_s", "max_duration_s"),)


class WarmupConfig(ConfigModel):
    """Requests sent before the window through the same path, until their latency is stable."""

    enabled: bool = key(True, "Send warm-up requests.")
    min_requests: int = key(5, "Fewest warm-up requests; a batch counts as one.", ge=1, le=10_000, unit="requests")
    max_requests: int = key(
        50, "Most warm-up requests, converged or not; a batch counts as one.", ge=1, le=10_000, unit="requests"
    )
    cv_threshold: float = key(
        0.05,
        "Converged when the coefficient of variation of the last `window_size` latencies is below this.",
        gt=0,
        le=1,
        unit="1",
    )
    window_size: int = key(5, "Number of latencies in the criterion.", ge=2, le=100, unit="requests")
    power_slope: float | None = key(
        0.02,
        "The leased devices' power has settled when a linear fit over its last 5 s, or ten sampling "
        "intervals if they are longer, changes by less than this fraction of its mean; null, or a run without power "
        "samples, ignores power.",
        gt=0,
        le=1,
        unit="1",
    )

    rules: ClassVar[tuple[Rule, ...]] = (not_above("min_requests", "max_requests"),)


def _calibrated_twice(energy: EnergyConfig) -> str | None:
    return named_twice(energy.calibration)


class EnergyConfig(ConfigModel):
    """Sources of power and energy, and their sampling interval."""

    sources: tuple[SourceName, ...] | Literal["auto"] = key(
        "auto", "`auto` uses every source of the worker's machine; or a list of names."
    )
    interval_ms: int = key(
        50, "Sampling interval; a slower source is read as often as it allows.", ge=5, le=5000, unit="ms"
    )
    required: bool = key(False, "Fail a run whose energy can't be read, instead of giving null.")
    calibration: tuple[DeviceCalibration, ...] = key(
        (),
        "Corrects the readings of GPUs by what an external meter found; `lemctl calibrate` makes the entries. Figures "
        "of `m2` are corrected, the evidence never is.",
        max_length=64,
    )

    rules: ClassVar[tuple[Rule, ...]] = (_calibrated_twice,)


class RecordConfig(ConfigModel):
    """The recorded evidence, in addition to requests."""

    tokens: bool = key(True, "Record the time of every output token (needed for ITL percentiles).")
    power: bool = key(True, "Record samples of power and energy; without them every energy figure is null.")
    outputs: bool = key(False, "Record the generated text, as events.")


class LimitsConfig(ConfigModel):
    """Time limits; past any of them the attempt ends and its processes are killed."""

    load_s: float = key(900, "Longest time to load the model.", gt=0, unit="s")
    warmup_s: float = key(600, "Longest warm-up.", gt=0, unit="s")
    run_s: float = key(3600, "Longest attempt.", gt=0, unit="s")
    silence_s: float = key(300, "Longest time without progress from a rank.", gt=0, unit="s")
