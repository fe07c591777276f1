"""Follows a campaign to its end, aggregates its runs and shows the results: the common part of `run` and `watch`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import typer

from lem_client.cli.exits import ExitCode
from lem_client.cli.session import Session, print_error, print_note
from lem_client.client import Client
from lem_client.render.formats import table
from lem_client.render.progress import CampaignPicture, EventLines, live_view
from lem_client.render.terminal import clean
from lem_domain.errors import LemError
from lem_domain.results.method import MethodVersion
from lem_domain.states import RunState
from lem_domain.wire.campaigns import AggregationRequest, CampaignResults
from lem_domain.wire.events import AggregationEvent, CampaignEvent


def follow_to_the_end(session: Session, campaign_id: str) -> ExitCode:
    """Show a campaign's events until it settles, then its results. `FAILED` unless every run has a result."""
    with note_on_interrupt(campaign_id):
        _follow(session, campaign_id)
        problems = aggregate_completed(session, campaign_id)
        results = session.client.results(campaign_id)
    if session.as_json:
        session.print_json({"type": "results", **dict(results)})
    else:
        show_table(session, results)
    for problem in problems:
        print_error(problem)
    return ExitCode.DONE if results.runs.aggregated == results.runs.total else ExitCode.FAILED


@contextmanager
def note_on_interrupt(campaign_id: str) -> Iterator[None]:
    """On Ctrl-C leave the campaign running and print how to return to it."""
    try:
        yield
    except KeyboardInterrupt:
        print_note(f"The campaign continues on the server. Watch it again: lemctl watch {campaign_id}")
        print_note(f"Or cancel it: lemctl cancel {campaign_id}")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def aggregate_completed(
    session: Session,
    campaign_id: str,
    method: MethodVersion | None = None,
    request: AggregationRequest | None = None,
) -> tuple[str, ...]:
    """Aggregate the campaign's completed runs; return a sentence for each run that can't be aggregated.

    With a method also those that have results by other methods only, with a request also those whose newest result has
    other calibrations.
    """
    runs = session.client.campaign(campaign_id).runs
    count = runs.completed
    if request is not None:
        count += runs.aggregated
    elif method is not None:
        for experiment in session.client.results(campaign_id, method=method).experiments:
            count += sum(one.state is RunState.AGGREGATED and one.verdict is None for one in experiment.outcomes)
    if not count:
        return ()
    most = "up to " if request is not None else ""
    session.note(f"aggregating {most}{count} {'run' if count == 1 else 'runs'} …")
    is_done = Event()
    if not session.quiet and not session.as_json:
        # A daemon thread: it must not delay Ctrl-C.
        Thread(target=_print_aggregation_progress, args=(session, campaign_id, is_done), daemon=True).start()
    try:
        outcome = session.client.aggregate_campaign(campaign_id, method=method, request=request)
    finally:
        is_done.set()
    problems = [f"{one.run_id}: {one.message}" for one in outcome.problems]
    if unlisted := outcome.failed - len(problems):
        problems.append(f"{unlisted} more runs can't be aggregated; `lemctl show {campaign_id}` lists the runs.")
    return tuple(problems)


def _print_aggregation_progress(session: Session, campaign_id: str, is_done: Event) -> None:
    # The request may begin after the stream has ended, so a short aggregation shows no progress.
    lines = EventLines(time.monotonic)
    with contextlib.suppress(LemError), Client(session.server, token_file=session.token_file) as client:
        for event in client.follow_campaign(campaign_id):
            if is_done.is_set():
                return
            if isinstance(event, AggregationEvent) and 0 < event.done < event.total:
                for line in lines.of(event):
                    session.note(line)


def show_table(session: Session, results: CampaignResults) -> None:
    """Print the result table and where to find more."""
    session.print(table.render(results))
    session.note(f"More: lemctl results {results.campaign_id}, lemctl show {results.campaign_id}")


def _follow(session: Session, campaign_id: str) -> None:
    if session.as_json:
        for event in session.client.follow_campaign(campaign_id):
            session.print_json(event)
    elif session.is_live:
        _follow_live(session, campaign_id)
    else:
        lines = EventLines(time.monotonic)
        is_first = True
        for event in session.client.follow_campaign(campaign_id):
            if isinstance(event, CampaignEvent) and is_first:
                is_first = False
                session.note(f"{clean(event.campaign.name)}: {event.campaign.id}, {event.campaign.runs.total} runs")
            for line in lines.of(event):
                session.note(clean(line))


def _follow_live(session: Session, campaign_id: str) -> None:
    from rich.live import Live  # noqa: PLC0415 - for terminals only

    picture = CampaignPicture()
    begin = time.monotonic()

    def view() -> object:
        return live_view(picture, time.monotonic() - begin)

    with Live(get_renderable=view, console=session.console, refresh_per_second=4, transient=True):  # type: ignore[arg-type]
        for event in session.client.follow_campaign(campaign_id):
            picture.apply(event)
    session.note(picture.summary())
