"""What decisions know of an experiment: its configuration, and per cycle the figures with the errors of energy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from lem_domain.results.figures import EnergyFigure, Figure
from lem_domain.results.findings import Verdict
from lem_domain.results.metrics import Metric, field_of
from lem_domain.results.run import RunResult


class EnergyReading(NamedTuple):
    """The energy that one cycle's metric is computed from, and the parts of its bound.

    The metric is proportional to the energy (`power` 1) or to its inverse (−1). Null parts are not published.
    """

    joules: float
    seconds: float
    power: int
    gain: float | None
    offset_w: float | None
    open_j: float
    """Sampling and coverage, which are independent of each other and between cycles, in quadrature."""
    apart_j: float
    """By how much counter and integral disagree."""


class WorkFacts(NamedTuple):
    """What a cycle did; None where it is unknown."""

    prompts: str | None = None
    model: str | None = None
    tokens_per_request: float | None = None
    perplexity: float | None = None


class CycleFacts(NamedTuple):
    """One cycle of an experiment that has a result."""

    run_id: str
    cycle: int
    verdict: Verdict
    values: Mapping[str, float]
    """By the names of the requested metrics; without those that have no value."""
    reasons: Mapping[str, str]
    """Why a metric has no value."""
    energies: Mapping[str, EnergyReading]
    """By metric; without those that are no energy, or whose energy has no bound."""
    sensors: tuple[str, ...]
    """Devices or host domains of the job's energy, and how they are calibrated; equal for the same sensors."""
    devices: tuple[str, ...] = ()
    started_at: datetime | None = None
    work: WorkFacts = WorkFacts()
    effective: Mapping[str, Any] = {}
    environment: Mapping[str, Any] = {}


class ExperimentFacts(NamedTuple):
    """An experiment with its cycles in order."""

    experiment_id: str
    campaign_id: str
    display_name: str
    config_hash: str
    config: Mapping[str, Any]
    varied: Mapping[str, Any]
    cycles: tuple[CycleFacts, ...]

    @property
    def usable(self) -> tuple[CycleFacts, ...]:
        """The cycles that are in figures: an invalid result is in none."""
        return tuple(cycle for cycle in self.cycles if cycle.verdict != "invalid")


_FROM_ENERGY: Final[Mapping[str, tuple[str, int]]] = {
    "efficiency.output_tokens_per_j": ("energy.total", -1),
    "efficiency.energy_delay_product_js": ("energy.total", 1),
    "efficiency.energy_per_prompt_token_j": ("energy.phases.prefill.energy", 1),
    "energy.mean_power_w": ("energy.total", 1),
}
"""Metrics whose entry names no `per_energy`, because their relative bound is not printed."""


def energy_path(metric: Metric) -> tuple[str, int] | None:
    """Return the path of the energy that a metric is proportional to (1) or inversely so (−1); None without one."""
    if metric.per_energy is not None:
        return metric.per_energy, 1
    if metric.name in _FROM_ENERGY:
        return _FROM_ENERGY[metric.name]
    return (metric.name, 1) if metric.unit == "J" and metric.name.startswith("energy.") else None


def energy_reading(metric: Metric, result: RunResult) -> EnergyReading | None:
    """Return the energy of a metric in a result; None if it has none, or none with a bound."""
    source = energy_path(metric)
    if source is None:
        return None
    path, power = source
    figure = field_of(result, path)
    seconds = _seconds(path, result)
    if not isinstance(figure, EnergyFigure) or figure.joules is None or figure.bound_parts is None or not seconds:
        return None
    parts = figure.bound_parts
    return EnergyReading(
        joules=figure.joules,
        seconds=seconds,
        power=power,
        gain=parts.sensor_gain,
        offset_w=parts.sensor_offset_w,
        open_j=math.hypot(parts.sampling_j, parts.coverage_j),
        apart_j=parts.disagreement_j,
    )


def cycle_facts(
    result: RunResult,
    cycle: int,
    metrics: Sequence[Metric],
    *,
    devices: Sequence[str] = (),
    started_at: datetime | None = None,
    effective: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> CycleFacts:
    """Return what decisions know of one result."""
    values, reasons, energies = {}, {}, {}
    for metric in metrics:
        read = metric.read(result)
        if read.value is None:
            reasons[metric.name] = read.reason or "no value"
        else:
            values[metric.name] = read.value
            energy = energy_reading(metric, result)
            if energy is not None:
                energies[metric.name] = energy
    total = result.energy.total
    calibration = total.bound_parts.calibration if total.bound_parts else None
    finished = result.work.requests - result.work.failed_requests
    environment = environment or {}
    return CycleFacts(
        run_id=result.run_id,
        cycle=cycle,
        verdict=result.verdict,
        values=values,
        reasons=reasons,
        energies=energies,
        sensors=(*sorted(result.energy.includes), str(total.method), str(calibration)),
        devices=tuple(sorted(devices)),
        started_at=started_at,
        work=WorkFacts(
            prompts=_digest(environment.get("prompts")),
            model=_digest(environment.get("model_files")),
            tokens_per_request=result.work.generated_tokens / finished if finished else None,
            perplexity=result.quality.perplexity.value if result.quality else None,
        ),
        effective=effective or {},
        environment=environment,
    )


def _seconds(path: str, result: RunResult) -> float | None:
    if path.startswith("energy.phases."):
        path = path.removesuffix(".energy") + ".time_s"
    elif path.startswith("steady."):
        path = "steady.duration_s"
    else:
        return result.window.duration_s
    found = field_of(result, path)
    return found.value if isinstance(found, Figure) else None


def _digest(found: object) -> str | None:
    """Return what identifies prompts or a model's files in an environment; None if nothing does."""
    if not isinstance(found, Mapping) or not found:
        return None
    for name in ("sent_sha256", "sha256"):
        if isinstance(found.get(name), str):
            return str(found[name])
    digests = [f"{name}={digest}" for name, digest in sorted(found.items()) if isinstance(digest, str)]
    return None if "sent" in found else ";".join(digests) or None
