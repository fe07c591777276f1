"""The registry of findings: each rule states its code, severity, criterion and remedy, and finds occurrences of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lem_domain.results.findings import Finding, FindingCode, Severity
from lem_domain.results.run import OutputsResult, TelemetryResult, WindowResult, WorkResult
from lem_server.aggregation.energy.power_traces import DeviceSamples
from lem_server.aggregation.energy.sampler_record import SamplerRecord
from lem_server.aggregation.energy.totals import EnergyAccount
from lem_server.aggregation.errors import MissingPart
from lem_server.aggregation.inputs import AggregationInput
from lem_server.aggregation.work.requests import RankRequests
from lem_server.aggregation.work.warmups import Warmup


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Inputs of the rules: an attempt's inputs and the parts of its result."""

    inputs: AggregationInput
    missing: Sequence[MissingPart]
    ranks: Sequence[RankRequests]
    window: WindowResult
    work: WorkResult
    outputs: OutputsResult
    account: EnergyAccount
    record: SamplerRecord
    samples: Mapping[str, DeviceSamples]
    telemetry: TelemetryResult
    warmups: Mapping[str, Warmup | None]
    miscounted_requests: int
    stray_tokens: int


@dataclass(frozen=True)
class Occurrence:
    """One occurrence of a finding: what was found, with its numbers; severity and remedy only where not the rule's."""

    found: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    severity: Severity | None = None
    remedy: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A kind of finding, as the reference documents it, and the function that finds it in a run."""

    code: FindingCode
    severity: Severity
    when: str
    remedy: str
    otherwise: str = ""
    find: Callable[[RunFacts], Iterable[Occurrence]]

    def findings(self, facts: RunFacts) -> tuple[Finding, ...]:
        """Apply the rule to a run."""
        return tuple(self.finding(occurrence) for occurrence in self.find(facts))

    def finding(self, occurrence: Occurrence) -> Finding:
        """Complete an occurrence with the rule's code, severity and remedy."""
        return Finding(
            code=self.code,
            severity=occurrence.severity or self.severity,
            message=f"{occurrence.found}; {(occurrence.remedy or self.remedy).replace('`', '')}.",
            numbers=dict(occurrence.numbers),
        )


RULES: dict[FindingCode, Rule] = {}
"""Every rule, in the order in which a result lists its findings."""


def rule(
    code: FindingCode, severity: Severity = Severity.WARNING, *, when: str = "", remedy: str, otherwise: str = ""
) -> Callable[[Callable[[RunFacts], Iterable[Occurrence]]], Rule]:
    """Register the decorated function as the rule of a finding.

    `when` is the criterion (if omitted, the function's docstring) and `otherwise` the exceptions from `severity`, both
    for the reference; `remedy` ends the message of every occurrence.
    """

    def register(find: Callable[[RunFacts], Iterable[Occurrence]]) -> Rule:
        assert code not in RULES, code  # noqa: S101 - a second rule for a code would replace the first
        doc = (find.__doc__ or "").removesuffix(".")
        criterion = when or doc[:1].lower() + doc[1:]
        RULES[code] = Rule(code=code, severity=severity, when=criterion, remedy=remedy, otherwise=otherwise, find=find)
        return RULES[code]

    return register
