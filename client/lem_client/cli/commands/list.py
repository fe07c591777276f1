"""`lemctl list`: lists campaigns."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from lem_client.cli.commands import Section, command
from lem_client.cli.exits import UsageError
from lem_client.cli.session import session_of
from lem_client.render.explain import local_time, run_counts
from lem_client.render.terminal import table
from lem_domain.states import CampaignState


@command("list", Section.INSPECT)
def list_campaigns(
    context: typer.Context,
    state: Annotated[CampaignState | None, typer.Option(help="Only campaigns in this state.")] = None,
    name: Annotated[str | None, typer.Option(help="Only campaigns of exactly this name.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only campaigns with this label; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Largest number of campaigns.")] = 20,
) -> None:
    """List campaigns, the newest first.

    \b
    lemctl list
    lemctl list --state active --limit 100
    lemctl list --label team=nlp --label machine=a100
    """
    session = session_of(context)
    labels = dict(map(_label, label or ()))
    found = tuple(islice(session.client.campaigns(state=state, name=name, labels=labels), limit))
    if session.as_json:
        session.print_json(found)
    elif not found and (state is not None or name is not None or labels):
        session.note("No campaign matches; `lemctl list` shows all.")
    elif not found:
        session.note("There are no campaigns; `lemctl run FILE` submits one.")
    else:
        rows = [
            (one.id, one.name, one.state.value, run_counts(one), local_time(one.created_at), one.submitted_by)
            for one in found
        ]
        session.print(table(("id", "name", "state", "runs", "submitted", "by"), rows))


def _label(given: str) -> tuple[str, str]:
    key, separator, value = given.partition("=")
    if not key or not separator:
        raise UsageError(f"--label {given}: write it as KEY=VALUE, for example team=nlp.")
    return key, value
