"""What a reader of a result must know: each finding with its numbers, its severity and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import canonical_json
from lem_domain.results import (
    DeviceEnergy,
    EnergyMethod,
    EnergyResult,
    Finding,
    FindingCode,
    HostEnergy,
    Severity,
    WindowResult,
    WorkResult,
)
from lem_domain.wire.runs import EffectiveConfig
from lem_server.aggregation.errors import MissingPart
from lem_server.aggregation.traces import GAP_FACTOR, Gaps
from lem_server.aggregation.warmups import Warmup

FEW_SAMPLES = 10
"""Fewer power samples in the window than this describe no mean."""

LOW_OVERLAP = 0.5

_SHORT_TOLERANCE = 0.99
"""The worker ends its window by a clock reading of its own around the requests, so the two may differ slightly."""


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


def energy_unavailable(energy: EnergyResult, config: ExperimentConfig) -> tuple[Finding, ...]:
    """The job's energy is null; an error where the user required it."""
    if energy.total.joules is not None:
        return ()
    return (
        Finding(
            code=FindingCode.ENERGY_UNAVAILABLE,
            severity=Severity.ERROR if config.energy.required else Severity.WARNING,
            message=f"There is no energy figure: {energy.total.reason}; `lemctl doctor` on the worker's machine says "
            "what can be read there.",
        ),
    )


def energy_modelled(energy: EnergyResult) -> tuple[Finding, ...]:
    """A part of the job's energy comes from a model, not from a meter."""
    if energy.total.method is not EnergyMethod.MODELLED:
        return ()
    parts = _parts(energy)
    modelled = [name for name in energy.includes if parts[name].energy.method is EnergyMethod.MODELLED]
    return (
        Finding(
            code=FindingCode.ENERGY_MODELLED,
            severity=Severity.WARNING,
            message=f"The energy of {', '.join(modelled)} is modelled, not measured, and has no error bound; use it to "
            "compare on one machine at most.",
            numbers={name: joules for name in modelled if (joules := parts[name].energy.joules) is not None},
        ),
    )


def short_window(window: WindowResult, energy: EnergyResult, config: ExperimentConfig) -> tuple[Finding, ...]:
    """The window is shorter than `window.min_duration_s`; the energy's bound says what that costs."""
    wanted = config.window.min_duration_s
    if window.duration_s >= wanted * _SHORT_TOLERANCE:
        return ()
    numbers = {"duration_s": window.duration_s, "min_duration_s": wanted}
    bound = energy.total.bound_j
    if bound is not None:
        numbers["bound_j"] = bound
    uncertain = f", which leaves the energy uncertain by {bound:.3g} J" if bound is not None else ""
    return (
        Finding(
            code=FindingCode.SHORT_WINDOW,
            severity=Severity.WARNING,
            message=f"The window lasted {window.duration_s:.2f} s where {wanted:g} s were asked for{uncertain}; "
            "send more or longer requests.",
            numbers=numbers,
        ),
    )


def few_samples(energy: EnergyResult) -> tuple[Finding, ...]:
    """A part of the job's energy rests on fewer than 10 samples in the window."""
    parts = _parts(energy)
    few = {name: parts[name].samples for name in energy.includes if parts[name].samples < FEW_SAMPLES}
    if not few:
        return ()
    listed = ", ".join(f"{name} on {count}" for name, count in few.items())
    return (
        Finding(
            code=FindingCode.FEW_SAMPLES,
            severity=Severity.WARNING,
            message=f"The energy rests on few samples in the window ({listed}; at least {FEW_SAMPLES} are needed); "
            "measure longer or lower energy.interval_ms.",
            numbers={name: float(count) for name, count in few.items()},
        ),
    )


def sampling_gaps(gaps: Mapping[str, Gaps], energy: EnergyResult) -> tuple[Finding, ...]:
    """No sample came for more than 5 usual intervals; harmless for a counter, not for an integral."""
    found = {name: gaps[name] for name in energy.includes if name in gaps}
    if not found:
        return ()
    parts = _parts(energy)
    counted = all(parts[name].energy.method is EnergyMethod.COUNTER for name in found)
    listed = ", ".join(f"{name}: {gap.number}, longest {gap.longest_s:.3g} s" for name, gap in found.items())
    consequence = "the counters kept counting" if counted else "what happened meanwhile is interpolated"
    return (
        Finding(
            code=FindingCode.SAMPLING_GAPS,
            severity=Severity.INFO if counted else Severity.WARNING,
            message=f"Power samples have gaps of more than {GAP_FACTOR} usual intervals ({listed}); {consequence}; "
            "keep other work off the machine.",
            numbers={f"{name}.longest_s": gap.longest_s for name, gap in found.items()},
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
            message=f"Latency was not steady when the window opened ({listed}; wanted is a coefficient of variation "
            f"below {config.warmup.cv_threshold:g}); raise warmup.max_requests or keep other work off the machine.",
            numbers={**numbers, "cv_threshold": config.warmup.cv_threshold},
        ),
    )


def not_as_requested(effective: EffectiveConfig | None) -> tuple[Finding, ...]:
    """The engine says that a requested value is not in force, or nothing was read back from it."""
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
    return (
        Finding(
            code=FindingCode.NOT_AS_REQUESTED,
            severity=Severity.ERROR,
            message=f"The engine did not run as requested: {listed}; request a value that it supports.",
            numbers={"parameters": len(different)},
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


def _parts(energy: EnergyResult) -> dict[str, DeviceEnergy | HostEnergy]:
    """By the names that `includes` uses."""
    return {**{part.uuid: part for part in energy.devices}, **{part.domain: part for part in energy.host}}


def _warmup_text(warmup: Warmup | None) -> str:
    if warmup is None:
        return "recorded nothing of its warm-up"
    after = f" after {warmup.requests} requests" if warmup.requests is not None else ""
    return f"reached {warmup.cv:.3g}{after}" if warmup.cv is not None else f"had too few latencies to tell{after}"


def _text(value: JsonValue) -> str:
    return canonical_json(value).decode()
