"""A comparison for people: what differs, findings, and one line per metric."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lem_client.render.numbers import MISSING, mean_and_spread, number, quantity, scale_for
from lem_client.render.terminal import clean, table
from lem_domain.wire.decisions import (
    Comparison,
    ComparisonWord,
    ConfidenceInterval,
    ExperimentComparison,
    Gate,
    GateExperiment,
    GateMetric,
    MeanEstimate,
    MetricComparison,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHOWN = 10
"""Differences of one pair; the JSON has all."""


def comparison_parts(found: Comparison) -> Iterator[RenderableType]:
    """Yield the parts of a comparison: per pair its heading, what differs, findings and the table."""
    for one in found.comparisons:
        yield clean(f"{one.candidate.display_name} against {one.reference.display_name}")
        yield clean("\n".join(_differences(one)))
        yield _table(one)
        notes = [*(finding.message for finding in one.findings), *filter(None, map(_note, one.metrics))]
        yield clean("\n".join(f"  {note}" for note in notes) + ("\n" if notes else ""))
    yield from _unmatched(found)
    yield (
        f"95 % intervals, widened by what sensors and samples leave open; words are corrected for "
        f"{found.tests} {'test' if found.tests == 1 else 'tests'}."
    )


def gate_parts(found: Gate) -> Iterator[RenderableType]:
    """Yield the parts of a gate: its outcome, and per pair what differs, findings and the table."""
    yield clean(f"{found.outcome.value.replace('_', ' ')}")
    for one in found.experiments:
        yield clean(f"{one.candidate.display_name} against {one.reference.display_name}")
        yield clean("\n".join(_differences(one)))
        rows = [
            (*_row(metric.comparison)[:-1], f"{metric.limit * 100:g} %", metric.outcome.value.replace("_", " "))
            for metric in one.metrics
        ]
        yield table(("metric", "n", "reference", "candidate", "change", "95 % interval", "limit", "result"), rows)
        notes = [*(finding.message for finding in one.findings), *filter(None, map(_gate_note, one.metrics))]
        yield clean("\n".join(f"  {note}" for note in notes) + ("\n" if notes else ""))
    yield from _unmatched(found)


def _gate_note(one: GateMetric) -> str | None:
    if one.comparison.reason:
        return f"{one.comparison.metric}: {one.comparison.reason}."
    needed = one.cycles_needed
    if needed is None:
        return None
    if needed.cycles is None:
        return f"{one.comparison.metric}: no number of cycles would decide so close to the limit: {needed.reason}."
    if not needed.more:
        return None
    cycles = "cycle" if needed.more == 1 else "cycles"
    return f"{one.comparison.metric}: about {needed.more} more {cycles} of each would decide."


def _unmatched(found: Comparison | Gate) -> Iterator[str]:
    for side, unmatched in (("reference", found.unmatched_reference), ("candidate", found.unmatched_candidate)):
        for one in unmatched:
            yield clean(f"not compared, of the {side}: {one.display_name}: {one.reason}")


def _differences(one: ExperimentComparison | GateExperiment) -> Iterator[str]:
    for difference in one.differences[:_SHOWN]:
        yield f"  {difference.part} {difference.path}: {difference.reference} → {difference.candidate}"
    if len(one.differences) > _SHOWN:
        yield f"  and {len(one.differences) - _SHOWN} more differences (--json has all)"


def _table(one: ExperimentComparison) -> RenderableType:
    rows = [_row(metric) for metric in one.metrics]
    return table(("metric", "n", "reference", "candidate", "change", "95 % interval", "result"), rows)


def _row(one: MetricComparison) -> tuple[str, ...]:
    values = [one.reference.mean or 0.0, one.candidate.mean or 0.0]
    scale = scale_for(values, one.unit)

    def mean(found: MeanEstimate) -> str:
        half = None if found.interval is None else (found.interval.high - found.interval.low) / 2
        return f"{mean_and_spread(found.mean, half, scale)} {scale.unit}" if found.n else MISSING

    result = one.word.value.replace("_", " ")
    n = f"{one.reference.n}, {one.candidate.n}" if one.pairs is None else f"{one.pairs} pairs"
    return (
        one.metric,
        n,
        mean(one.reference),
        mean(one.candidate),
        _change(one),
        _interval(one, one.widened),
        result,
    )


def _change(one: MetricComparison) -> str:
    if one.estimate is None:
        return MISSING
    return _percent(one.estimate) if one.scale == "ratio" else _signed(one.estimate, one.unit)


def _interval(one: MetricComparison, found: ConfidenceInterval | None) -> str:
    if found is None:
        return MISSING
    shown = _percent if one.scale == "ratio" else lambda value: _signed(value, one.unit)
    return f"{shown(found.low)} to {shown(found.high)}"


def _percent(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.2f} %"


def _signed(value: float, unit: str) -> str:
    return ("+" if value > 0 else "") + quantity(value, unit)


def _note(one: MetricComparison) -> str | None:
    if one.word in (ComparisonWord.NOT_COMPARABLE, ComparisonWord.NOT_ENOUGH_EVIDENCE):
        return f"{one.metric}: {one.reason}."
    needed = one.cycles_needed
    if needed is None:
        return None
    size = (
        f"{number(abs(needed.difference) * 100, 2)} %"
        if one.scale == "ratio"
        else quantity(needed.difference, one.unit)
    )
    if needed.cycles is None:
        return f"{one.metric}: no number of cycles would show a difference of {size}: {needed.reason}."
    if not needed.more:
        return None
    cycles = "cycle" if needed.more == 1 else "cycles"
    return f"{one.metric}: about {needed.more} more {cycles} of each would show a difference of {size}."
