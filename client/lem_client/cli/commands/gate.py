"""`lemctl gate`: whether a candidate stays within the regressions that are allowed, as an exit code."""

from __future__ import annotations

from typing import Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.commands.compare import share_of
from lem_client.cli.exits import ExitCode
from lem_client.cli.following import aggregate_completed
from lem_client.cli.method_option import MethodOption
from lem_client.cli.naming import comparable_of
from lem_client.cli.session import print_error, session_of
from lem_client.render.comparison_table import gate_parts
from lem_domain.wire.decisions import Allowance, GateOutcome

_CODES = {
    GateOutcome.PASSED: ExitCode.DONE,
    GateOutcome.REGRESSED: ExitCode.FAILED,
    GateOutcome.NOT_ENOUGH_EVIDENCE: ExitCode.NOT_ENOUGH_EVIDENCE,
}


def limit_of(text: str) -> tuple[str, float]:
    """Return `metric=3%` as a metric and a fraction."""
    metric, equals, share = text.partition("=")
    if not equals or not metric:
        raise typer.BadParameter(f"{text!r} is no limit; write for example energy_per_output_token_j=3%.")
    return metric.strip(), share_of(share)


@command("gate", Section.INSPECT)
def gate(
    context: typer.Context,
    candidate: Annotated[
        str, typer.Argument(metavar="ID", help="Campaign or experiment: an id, a name, or campaign:experiment.")
    ],
    against: Annotated[str, typer.Option(metavar="ID", help="The reference, in the same way.")],
    max_regression: Annotated[
        list[str], typer.Option(metavar="METRIC=SHARE", help="By how much a metric may be worse. Repeatable.")
    ],
    match: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Key that differs on purpose. Repeatable.")
    ] = None,
    allow: Annotated[
        list[Allowance] | None, typer.Option(metavar="different_work", help="Decide although the work differs.")
    ] = None,
    method: MethodOption = None,
) -> None:
    """Decide whether a candidate is worse than a reference by more than is allowed.

    Exits with 0 if every metric is shown to be within its limit, with 1 if one is shown to be beyond it, and with 3 if
    the evidence is not enough to say. Another failure exits with 1 or 2 and prints an error.

    \b
    lemctl gate nightly-42 --against nightly-41 --max-regression energy_per_output_token_j=3%
    lemctl gate head --against base --max-regression output_rate_tok_s=5% --json > gate.json
    """
    session = session_of(context)
    limits = dict(limit_of(text) for text in max_regression)
    reference, held = (comparable_of(session.client, text) for text in (against, candidate))
    for campaign_id in dict.fromkeys((reference.campaign_id, held.campaign_id)):
        for problem in aggregate_completed(session, campaign_id, method):
            print_error(problem)
    found = session.client.gate(reference.id, held.id, limits, match=match or (), allow=allow or (), method=method)
    if session.as_json:
        session.print_json(found)
    else:
        session.print(*gate_parts(found))
    raise typer.Exit(_CODES[found.outcome])
