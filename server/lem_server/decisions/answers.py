"""Answers of decisions over matched experiments; a subprocess computes them, because scipy takes long to load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lem_domain.wire.decisions import (
    ComparabilityCode,
    ComparabilityFinding,
    ComparedExperiment,
    Comparison,
    ConfigDifference,
    ExperimentComparison,
    Gate,
    GateExperiment,
    GateOutcome,
)
from lem_server.decisions.comparison import OpenComparison, compare_metric, words
from lem_server.decisions.differences import are_paired, comparability, differences, same_sensors
from lem_server.decisions.facts import ExperimentFacts, energy_path
from lem_server.decisions.gate import GatedMetric, decide
from lem_server.decisions.intervals import CONFIDENCE
from lem_server.decisions.question import Question


def compare(question: Question) -> Comparison:
    """Compare every pair of the question in every metric."""
    opened = [(pair, _open(question, *pair)) for pair in question.matched.pairs]
    found = iter(words([one for _, part in opened for one in part.metrics]))
    comparisons = tuple(
        ExperimentComparison(
            reference=_compared(reference),
            candidate=_compared(candidate),
            differences=part.differences,
            findings=part.findings,
            metrics=tuple(next(found) for _ in part.metrics),
        )
        for (reference, candidate), part in opened
    )
    return Comparison(
        confidence=CONFIDENCE,
        tests=sum(one.widened is not None for _, part in opened for one in part.metrics),
        comparisons=comparisons,
        unmatched_reference=question.matched.reference,
        unmatched_candidate=question.matched.candidate,
    )


def gate(question: Question) -> Gate:
    """Hold every pair of the question against its limits."""
    opened = [(pair, _open(question, *pair)) for pair in question.matched.pairs]
    limits = dict(zip((metric.name for metric in question.metrics), question.limits, strict=True))
    outcome, metrics = decide([GatedMetric(one, limits[one.metric.name]) for _, part in opened for one in part.metrics])
    if question.matched.reference and outcome is GateOutcome.PASSED:
        outcome = GateOutcome.NOT_ENOUGH_EVIDENCE
    found = iter(metrics)
    return Gate(
        confidence=CONFIDENCE,
        outcome=outcome,
        experiments=tuple(
            GateExperiment(
                reference=_compared(reference),
                candidate=_compared(candidate),
                differences=part.differences,
                findings=part.findings,
                metrics=tuple(next(found) for _ in part.metrics),
            )
            for (reference, candidate), part in opened
        ),
        unmatched_reference=question.matched.reference,
        unmatched_candidate=question.matched.candidate,
    )


class _OpenPair(NamedTuple):
    differences: tuple[ConfigDifference, ...]
    findings: tuple[ComparabilityFinding, ...]
    metrics: tuple[OpenComparison, ...]


def _open(question: Question, reference: ExperimentFacts, candidate: ExperimentFacts) -> _OpenPair:
    found = differences(reference, candidate)
    intended = (*question.intended, *intended_keys((reference, candidate)))
    findings = (*question.notes, *comparability(reference, candidate, found, intended))
    refused = None
    if not question.allow_different_work:
        refused = next((one.message for one in findings if one.code is ComparabilityCode.DIFFERENT_WORK), None)
    pairs, same = are_paired(reference, candidate), same_sensors(reference, candidate)
    metrics = tuple(
        compare_metric(
            metric,
            reference,
            candidate,
            pairs=pairs,
            same_sensor=same,
            margin=question.margin,
            refused=refused,
        )
        for metric in question.metrics
        if question.limits
        or not metric.optional
        or any(metric.name in one.values for one in (*reference.cycles, *candidate.cycles))
    )
    unknown = [one.metric.name for one in metrics if _is_unbounded(one)]
    if unknown:
        message = (
            f"The accuracy of the sensor behind {', '.join(unknown)} is not known, or not in full: the interval holds "
            "what is known."
        )
        findings = (*findings, ComparabilityFinding(code=ComparabilityCode.SENSOR_UNKNOWN, message=message))
    return _OpenPair(found, findings, metrics)


def intended_keys(experiments: Sequence[ExperimentFacts]) -> tuple[str, ...]:
    """Return the keys that the experiments' campaigns vary; a varied backend varies the sections of the backends."""
    keys = dict.fromkeys(key for one in experiments for key in one.varied)
    if "backend" in keys:
        keys |= dict.fromkeys(str(one.config.get("backend")) for one in experiments)
    return tuple(keys)


def _is_unbounded(one: OpenComparison) -> bool:
    if one.widened is None or energy_path(one.metric) is None:
        return False
    return one.found.systematic is None or one.found.systematic.unpublished


def _compared(facts: ExperimentFacts) -> ComparedExperiment:
    return ComparedExperiment(
        experiment_id=facts.experiment_id,
        campaign_id=facts.campaign_id,
        display_name=facts.display_name,
        config_hash=facts.config_hash,
        cycles=tuple(one.cycle for one in facts.usable),
        excluded_cycles=tuple(one.cycle for one in facts.cycles if one.verdict == "invalid"),
        questionable_cycles=tuple(one.cycle for one in facts.cycles if one.verdict == "questionable"),
    )
