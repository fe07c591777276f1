"""`lemctl results`: the result table of a campaign, for people and for programs."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from lem_client.cli.exits import Exit
from lem_client.cli.naming import campaign_id_of
from lem_client.cli.session import clean, session_of
from lem_client.cli.watching import aggregate_completed, show_results, tell
from lem_client.render.results import csv_text, markdown


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("results")(results)


def results(
    context: typer.Context,
    campaign: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a campaign.")],
    format_: Annotated[Format, typer.Option("--format", help="How to write them.")] = Format.TABLE,
) -> None:
    """Show a campaign's results: mean ± standard deviation over cycles, with the verdict and every finding.

    Runs that completed and were not aggregated yet are aggregated first.

    \b
    lemctl results quickstart
    lemctl results cmp_0199… --format csv > results.csv
    lemctl results cmp_0199… --format markdown >> REPORT.md
    """
    session = session_of(context)
    chosen = Format.JSON if session.as_json else format_
    campaign_id = campaign_id_of(session.client, campaign)
    # Only a table leaves room for a word on what is being done.
    quiet = session if chosen is Format.TABLE else session.silent()
    problems = aggregate_completed(quiet, campaign_id)
    found = session.client.results(campaign_id)
    if chosen is Format.JSON:
        session.print_json(found)
    elif chosen is Format.CSV:
        sys.stdout.write(clean(csv_text(found)))
    elif chosen is Format.MARKDOWN:
        sys.stdout.write(clean(markdown(found)))
    else:
        show_results(session, found)
    for problem in problems:
        tell(f"error: {problem}")
    raise typer.Exit(Exit.FAILED if problems else Exit.DONE)
