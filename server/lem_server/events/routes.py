"""Routes of event streams (text/event-stream)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.exc import SQLAlchemyError

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, parse_id
from lem_domain.wire.access import Scope
from lem_domain.wire.events import AggregationEvent, CampaignEvent, RunProgressEvent, RunTransitionEvent
from lem_server.access.guard import declares
from lem_server.campaigns.reading import get_campaign
from lem_server.context import Context
from lem_server.events.queries import EventCursor, Followed
from lem_server.events.stream import follow, parse_cursor
from lem_server.http.path_ids import CampaignPath, RunPath
from lem_server.runs.reading import get_run

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/api/v1", tags=["events"])

_C = ProblemCode

_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": CampaignEvent | RunTransitionEvent | RunProgressEvent | AggregationEvent,
        "description": "Events `campaign`, `transition` (with an id), `progress` and `aggregation`, each with its "
        "JSON in `data`; a comment every 15 s without one.",
    },
}


def _cursor(
    last_event_id: Annotated[
        str | None, Header(description="Id of the last event received; the stream continues after it.")
    ] = None,
) -> EventCursor:
    return parse_cursor(last_event_id)


async def _followed_campaign(context: Context, campaign_id: CampaignPath) -> Followed:
    async with context.engine.connect() as connection:
        await get_campaign(connection, campaign_id)
    return Followed(campaign_id)


async def _followed_run(context: Context, run_id: RunPath) -> Followed:
    async with context.engine.connect() as connection:
        run = await get_run(connection, run_id)
    return Followed(parse_id(IdKind.CAMPAIGN, run.campaign_id), run_id)


# Dependencies refuse wrong requests: once the first event is sent, the status can't change.
Cursor = Annotated[EventCursor, Depends(_cursor)]
FollowedCampaign = Annotated[Followed, Depends(_followed_campaign)]
FollowedRun = Annotated[Followed, Depends(_followed_run)]


async def _until_database_error(events: AsyncIterator[ServerSentEvent]) -> AsyncIterator[ServerSentEvent]:
    try:
        async for event in events:
            yield event
    except (SQLAlchemyError, OSError) as error:  # the status is sent; clients reconnect
        logger.warning("an event stream ends, because the database is unavailable (%s)", type(error).__name__)


def _follow(context: Context, followed: Followed, after: EventCursor) -> AsyncIterator[ServerSentEvent]:
    terms, aggregating = context.settings.lease_terms, context.aggregations.progress
    return follow(context.engine, context.hub, terms, followed, after, aggregating)


@router.get(
    "/campaigns/{campaign_id}/events",
    response_class=EventSourceResponse,
    **declares(Scope.READ, _C.BAD_REQUEST, _C.NOT_FOUND, answers=_EVENTS),
)
async def campaign_events(
    context: Context, followed: FollowedCampaign, after: Cursor
) -> AsyncIterator[ServerSentEvent]:
    """Stream all events of the campaign's runs, past and future, until none is queued or live."""
    async for event in _until_database_error(_follow(context, followed, after)):
        yield event


@router.get(
    "/runs/{run_id}/events",
    response_class=EventSourceResponse,
    **declares(Scope.READ, _C.BAD_REQUEST, _C.NOT_FOUND, answers=_EVENTS),
)
async def run_events(context: Context, followed: FollowedRun, after: Cursor) -> AsyncIterator[ServerSentEvent]:
    """Stream all events of the run, past and future, until it is neither queued nor live."""
    async for event in _until_database_error(_follow(context, followed, after)):
        yield event
