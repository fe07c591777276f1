"""Summarises an experiment over its cycles: mean and spread per metric, the worst verdict, distinct findings."""

from __future__ import annotations

import math
from typing import NamedTuple

from lem_domain.results.findings import Finding, Verdict, verdict_of
from lem_domain.results.metrics import METRICS, Metric
from lem_domain.results.run import CycleSummary, PublicationCondition, RunResult
from lem_server.aggregation.findings.cycles import Cycle, drift_between
from lem_server.aggregation.findings.rule import Occurrence
from lem_server.aggregation.findings.work import output_mismatch
from lem_server.aggregation.publication import publication_conditions

_VERDICTS: tuple[Verdict, ...] = ("valid", "questionable", "invalid")


class ExperimentSummary(NamedTuple):
    """The parts of `ExperimentResults` that describe all cycles together."""

    verdict: Verdict | None
    method: str | None
    energy_method: str | None
    energy_includes: tuple[str, ...]
    findings: tuple[str, ...]
    metrics: tuple[CycleSummary, ...]
    publication: tuple[PublicationCondition, ...]


class CycleTally:
    """Accumulates the summary of an experiment one cycle at a time, so that no result is kept."""

    def __init__(self) -> None:
        self._metrics = tuple(_MetricTally(metric) for metric in METRICS)
        self._verdict: Verdict | None = None
        self._versions: dict[str, None] = {}
        self._methods: dict[str, None] = {}
        self._includes: dict[str, None] = {}
        self._findings: dict[str, None] = {}
        self._digests: list[str] = []
        self._cycles: list[Cycle] = []

    def add(self, result: RunResult) -> None:
        """Add the next cycle, in order."""
        for metric in self._metrics:
            metric.add(result)
        self._cycles.append(Cycle.of(result))
        if self._verdict is None or _VERDICTS.index(result.verdict) > _VERDICTS.index(self._verdict):
            self._verdict = result.verdict
        self._versions[result.method] = None
        if result.energy.total.method:
            self._methods[result.energy.total.method.value] = None
        self._includes.update(dict.fromkeys(result.energy.includes))
        self._findings.update(dict.fromkeys(finding.message for finding in result.findings))
        if result.outputs.greedy and result.outputs.sha256 is not None:
            self._digests.append(result.outputs.sha256)

    def between_cycles(self) -> tuple[Finding, ...]:
        """Report a drift of power, and greedy cycles on the same prompts that generated different tokens."""
        drift = drift_between(self._cycles)
        cycles, outputs = len(self._digests), len(set(self._digests))
        if outputs < 2:
            return drift
        found = (
            f"{cycles} cycles of this greedy experiment generated {outputs} different outputs, so they did not do the "
            "same work"
        )
        return (*drift, output_mismatch.finding(Occurrence(found, {"cycles": cycles, "outputs": outputs})))

    def metrics(self) -> tuple[CycleSummary, ...]:
        """Return mean, sample standard deviation (n - 1) and its ratio to the mean for each of `METRICS`.

        `values` leaves out cycles without the figure; if no cycle has it, `reason` gives the cycles' reasons.
        """
        return tuple(metric.summary() for metric in self._metrics)

    @property
    def output(self) -> str | None:
        """The digest of the tokens that all cycles generated; None if they differ, sampled, or reported none."""
        return self._digests[0] if len(set(self._digests)) == 1 else None

    def differs_from(self, name: str, output: str) -> tuple[Finding, ...]:
        """Report that this experiment generated other tokens than the experiment `name`, which must be the same.

        Differences between this experiment's own cycles are in `between_cycles`.
        """
        if self.output in (None, output):
            return ()
        found = (
            f"This experiment generated different tokens than {name} although both are greedy and in float32 on the "
            "same prompts, so they did not do the same work"
        )
        remedy = "look for settings of one of them that change its tokens before you compare them"
        return (output_mismatch.finding(Occurrence(found, remedy=remedy)),)

    def summary(self, others: tuple[Finding, ...] = ()) -> ExperimentSummary:
        """Return the worst verdict, the distinct findings in order of appearance, and the metrics.

        Findings between cycles and then `others` come last. Either method is `mixed` if cycles differ; cycles without
        energy have no energy method. `energy_includes` is what any cycle includes, in order of appearance.
        """
        between = (*self.between_cycles(), *others)
        verdicts = [verdict for verdict in (self._verdict, verdict_of(between) if between else None) if verdict]
        return ExperimentSummary(
            verdict=max(verdicts, key=_VERDICTS.index, default=None),
            method=_one_or_mixed(self._versions),
            energy_method=_one_or_mixed(self._methods),
            energy_includes=tuple(self._includes),
            findings=tuple(dict.fromkeys((*self._findings, *(finding.message for finding in between)))),
            metrics=self.metrics(),
            publication=publication_conditions(self._cycles),
        )


def _one_or_mixed(values: dict[str, None]) -> str | None:
    return next(iter(values), None) if len(values) < 2 else "mixed"


class _MetricTally:
    """One metric over the cycles so far."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._values: list[float] = []
        self._reasons: dict[str, None] = {}

    def add(self, result: RunResult) -> None:
        cycle = self._metric.read(result)
        if cycle.value is not None:
            self._values.append(cycle.value)
        elif cycle.reason:
            self._reasons[cycle.reason] = None

    def summary(self) -> CycleSummary:
        name, unit, values = self._metric.name, self._metric.unit, tuple(self._values)
        if not values:
            reason = "; ".join(self._reasons) or "no cycle has been aggregated"
            return CycleSummary(metric=name, unit=unit, values=(), mean=None, sd=None, cv=None, reason=reason)
        mean = math.fsum(values) / len(values)
        sd = None
        if len(values) > 1:
            sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
        cv = sd / mean if sd is not None and mean != 0 else None
        return CycleSummary(metric=name, unit=unit, values=values, mean=mean, sd=sd, cv=cv)
