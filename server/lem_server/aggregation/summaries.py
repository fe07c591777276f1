"""Results of one experiment over its cycles: mean and spread per metric, the worst verdict, what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lem_domain.figures import older_figure
from lem_domain.results import (
    CycleSummary,
    Distribution,
    EnergyFigure,
    Figure,
    Finding,
    FindingCode,
    RunResult,
    Severity,
    Verdict,
    verdict_of,
)

_VERDICTS: tuple[Verdict, ...] = ("valid", "questionable", "invalid")


class _Value(NamedTuple):
    value: float | None
    reason: str | None = None


def _figure(figure: Figure) -> _Value:
    return _Value(figure.value, figure.reason)


def _energy(figure: EnergyFigure) -> _Value:
    return _Value(figure.joules, figure.reason)


def _mean(distribution: Distribution) -> _Value:
    return _Value(distribution.mean, distribution.reason)


_OLDER = _Value(None, older_figure("1").reason)

_METRICS: tuple[tuple[str, str, Callable[[RunResult], _Value]], ...] = (
    ("efficiency.energy_per_output_token_j", "J", lambda result: _figure(result.efficiency.energy_per_output_token_j)),
    ("efficiency.energy_per_request_j", "J", lambda result: _figure(result.efficiency.energy_per_request_j)),
    ("efficiency.output_tokens_per_j", "1/J", lambda result: _figure(result.efficiency.output_tokens_per_j)),
    ("efficiency.energy_delay_product_js", "J·s", lambda result: _figure(result.efficiency.energy_delay_product_js)),
    ("efficiency.energy_per_prompt_token_j", "J", lambda result: _figure(result.efficiency.energy_per_prompt_token_j)),
    (
        "efficiency.net_energy_per_output_token_j",
        "J",
        lambda result: _figure(result.efficiency.net_energy_per_output_token_j),
    ),
    ("speed.output_rate_tok_s", "tok/s", lambda result: _figure(result.speed.output_rate_tok_s)),
    ("speed.total_rate_tok_s", "tok/s", lambda result: _figure(result.speed.total_rate_tok_s)),
    ("speed.request_rate_per_s", "1/s", lambda result: _figure(result.speed.request_rate_per_s)),
    ("speed.goodput_per_s", "1/s", lambda result: _figure(result.speed.goodput_per_s)),
    ("speed.ttft_ms.mean", "ms", lambda result: _mean(result.speed.ttft_ms)),
    ("speed.itl_ms.mean", "ms", lambda result: _mean(result.speed.itl_ms)),
    ("speed.tpot_ms.mean", "ms", lambda result: _mean(result.speed.tpot_ms)),
    ("speed.e2e_ms.mean", "ms", lambda result: _mean(result.speed.e2e_ms)),
    ("speed.queue_ms.mean", "ms", lambda result: _mean(result.speed.queue_ms)),
    ("energy.total", "J", lambda result: _energy(result.energy.total)),
    ("energy.net", "J", lambda result: _energy(result.energy.net)),
    ("energy.phases.prefill.energy", "J", lambda result: _energy(result.energy.phases.prefill.energy)),
    ("energy.phases.decode.energy", "J", lambda result: _energy(result.energy.phases.decode.energy)),
    ("energy.mean_power_w", "W", lambda result: _figure(result.energy.mean_power_w)),
    ("energy.gpu", "J", lambda result: _energy(result.energy.gpu)),
    ("energy.cpu", "J", lambda result: _energy(result.energy.cpu)),
    ("energy.dram", "J", lambda result: _energy(result.energy.dram)),
    ("compute.flops", "FLOP", lambda result: _figure(result.compute.flops) if result.compute else _OLDER),
    ("compute.mfu", "1", lambda result: _figure(result.compute.mfu) if result.compute else _OLDER),
    ("window.duration_s", "s", lambda result: _Value(result.window.duration_s)),
    ("work.generated_tokens", "tokens", lambda result: _Value(float(result.work.generated_tokens))),
)

METRICS: tuple[str, ...] = tuple(path for path, _, _ in _METRICS)
"""Dotted paths of the metrics that are summarised, in the order of `summarise_cycles`."""


class ExperimentSummary(NamedTuple):
    """What `ExperimentResults` says of all cycles together."""

    verdict: Verdict | None
    energy_method: str | None
    energy_includes: tuple[str, ...]
    findings: tuple[str, ...]
    metrics: tuple[CycleSummary, ...]


def summarise_experiment(results: Sequence[RunResult]) -> ExperimentSummary:
    """Worst verdict, distinct findings in order of appearance (those between cycles last), and the metrics, of the
    cycles' results in order.

    The energy method is `mixed` where cycles differ; cycles without energy say nothing about it. `energy_includes` is
    whatever any cycle includes, in order of appearance.
    """
    methods = dict.fromkeys(result.energy.total.method.value for result in results if result.energy.total.method)
    between = output_mismatch(results)
    verdicts = [result.verdict for result in results] + ([verdict_of(between)] if between else [])
    return ExperimentSummary(
        verdict=max(verdicts, key=_VERDICTS.index, default=None),
        energy_method=next(iter(methods), None) if len(methods) < 2 else "mixed",
        energy_includes=tuple(dict.fromkeys(part for result in results for part in result.energy.includes)),
        findings=tuple(
            dict.fromkeys(
                finding.message for findings in (*(one.findings for one in results), between) for finding in findings
            )
        ),
        metrics=summarise_cycles(results),
    )


def output_mismatch(results: Sequence[RunResult]) -> tuple[Finding, ...]:
    """Cycles of one greedy experiment, on the same prompts, that generated different tokens."""
    told = [result.outputs for result in results if result.outputs is not None]
    digests = [outputs.sha256 for outputs in told if outputs.greedy and outputs.sha256 is not None]
    if len(set(digests)) < 2:
        return ()
    return (
        Finding(
            code=FindingCode.OUTPUT_MISMATCH,
            severity=Severity.WARNING,
            message=f"{len(digests)} cycles of this greedy experiment generated {len(set(digests))} different outputs, "
            "so they did not do the same work; look for batches of changing size or kernels that are not "
            "deterministic.",
            numbers={"cycles": len(digests), "outputs": len(set(digests))},
        ),
    )


def summarise_cycles(results: Sequence[RunResult]) -> tuple[CycleSummary, ...]:
    """Mean, sample standard deviation (n - 1) and its ratio to the mean for each of `METRICS`, over cycles in order.

    A cycle without the figure is left out of `values`; where none has it, `reason` gives the cycles' reasons.
    """
    return tuple(_summary(path, unit, [read(result) for result in results]) for path, unit, read in _METRICS)


def _summary(path: str, unit: str, cycles: Sequence[_Value]) -> CycleSummary:
    values = tuple(cycle.value for cycle in cycles if cycle.value is not None)
    if not values:
        reasons = "; ".join(dict.fromkeys(cycle.reason for cycle in cycles if cycle.reason))
        reason = reasons or "no cycle has been aggregated"
        return CycleSummary(metric=path, unit=unit, values=(), mean=None, sd=None, cv=None, reason=reason)
    mean = math.fsum(values) / len(values)
    sd = None
    if len(values) > 1:
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    cv = sd / mean if sd is not None and mean != 0 else None
    return CycleSummary(metric=path, unit=unit, values=values, mean=mean, sd=sd, cv=cv)
