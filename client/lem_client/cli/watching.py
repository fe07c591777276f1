"""Follows a campaign to its end, aggregates what completed, and shows the results; what `run` and `watch` share."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from lem_client.cli.exits import Exit
from lem_client.cli.session import Session, clean, table
from lem_client.errors import AnswerError
from lem_client.render.progress import Lines, Picture, live_view
from lem_client.render.results import result_table
from lem_domain.states import RunState
from lem_domain.wire.campaigns import CampaignResults
from lem_domain.wire.events import CampaignEvent


def watch_to_the_end(session: Session, campaign_id: str) -> Exit:
    """Show what happens until nothing more does, then the results; whether every run has one."""
    with taken_up_again(campaign_id):
        _follow(session, campaign_id)
        problems = aggregate_completed(session, campaign_id)
        results = session.client.results(campaign_id)
    if session.as_json:
        session.print_json({"type": "results", **results.model_dump(mode="json")})
    else:
        show_results(session, results)
    for problem in problems:
        tell(f"error: {problem}")
    return Exit.DONE if results.runs.aggregated == results.runs.total else Exit.FAILED


@contextmanager
def taken_up_again(campaign_id: str) -> Iterator[None]:
    """Ctrl-C leaves the campaign running and says how to come back to it."""
    try:
        yield
    except KeyboardInterrupt:
        tell(f"The campaign goes on without you. Watch it again: lemctl watch {campaign_id}")
        tell(f"Or cancel it: lemctl cancel {campaign_id}")
        raise typer.Exit(Exit.INTERRUPTED) from None


def aggregate_completed(session: Session, campaign_id: str) -> tuple[str, ...]:
    """Aggregate every run that is completed and not aggregated yet; a sentence for each that can't be."""
    problems = []
    for run in tuple(session.client.runs(campaign_id=campaign_id, state=RunState.COMPLETED)):
        session.say(f"aggregating {clean(run.display_name)}, cycle {run.cycle} …")
        try:
            session.client.aggregate(run.id)
        except AnswerError as error:
            problems.append(f"{run.id}: {error}")
    return tuple(problems)


def show_results(session: Session, results: CampaignResults) -> None:
    """The table, and below it what must be known about it."""
    shown = result_table(results)
    right = tuple(heading for heading in shown.headings if heading not in ("experiment", "verdict", "method"))
    session.print(table(shown.headings, shown.rows, right=right))
    for note in shown.notes:
        session.print(clean(note))
    session.say(f"More: lemctl results {results.campaign_id}, lemctl show {results.campaign_id}")


def tell(line: str) -> None:
    """Something for whoever sits at the terminal, beside the output."""
    print(clean(line), file=sys.stderr, flush=True)  # noqa: T201


def _follow(session: Session, campaign_id: str) -> None:
    if session.as_json:
        for event in session.client.follow_campaign(campaign_id):
            session.print_json(event)
    elif session.live:
        _follow_live(session, campaign_id)
    else:
        lines = Lines(time.monotonic)
        shown = False
        for event in session.client.follow_campaign(campaign_id):
            if isinstance(event, CampaignEvent) and not shown:
                shown = True
                session.say(f"{clean(event.campaign.name)}: {event.campaign.id}, {event.campaign.runs.total} runs")
            for line in lines.of(event):
                session.say(clean(line))


def _follow_live(session: Session, campaign_id: str) -> None:
    from rich.live import Live  # noqa: PLC0415 - only where somebody looks

    picture = Picture()
    begin = time.monotonic()

    def view() -> object:
        return live_view(picture, time.monotonic() - begin)

    with Live(get_renderable=view, console=session.console, refresh_per_second=4, transient=True):  # type: ignore[arg-type]
        for event in session.client.follow_campaign(campaign_id):
            picture.take(event)
    session.say(picture.summary())
