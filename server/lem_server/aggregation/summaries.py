"""Results of one experiment over its cycles: mean and spread per metric, the worst verdict, what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lem_domain.results.figures import older_figure
from lem_domain.results.run import (
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


class Tally:
    """What the summary of an experiment needs of its cycles, taken one result at a time, so that none is kept."""

    def __init__(self) -> None:
        self._metrics = tuple(_Metric() for _ in _METRICS)
        self._verdict: Verdict | None = None
        self._methods: dict[str, None] = {}
        self._includes: dict[str, None] = {}
        self._findings: dict[str, None] = {}
        self._digests: list[str] = []

    def add(self, result: RunResult) -> None:
        """The next cycle, in order."""
        for metric, (_, _, read) in zip(self._metrics, _METRICS, strict=True):
            metric.add(read(result))
        if self._verdict is None or _VERDICTS.index(result.verdict) > _VERDICTS.index(self._verdict):
            self._verdict = result.verdict
        if result.energy.total.method:
            self._methods[result.energy.total.method.value] = None
        self._includes.update(dict.fromkeys(result.energy.includes))
        self._findings.update(dict.fromkeys(finding.message for finding in result.findings))
        outputs = result.outputs
        if outputs is not None and outputs.greedy and outputs.sha256 is not None:
            self._digests.append(outputs.sha256)

    def between_cycles(self) -> tuple[Finding, ...]:
        """Cycles of one greedy experiment, on the same prompts, that generated different tokens."""
        cycles, outputs = len(self._digests), len(set(self._digests))
        if outputs < 2:
            return ()
        return (
            Finding(
                code=FindingCode.OUTPUT_MISMATCH,
                severity=Severity.WARNING,
                message=f"{cycles} cycles of this greedy experiment generated {outputs} different outputs, so they did "
                "not do the same work; look for batches of changing size or kernels that are not deterministic.",
                numbers={"cycles": cycles, "outputs": outputs},
            ),
        )

    def metrics(self) -> tuple[CycleSummary, ...]:
        """Mean, sample standard deviation (n - 1) and its ratio to the mean for each of `METRICS`.

        A cycle without the figure is left out of `values`; where none has it, `reason` gives the cycles' reasons.
        """
        return tuple(
            metric.summary(path, unit) for metric, (path, unit, _) in zip(self._metrics, _METRICS, strict=True)
        )

    @property
    def output(self) -> str | None:
        """The digest of what all cycles generated; None where they differ, or sampled, or told none."""
        return self._digests[0] if len(set(self._digests)) == 1 else None

    def differs_from(self, name: str, output: str) -> tuple[Finding, ...]:
        """Another experiment, `name`, had to generate the same as this one, and its cycles generated `output`.

        What this one's own cycles differ in is told by `between_cycles`.
        """
        if self.output in (None, output):
            return ()
        return (
            Finding(
                code=FindingCode.OUTPUT_MISMATCH,
                severity=Severity.WARNING,
                message=f"This experiment generated other tokens than {name} although both are greedy and in float32 "
                "on the same prompts, so they did not do the same work; look for settings of one of them that change "
                "its tokens before comparing them.",
            ),
        )

    def summary(self, others: tuple[Finding, ...] = ()) -> ExperimentSummary:
        """Worst verdict, distinct findings in order of appearance (those between cycles last, and then `others`), and
        the metrics.

        The energy method is `mixed` where cycles differ; cycles without energy say nothing about it. `energy_includes`
        is whatever any cycle includes, in order of appearance.
        """
        between = (*self.between_cycles(), *others)
        verdicts = [verdict for verdict in (self._verdict, verdict_of(between) if between else None) if verdict]
        return ExperimentSummary(
            verdict=max(verdicts, key=_VERDICTS.index, default=None),
            energy_method=next(iter(self._methods), None) if len(self._methods) < 2 else "mixed",
            energy_includes=tuple(self._includes),
            findings=tuple(dict.fromkeys((*self._findings, *(finding.message for finding in between)))),
            metrics=self.metrics(),
        )


class _Metric:
    """One metric over the cycles so far."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._reasons: dict[str, None] = {}

    def add(self, cycle: _Value) -> None:
        if cycle.value is not None:
            self._values.append(cycle.value)
        elif cycle.reason:
            self._reasons[cycle.reason] = None

    def summary(self, path: str, unit: str) -> CycleSummary:
        values = tuple(self._values)
        if not values:
            reason = "; ".join(self._reasons) or "no cycle has been aggregated"
            return CycleSummary(metric=path, unit=unit, values=(), mean=None, sd=None, cv=None, reason=reason)
        mean = math.fsum(values) / len(values)
        sd = None
        if len(values) > 1:
            sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
        cv = sd / mean if sd is not None and mean != 0 else None
        return CycleSummary(metric=path, unit=unit, values=values, mean=mean, sd=sd, cv=cv)


def summarise_experiment(results: Iterable[RunResult]) -> ExperimentSummary:
    """The summary of the cycles' results in order."""
    return _tally(results).summary()


def output_mismatch(results: Iterable[RunResult]) -> tuple[Finding, ...]:
    """What only several cycles together show."""
    return _tally(results).between_cycles()


def summarise_cycles(results: Iterable[RunResult]) -> tuple[CycleSummary, ...]:
    """The metrics alone."""
    return _tally(results).metrics()


def _tally(results: Iterable[RunResult]) -> Tally:
    tally = Tally()
    for result in results:
        tally.add(result)
    return tally
