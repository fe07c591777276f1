"""`lemctl compare`: what differs between experiments, and what is shown of it."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.exits import ExitCode
from lem_client.cli.following import aggregate_completed
from lem_client.cli.method_option import MethodOption
from lem_client.cli.naming import comparable_of
from lem_client.cli.session import print_error, session_of
from lem_client.render.comparison_table import comparison_parts
from lem_domain.wire.decisions import Allowance

_SHARE = re.compile(r"^(\d+(?:\.\d+)?)\s*(%?)$")


def share_of(text: str) -> float:
    """Return `2%` or `0.02` as a fraction between 0 and 1."""
    found = _SHARE.match(text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < share < 1:
        raise typer.BadParameter(f"{text!r} is no share between 0 and 100 %; write for example 2%.")
    return share


@command("compare", Section.INSPECT)
def compare(
    context: typer.Context,
    reference: Annotated[
        str, typer.Argument(metavar="A", help="Campaign or experiment: an id, a name, or campaign:experiment.")
    ],
    candidate: Annotated[
        str | None,
        typer.Argument(
            metavar="B", help="Another; if omitted the first experiment of A is compared with each other one."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="METRIC", help="Name, or the last part of one. Repeatable.")
    ] = None,
    margin: Annotated[
        str | None, typer.Option(metavar="SHARE", help="Differences below this don't matter, for example 2%.")
    ] = None,
    match: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Key that differs on purpose between A and B. Repeatable.")
    ] = None,
    allow: Annotated[
        list[Allowance] | None,
        typer.Option(metavar="different_work", help="Call B better or worse although the work differs."),
    ] = None,
    method: MethodOption = None,
) -> None:
    """Compare B with A: what differs, by how much each metric changed, and whether that is shown.

    Aggregates completed runs first. Exits with 0 whatever the comparison shows, with 1 if nothing can be compared.

    \b
    lemctl compare batch-sweep
    lemctl compare batch-sweep:batch_size=1 batch-sweep:batch_size=8 --margin 2%
    lemctl compare nightly-41 nightly-42 --metric energy_per_output_token_j
    lemctl compare on-pytorch on-vllm --match backend --match pytorch --match vllm
    """
    session = session_of(context)
    share = None if margin is None else share_of(margin)
    sides = [comparable_of(session.client, text) for text in (reference, candidate) if text is not None]
    problems = [
        problem
        for campaign_id in dict.fromkeys(side.campaign_id for side in sides)
        for problem in aggregate_completed(session, campaign_id, method)
    ]
    found = session.client.compare(
        sides[0].id,
        sides[1].id if len(sides) > 1 else None,
        match=match or (),
        metrics=metric or (),
        margin=share,
        allow=allow or (),
        method=method,
    )
    if session.as_json:
        session.print_json(found)
    else:
        session.print(*comparison_parts(found))
    for problem in problems:
        print_error(problem)
    raise typer.Exit(ExitCode.DONE)
