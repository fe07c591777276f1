"""The events of a campaign or run: its present state first, then every change until it is settled."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from uuid import UUID

from fastapi.sse import ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.states import LIVE_STATES, RunState
from lem_domain.wire.events import AggregationEvent, CampaignEvent, RunProgressEvent
from lem_server.campaigns.reading import watch_campaign
from lem_server.database.listener import Hub
from lem_server.events import queries
from lem_server.events.queries import EventCursor, Followed, LoggedTransition
from lem_server.http.problems import ProblemError
from lem_server.runs.reading import get_run
from lem_server.settings import LeaseTerms

POLL_S = 2.0
"""The interval of reading without a notification: one may get lost, and progress causes none."""
UNSTABLE_POLL_S = 0.25
"""The interval while an older transaction is open whose entries belong before one that was read."""
SHORTEST_PAUSE_S = 0.1
"""Transitions within this time are read together."""
PROGRESS_INTERVAL_S = 1.0
PAGE = 500
BEGINNING = EventCursor(0, 0)

_EVENT_ID = re.compile(r"^([0-9]{1,19})-([0-9]{1,18})$")


def parse_cursor(last_event_id: str | None) -> EventCursor:
    """Return the cursor after an event, or the beginning of the log without one.

    Raises:
        ProblemError: `bad_request`.
    """
    if not last_event_id:
        return BEGINNING
    found = _EVENT_ID.match(last_event_id)
    if found is None or int(found[1]) >= 2**63:
        raise ProblemError(
            ProblemCode.BAD_REQUEST,
            f"Last-Event-ID {last_event_id[:60]!r} is not an event id; "
            "send the id of the last transition event, or omit the header to start at the beginning.",
        )
    return EventCursor(int(found[1]), int(found[2]))


async def follow(
    engine: AsyncEngine,
    hub: Hub,
    terms: LeaseTerms,
    followed: Followed,
    after: EventCursor,
    aggregating: Callable[[UUID], AggregationEvent | None] = lambda _: None,
) -> AsyncIterator[ServerSentEvent]:
    """Yield all events after a cursor, past and future.

    Ends when nothing is queued or live, and when the server shuts down. While `aggregating` returns the progress of an
    aggregation of the campaign, the stream stays open and sends it. Holds no database connection while it waits.
    """
    progress = LatestProgress(hub.clock)
    aggregated: AggregationEvent | None = None
    signal = hub.campaign(followed.campaign_id)
    shown, _ = await _state(engine, terms, followed)
    yield _event(shown)
    while not hub.stopping:
        ticket = signal.ticket()
        # Read before the state, so that the end of an aggregation is followed by one more turn of the loop.
        aggregation = aggregating(followed.campaign_id) if followed.run_id is None else None
        # Read before the transitions, so that they include those that led to this state.
        state, over = await _state(engine, terms, followed)
        stable = True
        full = True
        while stable and full:
            async with engine.connect() as connection:
                page = await queries.transitions(connection, followed, after=after, limit=PAGE)
            full = len(page) == PAGE
            for row in page:
                stable = stable and row.stable
                if stable:
                    after = EventCursor(row.xact, row.id)
                    yield _transition(row)
        async with engine.connect() as connection:
            live = await queries.progress(connection, followed)
        for busy in progress.changes(live):
            yield _event(busy)
        if aggregation is not None and aggregation != aggregated:
            aggregated = aggregation
            yield _event(aggregation)
        over = over and aggregation is None
        if stable and (over or state != shown):
            shown = state
            yield _event(shown)
        if stable and over:
            return
        await asyncio.sleep(SHORTEST_PAUSE_S)
        await signal.wait(ticket, POLL_S if stable else UNSTABLE_POLL_S)


class LatestProgress:
    """Passes on changed progress, at most once a second for each run."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sent: dict[str, tuple[RunProgressEvent, float]] = {}

    def changes(self, busy: Sequence[RunProgressEvent]) -> Iterator[RunProgressEvent]:
        """Yield the events to send now; a suppressed change is sent by a later call."""
        now = self._clock()
        self._sent = {row.run_id: self._sent[row.run_id] for row in busy if row.run_id in self._sent}
        for row in busy:
            last, sent_at = self._sent.get(row.run_id, (None, 0.0))
            if last is not None and (last == row or now - sent_at < PROGRESS_INTERVAL_S):
                continue
            self._sent[row.run_id] = (row, now)
            yield row


async def _state(engine: AsyncEngine, terms: LeaseTerms, followed: Followed) -> tuple[CampaignEvent, bool]:
    """Return the campaign, and whether nothing of the subject is queued or live."""
    async with engine.connect() as connection:
        view = await watch_campaign(connection, terms, followed.campaign_id)
        run = None if followed.run_id is None else await get_run(connection, followed.run_id)
    over = settled = view.runs.in_states(RunState.QUEUED, *LIVE_STATES) == 0
    if run is not None:
        over = run.state is not RunState.QUEUED and run.state not in LIVE_STATES
    return CampaignEvent(campaign=view, settled=settled), over


def _event(event: CampaignEvent | RunProgressEvent | AggregationEvent) -> ServerSentEvent:
    return ServerSentEvent(event=event.type, raw_data=event.model_dump_json())


def _transition(row: LoggedTransition) -> ServerSentEvent:
    return ServerSentEvent(id=f"{row.xact}-{row.id}", event=row.event.type, raw_data=row.event.model_dump_json())
