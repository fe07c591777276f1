"""The result table of a campaign, as text in cells: what the formats for people share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from lem_client.render.numbers import MISSING, Scale, mean_and_spread, scale_for
from lem_domain.results.method import DEFAULT_METHOD
from lem_domain.results.metrics import METRICS, Metric
from lem_domain.results.run import CycleSummary
from lem_domain.states import RunState
from lem_domain.wire.campaigns import CampaignResults, ExperimentResults

_LONGEST_MESSAGE: Final = 400


COLUMNS: Final = tuple(metric for metric in METRICS if metric.heading is not None)
"""Metrics that the table shows."""


class ResultTable(NamedTuple):
    """Headings, rows, and notes for below the table."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def result_table(results: CampaignResults) -> ResultTable:
    """Build the table: mean ± sd over cycles per experiment. Notes give reasons and findings, each once."""
    columns = [column for column in COLUMNS if not column.optional or _has_values(results.experiments, column)]
    scales = {column: _scale(results.experiments, column) for column in columns}
    headings = ("experiment", "n", "verdict", *(_heading(column, scale) for column, scale in scales.items()))
    rows = tuple(_row(one, scales) for one in results.experiments)
    return ResultTable((*headings[:4], "method", *headings[4:]), rows, _notes(results, columns))


def _has_values(experiments: Sequence[ExperimentResults], column: Metric) -> bool:
    return any((metric := _metric(one, column.name)) and metric.mean is not None for one in experiments)


def _scale(experiments: Sequence[ExperimentResults], column: Metric) -> Scale:
    if column.unit != "J":
        return Scale(1.0, column.unit)
    means = [metric.mean for one in experiments if (metric := _metric(one, column.name)) and metric.mean is not None]
    return scale_for(means, column.unit)


def _heading(column: Metric, scale: Scale) -> str:
    heading = str(column.heading)
    return heading.replace("energy", scale.unit) if column.unit == "J" else heading


def _row(one: ExperimentResults, scales: dict[Metric, Scale]) -> tuple[str, ...]:
    cells = []
    for column, scale in scales.items():
        metric = _metric(one, column.name)
        cells.append(MISSING if metric is None else mean_and_spread(metric.mean, metric.sd, scale))
    aggregated = sum(outcome.state is RunState.AGGREGATED for outcome in one.outcomes)
    n = str(aggregated) if aggregated == len(one.outcomes) else f"{aggregated} of {len(one.outcomes)}"
    return (one.display_name, n, one.verdict or MISSING, cells[0], _energy_method(one), *cells[1:])


def _energy_method(one: ExperimentResults) -> str:
    """Method of the energy, its parts, and the share of a model's constant: `modelled: package+dram, 92% constant`."""
    if one.energy_method is None:
        return MISSING
    included = "+".join(_device(part) for part in one.energy_includes)
    text = f"{one.energy_method}: {included}" if included else one.energy_method
    whole, constant = (_metric(one, name) for name in ("energy.total", "energy.constant"))
    if whole is None or constant is None or not whole.mean or constant.mean is None:
        return text
    return f"{text}, {constant.mean / whole.mean:.0%} constant"


def _device(part: str) -> str:
    """Shorten a UUID: whole ones are wider than the table, and the beginning is distinct enough."""
    return part if len(part) <= 16 else part[:12] + "…"


def _notes(results: CampaignResults, columns: Sequence[Metric]) -> tuple[str, ...]:
    notes: dict[str, None] = {}
    for one in results.experiments:
        for column in columns:
            metric = _metric(one, column.name)
            if metric is not None and metric.mean is None and one.verdict is not None:
                notes[f"{MISSING} {one.display_name}: {column.heading}: {metric.reason}"] = None
        missing: dict[str, list[int]] = {}
        for outcome in one.outcomes:
            if outcome.state is not RunState.AGGREGATED:
                state = outcome.state.value + (
                    f" ({outcome.reason})" if outcome.reason and outcome.reason != outcome.state.value else ""
                )
                if outcome.message:
                    state += f": {_one_line(outcome.message)}"
                missing.setdefault(state, []).append(outcome.cycle)
        for state, cycles in missing.items():
            plural = "cycle" if len(cycles) == 1 else "cycles"
            notes[f"{MISSING} {one.display_name}: {plural} {_ranges(cycles)}: no result, {state}"] = None
    return (*notes, *_findings(results), *_other_methods(results))


def _findings(results: CampaignResults) -> list[str]:
    """Return each finding once, with the experiments' names unless every measured experiment has it."""
    measured_experiments = sum(one.verdict is not None for one in results.experiments)
    names_by_finding: dict[str, list[str]] = {}
    for one in results.experiments:
        for finding in dict.fromkeys(one.findings):
            names_by_finding.setdefault(finding, []).append(one.display_name)
    return [
        finding if len(names) >= measured_experiments else f"{', '.join(names)}: {finding}"
        for finding, names in names_by_finding.items()
    ]


def _other_methods(results: CampaignResults) -> list[str]:
    """Return a note for experiments whose results are not by the default method."""
    by_method: dict[str, list[str]] = {}
    for one in results.experiments:
        if one.method not in (None, DEFAULT_METHOD):
            by_method.setdefault(str(one.method), []).append(one.display_name)
    return [f"{', '.join(names)}: method {method}, not {DEFAULT_METHOD}" for method, names in by_method.items()]


def _one_line(message: str) -> str:
    """Shorten an engine's message of many lines to its first; `lemctl show` has the rest."""
    first = message.partition("\n")[0]
    return first if len(first) <= _LONGEST_MESSAGE else first[: _LONGEST_MESSAGE - 1] + "…"


def _ranges(numbers: Sequence[int]) -> str:
    """`1–3, 5`."""
    ordered = sorted(numbers)
    spans: list[list[int]] = []
    for value in ordered:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)


def _metric(one: ExperimentResults, name: str) -> CycleSummary | None:
    return next((metric for metric in one.metrics if metric.metric == name), None)
