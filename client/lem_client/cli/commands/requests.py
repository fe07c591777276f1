"""`lemctl requests`: the requests of a run with the energy of each."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.method_option import MethodOption
from lem_client.cli.session import session_of
from lem_client.render import energy_report
from lem_client.render.numbers import MISSING, number, quantity, scale_for
from lem_client.render.terminal import clean, table
from lem_domain.results.figures import Figure
from lem_domain.results.requests import RequestEnergySummary, RequestRow

if TYPE_CHECKING:
    from rich.console import RenderableType


class SortBy(StrEnum):
    """Orders of the requests; the largest come first, except in the order of arrival."""

    ENERGY = "energy"
    PROMPT_TOKENS = "prompt_tokens"
    GENERATED_TOKENS = "generated_tokens"
    ARRIVAL = "arrival"


_ORDERS: dict[SortBy, Callable[[RequestRow], tuple[bool, float]]] = {
    SortBy.ENERGY: lambda one: (one.energy_j is None, -(one.energy_j or 0.0)),
    SortBy.PROMPT_TOKENS: lambda one: (False, -one.prompt_tokens),
    SortBy.GENERATED_TOKENS: lambda one: (False, -one.generated_tokens),
    SortBy.ARRIVAL: lambda one: (False, one.arrival_ns),
}


@command("requests", Section.INSPECT)
def requests(
    context: typer.Context,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id of a run; `lemctl show CAMPAIGN` lists them.")],
    sort: Annotated[SortBy, typer.Option(help="Order of the requests.")] = SortBy.ENERGY,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of requests in the table.")] = 20,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all requests as CSV.")] = False,
    method: MethodOption = None,
) -> None:
    """Show the energy of each request of a run, of failed requests, and of idle time; they add up to the window's.

    The server computes it from the raw evidence, which takes as long as aggregating the run.

    \b
    lemctl requests run_0199…
    lemctl requests run_0199… --sort prompt_tokens --limit 100
    lemctl requests run_0199… --csv > requests.csv
    """
    session = session_of(context)
    found = session.client.requests(run, method=method)
    rows = sorted(found.requests, key=_ORDERS[sort])
    if session.as_json:
        session.print_json(found.model_copy(update={"requests": tuple(rows)}))
    elif as_csv:
        sys.stdout.write(_csv(rows))
    else:
        session.print(clean("\n".join(_summary_lines(found.summary))))
        session.print(_table(rows[:limit]))
        if len(rows) > limit:
            session.note(f"{len(rows) - limit} more requests; --limit shows more, --csv all")


def _summary_lines(one: RequestEnergySummary) -> list[str]:
    unit = {"flops": "FLOPs", "tokens": "processed tokens, because a rank did not report its model"}[one.weights]
    lines = [
        f"window      {energy_report.energy(one.total)}",
        f"requests    {one.requests}, {one.failed_requests} of them failed",
    ]
    if one.idle_energy_j.value is None:
        return [*lines, f"energy of each request: {MISSING} ({one.idle_energy_j.reason})"]
    each = one.per_request_j
    total = one.total.joules
    lines += [
        f"finished    {_part(one.finished_energy_j, total)}",
        f"failed      {_part(one.failed_energy_j, total)}",
        f"idle        {_part(one.idle_energy_j, total)}, while no engine worked on a request",
    ]
    if each.mean is not None:
        lines.append(
            f"per request {quantity(each.p50, 'J')} median, {quantity(each.mean, 'J')} mean, "
            f"{quantity(each.p95, 'J')} at the 95th percentile, {quantity(each.max, 'J')} at most"
        )
    if one.without_energy:
        lines.append(f"without     {one.without_energy} requests have no token with a time, and so no energy")
    return [
        *lines,
        f"divided     at every moment over the running requests by their {unit}; readings resolve "
        f"{energy_report.figure(one.resolution_ms)}",
    ]


def _part(figure: Figure, total: float | None) -> str:
    share = "" if figure.value is None or not total else f" ({figure.value / total:.1%})"
    return f"{energy_report.figure(figure)}{share}"


def _table(rows: Sequence[RequestRow]) -> RenderableType:
    scale = scale_for([one.energy_j for one in rows if one.energy_j is not None], "J")
    headings = ("process", "request", "prompt tokens", "output tokens", scale.unit, f"± {scale.unit}", "state")
    cells = [
        (
            one.process,
            str(one.request_id),
            str(one.prompt_tokens),
            str(one.generated_tokens),
            number(None if one.energy_j is None else one.energy_j / scale.factor, 4),
            number(None if one.bound_j is None else one.bound_j / scale.factor, 2),
            "failed" if one.failed else "finished",
        )
        for one in rows
    ]
    return table(headings, cells, right=headings[1:6])


def _csv(rows: Sequence[RequestRow]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(RequestRow.model_fields)
    for one in rows:
        writer.writerow("" if value is None else value for value in one.model_dump().values())
    return out.getvalue()
