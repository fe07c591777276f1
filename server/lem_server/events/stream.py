"""The events of a campaign or run: a picture first, then everything that happens, until nothing more will."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from fastapi.sse import ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.states import LIVE_STATES, RunState
from lem_domain.wire.events import AggregationEvent, CampaignEvent, RunProgressEvent, RunTransitionEvent
from lem_domain.wire.runs import Progress
from lem_server.campaigns import service as campaigns
from lem_server.database.listener import Hub
from lem_server.events import queries
from lem_server.events.queries import EventRow, LogPlace, ProgressRow
from lem_server.http.problems import ProblemError
from lem_server.runs import service as runs
from lem_server.settings import LeaseTerms

POLL_S = 2.0
"""The longest time without looking again, should a notification get lost; progress is only ever seen by looking."""
UNSTABLE_POLL_S = 0.25
"""The same while an entry is there that an older open transaction could still precede."""
SHORTEST_PAUSE_S = 0.1
"""Many transitions within this time are looked at together."""
PROGRESS_INTERVAL_S = 1.0
PAGE = 500
BEGINNING = LogPlace(0, 0)

_EVENT_ID = re.compile(r"^([0-9]{1,19})-([0-9]{1,18})$")


class Followed(NamedTuple):
    """What a stream is about: a whole campaign, or one run of it."""

    campaign_id: UUID
    run_id: UUID | None = None


def place_of(last_event_id: str | None) -> LogPlace:
    """Where a stream goes on that was broken off after this event; the beginning where there is none.

    Raises:
        ProblemError: `bad_request`.
    """
    if not last_event_id:
        return BEGINNING
    found = _EVENT_ID.match(last_event_id)
    if found is None or int(found[1]) >= 2**63:
        raise ProblemError(
            ProblemCode.BAD_REQUEST,
            f"Last-Event-ID {last_event_id[:60]!r} is not the id of an event of this stream; "
            "send the id of the last transition event, or leave the header out to begin at the start.",
        )
    return LogPlace(int(found[1]), int(found[2]))


async def follow(
    engine: AsyncEngine,
    hub: Hub,
    terms: LeaseTerms,
    followed: Followed,
    after: LogPlace,
    aggregating: Callable[[UUID], AggregationEvent | None] = lambda _: None,
) -> AsyncIterator[ServerSentEvent]:
    """Everything that happened after a place in the log, then everything that happens.

    Ends when nothing more will happen without somebody asking for it, and when the server is shutting down. While
    `aggregating` returns the progress of an aggregation of the campaign, the stream stays open and sends it. No
    database connection is held between looks.
    """
    progress = LatestProgress(hub.clock)
    aggregated: AggregationEvent | None = None
    with hub.campaign(followed.campaign_id) as signal:
        shown, _ = await _picture(engine, terms, followed)
        yield _event(shown)
        while not hub.stopping:
            ticket = signal.ticket()
            # Before the picture: an aggregation that ends in between is then followed by one more look.
            aggregation = aggregating(followed.campaign_id) if followed.run_id is None else None
            # Before the transitions: those that led to the picture are then among them.
            picture, over = await _picture(engine, terms, followed)
            stable = True
            full = True
            while stable and full:
                page = await _transitions(engine, followed, after)
                full = len(page) == PAGE
                for row in page:
                    stable = stable and row.stable
                    if stable:
                        after = LogPlace(row.xact, row.id)
                        yield _transition(row)
            for busy in progress.news(await _progress(engine, followed)):
                yield _event(busy)
            if aggregation is not None and aggregation != aggregated:
                aggregated = aggregation
                yield _event(aggregation)
            over = over and aggregation is None
            if stable and (over or picture != shown):
                shown = picture
                yield _event(shown)
            if stable and over:
                return
            await asyncio.sleep(SHORTEST_PAUSE_S)
            await signal.wait(ticket, POLL_S if stable else UNSTABLE_POLL_S)


class LatestProgress:
    """Lets through what changed, each run at most once a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sent: dict[UUID, tuple[ProgressRow, float]] = {}

    def news(self, busy: Sequence[ProgressRow]) -> Iterator[RunProgressEvent]:
        """What to tell now; what is held back comes with a later look."""
        now = self._clock()
        self._sent = {row.run_id: self._sent[row.run_id] for row in busy if row.run_id in self._sent}
        for row in busy:
            last, sent_at = self._sent.get(row.run_id, (None, 0.0))
            if last is not None and (last == row or now - sent_at < PROGRESS_INTERVAL_S):
                continue
            self._sent[row.run_id] = (row, now)
            yield RunProgressEvent(
                run_id=format_id(IdKind.RUN, row.run_id),
                attempt_id=format_id(IdKind.ATTEMPT, row.attempt_id),
                display_name=row.display_name,
                cycle=row.cycle,
                progress=Progress.model_validate(row.progress),
            )


async def _picture(engine: AsyncEngine, terms: LeaseTerms, followed: Followed) -> tuple[CampaignEvent, bool]:
    """How things stand, and whether nothing more will happen to what is followed."""
    view = await campaigns.watch_campaign(engine, terms, followed.campaign_id)
    settled = view.runs.in_states(RunState.QUEUED, *LIVE_STATES) == 0
    over = settled
    if followed.run_id is not None:
        run = await runs.get_run(engine, followed.run_id)
        over = run.state is not RunState.QUEUED and run.state not in LIVE_STATES
    return CampaignEvent(campaign=view, settled=settled), over


async def _transitions(engine: AsyncEngine, followed: Followed, after: LogPlace) -> list[EventRow]:
    async with engine.connect() as connection:
        return await queries.transitions(
            connection, campaign_id=followed.campaign_id, run_id=followed.run_id, after=after, limit=PAGE
        )


async def _progress(engine: AsyncEngine, followed: Followed) -> Sequence[ProgressRow]:
    async with engine.connect() as connection:
        return await queries.progress(connection, campaign_id=followed.campaign_id, run_id=followed.run_id)


def _event(event: CampaignEvent | RunProgressEvent | AggregationEvent) -> ServerSentEvent:
    return ServerSentEvent(event=event.type, raw_data=event.model_dump_json())


def _transition(row: EventRow) -> ServerSentEvent:
    event = RunTransitionEvent(
        run_id=format_id(IdKind.RUN, row.run_id),
        display_name=row.display_name,
        cycle=row.cycle,
        source=None if row.source is None else RunState(row.source),
        target=RunState(row.target),
        at=row.at,
        reason=row.reason,
        message=row.message,
    )
    return ServerSentEvent(id=f"{row.xact}-{row.id}", event=event.type, raw_data=event.model_dump_json())
