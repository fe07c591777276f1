"""The result table of a campaign: for people, for Markdown, and as CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Final, NamedTuple

from lem_client.render.numbers import MISSING, Scale, mean_and_spread, scale_for
from lem_domain.results.run import CycleSummary
from lem_domain.states import RunState
from lem_domain.wire.campaigns import CampaignResults, ExperimentResults

ENERGY: Final = "efficiency.energy_per_output_token_j"
LONGEST_MESSAGE: Final = 400


class Column(NamedTuple):
    """A metric of the table."""

    heading: str
    metric: str
    unit: str


COLUMNS: Final = (
    Column("energy per output token", ENERGY, "J"),
    Column("output tok/s", "speed.output_rate_tok_s", "tok/s"),
    Column("TTFT ms", "speed.ttft_ms.mean", "ms"),
    Column("ITL ms", "speed.itl_ms.mean", "ms"),
    Column("mean W", "energy.mean_power_w", "W"),
)

_CSV_HEADINGS: Final = (
    "experiment_id",
    "experiment",
    "verdict",
    "energy_method",
    "energy_includes",
    "metric",
    "unit",
    "n",
    "mean",
    "sd",
    "cv",
    "reason",
)


class ResultTable(NamedTuple):
    """Headings, rows and what stands below."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def result_table(results: CampaignResults) -> ResultTable:
    """Mean ± sd over cycles per experiment; below it what must be known about the figures, each thing once."""
    scales = {column.metric: _scale(results.experiments, column) for column in COLUMNS}
    headings = ("experiment", "n", "verdict", *(_heading(column, scales[column.metric]) for column in COLUMNS))
    rows = tuple(_row(one, scales) for one in results.experiments)
    return ResultTable((*headings[:4], "method", *headings[4:]), rows, _notes(results))


def markdown(results: CampaignResults) -> str:
    """The same as a Markdown table with a list below."""
    table = result_table(results)
    lines = [f"### {_escaped(results.name)}", "", _line(table.headings)]
    lines.append(
        "|" + "|".join(" --- " if index in (0, 2, 4) else " ---: " for index in range(len(table.headings))) + "|"
    )
    lines.extend(_line(row) for row in table.rows)
    if table.notes:
        lines.extend(("", *(f"- {_escaped(note)}" for note in table.notes)))
    return "\n".join(lines) + "\n"


def csv_text(results: CampaignResults) -> str:
    """One line per experiment and metric, unscaled; what is missing is an empty field with its reason beside it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEADINGS)
    for one in results.experiments:
        head = (one.experiment_id, one.display_name, one.verdict or "", one.energy_method or "")
        for metric in one.metrics:
            figures = ("" if figure is None else repr(figure) for figure in (metric.mean, metric.sd, metric.cv))
            includes = "+".join(one.energy_includes)
            row = (*head, includes, metric.metric, metric.unit, len(metric.values), *figures, metric.reason or "")
            writer.writerow(_not_a_formula(cell) for cell in row)
    return out.getvalue()


def _scale(experiments: Sequence[ExperimentResults], column: Column) -> Scale:
    if column.unit != "J":
        return Scale(1.0, column.unit)
    means = [metric.mean for one in experiments if (metric := _metric(one, column.metric)) and metric.mean is not None]
    return scale_for(means, column.unit)


def _heading(column: Column, scale: Scale) -> str:
    return f"{scale.unit} per output token" if column.metric == ENERGY else column.heading


def _row(one: ExperimentResults, scales: dict[str, Scale]) -> tuple[str, ...]:
    cells = []
    for column in COLUMNS:
        metric = _metric(one, column.metric)
        scale = scales[column.metric]
        cells.append(MISSING if metric is None else mean_and_spread(metric.mean, metric.sd, scale))
    aggregated = sum(outcome.state is RunState.AGGREGATED for outcome in one.outcomes)
    n = str(aggregated) if aggregated == len(one.outcomes) else f"{aggregated} of {len(one.outcomes)}"
    return (one.display_name, n, one.verdict or MISSING, cells[0], energy_method(one), *cells[1:])


def energy_method(one: ExperimentResults) -> str:
    """How the energy figures came about and what they include: `modelled: package+dram`."""
    if one.energy_method is None:
        return MISSING
    included = "+".join(_device(part) for part in one.energy_includes)
    return f"{one.energy_method}: {included}" if included else one.energy_method


def _device(part: str) -> str:
    """A device's UUID is longer than a table is wide; its beginning tells it apart."""
    return part if len(part) <= 16 else part[:12] + "…"


def _notes(results: CampaignResults) -> tuple[str, ...]:
    notes: dict[str, None] = {}
    for one in results.experiments:
        for column in COLUMNS:
            metric = _metric(one, column.metric)
            if metric is not None and metric.mean is None and one.verdict is not None:
                notes[f"{MISSING} {one.display_name}: {column.heading}: {metric.reason}"] = None
        missing: dict[str, list[int]] = {}
        for outcome in one.outcomes:
            if outcome.state is not RunState.AGGREGATED:
                said = outcome.state.value + (
                    f" ({outcome.reason})" if outcome.reason and outcome.reason != outcome.state.value else ""
                )
                if outcome.message:
                    said += f": {_one_line(outcome.message)}"
                missing.setdefault(said, []).append(outcome.cycle)
        for said, cycles in missing.items():
            plural = "cycle" if len(cycles) == 1 else "cycles"
            notes[f"{MISSING} {one.display_name}: {plural} {_ranges(cycles)}: no result, {said}"] = None
    return (*notes, *_findings(results))


def _findings(results: CampaignResults) -> list[str]:
    """Each once; one that not every measured experiment has is told of those that have it."""
    measured = sum(one.verdict is not None for one in results.experiments)
    holders: dict[str, list[str]] = {}
    for one in results.experiments:
        for finding in dict.fromkeys(one.findings):
            holders.setdefault(finding, []).append(one.display_name)
    return [
        finding if len(names) >= measured else f"{', '.join(names)}: {finding}" for finding, names in holders.items()
    ]


def _one_line(message: str) -> str:
    """An engine's last words may be many lines; the first is enough here, `lemctl show` has the rest."""
    first = message.partition("\n")[0]
    return first if len(first) <= LONGEST_MESSAGE else first[: LONGEST_MESSAGE - 1] + "…"


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


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {_escaped(cell)} " for cell in cells) + "|"


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _not_a_formula(cell: object) -> object:
    """A name that a spreadsheet would run as a formula is shown as text."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "@", "\t", "\r")) else cell
