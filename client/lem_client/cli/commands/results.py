"""`lemctl results`: a campaign's results in one of several formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.exits import ExitCode
from lem_client.cli.following import aggregate_completed, show_table
from lem_client.cli.method_option import MethodOption
from lem_client.cli.naming import campaign_id_of
from lem_client.cli.session import print_error, session_of
from lem_client.files.calibration_file import read_calibration
from lem_client.render.formats import format_names, renderer

_FORMATS = "|".join(format_names())


def _known_format(name: str) -> str:
    if name not in format_names():
        raise typer.BadParameter(f"{name!r} is not one of {_FORMATS}.")
    return name


@command("results", Section.INSPECT)
def results(
    context: typer.Context,
    campaign: Annotated[str, typer.Argument(metavar="ID", help="Id or name of a campaign.")],
    format_: Annotated[
        str, typer.Option("--format", metavar=_FORMATS, callback=_known_format, help="Format of the output.")
    ] = "table",
    method: MethodOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE|none",
            help="Correct power readings by this file instead of the campaign's energy.calibration; or by nothing.",
        ),
    ] = None,
) -> None:
    """Show a campaign's results: mean ± standard deviation over cycles, the verdict and every finding.

    Aggregates completed runs first; with --method also runs that have results by other methods only, with
    --calibration also those that have results with other calibrations. What is aggregated last is shown from then on.
    Exits with 1 if any of them can't be aggregated.

    \b
    lemctl results quickstart
    lemctl results cmp_0199… --format csv > results.csv
    lemctl results cmp_0199… --format markdown >> REPORT.md
    lemctl results cmp_0199… --method m1
    lemctl results quickstart --calibration calibration.yaml
    """
    session = session_of(context)
    chosen = "json" if session.as_json else format_
    request = None if calibration is None else read_calibration(calibration)
    campaign_id = campaign_id_of(session.client, campaign)
    # In every other format a note would be part of the document.
    problems = aggregate_completed(session if chosen == "table" else session.silent(), campaign_id, method, request)
    found = session.client.results(campaign_id, method=method)
    shown = renderer(chosen)(found)
    if isinstance(shown, str):
        sys.stdout.write(shown)
    else:
        show_table(session, found)
    for problem in problems:
        print_error(problem)
    raise typer.Exit(ExitCode.FAILED if problems else ExitCode.DONE)
