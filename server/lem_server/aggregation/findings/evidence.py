"""Findings about missing evidence."""

from __future__ import annotations

from collections.abc import Iterator

from lem_domain.results.findings import FindingCode, Severity
from lem_server.aggregation.findings.rule import Occurrence, RunFacts, rule


@rule(
    FindingCode.MISSING_EVIDENCE,
    Severity.ERROR,
    otherwise="warning for the token times",
    remedy="do not compare this result, run the experiment again",
)
def missing_evidence(facts: RunFacts) -> Iterator[Occurrence]:
    """Evidence is missing and `allow_partial` was requested, or token times do not match the requests."""
    if facts.missing:
        yield Occurrence(
            f"The result was computed without {'; '.join(map(str, facts.missing))}",
            {"parts": len(facts.missing), "chunks": sum(len(part.seqs) for part in facts.missing)},
        )
    if facts.miscounted_requests or facts.stray_tokens:
        yield Occurrence(
            f"{facts.miscounted_requests} requests have a number of token times that differs from their generated "
            f"tokens, and {facts.stray_tokens} token times belong to no request",
            {"miscounted_requests": facts.miscounted_requests, "stray_tokens": facts.stray_tokens},
            Severity.WARNING,
            "do not use the inter-token latencies, and report this as a defect of the backend",
        )
