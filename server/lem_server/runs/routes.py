"""HTTP of runs: reading and cancelling them."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import TypeAdapter

from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import ProcessName
from lem_domain.ids import CampaignId, IdKind, parse_id
from lem_domain.states import RunState
from lem_domain.wire.access import Scope
from lem_domain.wire.base import Page
from lem_domain.wire.runs import LeaseEventView, LogChunk, RunView, TransitionView
from lem_server.access.guard import CurrentPrincipal, requires
from lem_server.context import Context
from lem_server.http.paging import Cursor, Int4, Int8, Limit, decode_cursor, encode_cursor
from lem_server.http.path_ids import RunPath
from lem_server.http.problems import problem_responses
from lem_server.runs import service
from lem_server.runs.queries import LogPosition, QueuePosition
from lem_server.runs.service import RunFilter

router = APIRouter(prefix="/api/v1", tags=["runs"])

_POSITION: TypeAdapter[tuple[UUID, Int4]] = TypeAdapter(tuple[UUID, Int4])
_LOG_POSITION: TypeAdapter[tuple[Int4, ProcessName, Int4]] = TypeAdapter(tuple[Int4, ProcessName, Int4])
_ENTRY: TypeAdapter[tuple[Int8]] = TypeAdapter(tuple[Int8])

_LIST = problem_responses(ProblemCode.BAD_REQUEST)
_ONE = problem_responses(ProblemCode.NOT_FOUND)
_LIST_OF_ONE = problem_responses(ProblemCode.BAD_REQUEST, ProblemCode.NOT_FOUND)


@router.get("/runs", responses=_LIST, openapi_extra=requires(Scope.READ))
async def list_runs(
    context: Context,
    campaign_id: Annotated[CampaignId | None, Query(description="Only runs of this campaign.")] = None,
    state: Annotated[RunState | None, Query(description="Only runs in this state.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[RunView]:
    """List runs in the order of the queue: campaigns by age, the runs of one in its order."""
    wanted = RunFilter(None if campaign_id is None else parse_id(IdKind.CAMPAIGN, campaign_id), state)
    after = decode_cursor("runs", cursor, _POSITION)
    items, following = await service.list_runs(
        context.engine, wanted, after=None if after is None else QueuePosition(*after), limit=limit
    )
    return Page(items=items, next=None if following is None else encode_cursor("runs", following))


@router.get("/runs/{run_id}", responses=_ONE, openapi_extra=requires(Scope.READ))
async def get_run(context: Context, run_id: RunPath) -> RunView:
    """Return one run, with its progress while it is live."""
    return await service.get_run(context.engine, run_id)


@router.post("/runs/{run_id}:cancel", responses=_ONE, openapi_extra=requires(Scope.SUBMIT))
async def cancel_run(context: Context, principal: CurrentPrincipal, run_id: RunPath) -> RunView:
    """Cancel a queued run at once. A live one is stopped after its worker's next heartbeat; an ended one stays."""
    return await service.cancel_run(context.engine, run_id, cancelled_by=principal.name)


@router.get("/runs/{run_id}/transitions", responses=_LIST_OF_ONE, openapi_extra=requires(Scope.READ))
async def list_run_transitions(
    context: Context, run_id: RunPath, limit: Limit = 100, cursor: Cursor = None
) -> Page[TransitionView]:
    """List every transition of the run with its actor, time and reason, the oldest first."""
    (after,) = decode_cursor("transitions", cursor, _ENTRY) or (0,)
    items, following = await service.list_transitions(context.engine, run_id, after=after, limit=limit)
    return Page(items=items, next=None if following is None else encode_cursor("transitions", (following,)))


@router.get("/runs/{run_id}/lease_events", responses=_LIST_OF_ONE, openapi_extra=requires(Scope.READ))
async def list_run_lease_events(
    context: Context, run_id: RunPath, limit: Limit = 100, cursor: Cursor = None
) -> Page[LeaseEventView]:
    """List when the leases of the run's attempts became suspect or recovered, the oldest first."""
    (after,) = decode_cursor("lease_events", cursor, _ENTRY) or (0,)
    items, following = await service.list_lease_events(context.engine, run_id, after=after, limit=limit)
    return Page(items=items, next=None if following is None else encode_cursor("lease_events", (following,)))


@router.get("/runs/{run_id}/logs", responses=_LIST_OF_ONE, openapi_extra=requires(Scope.READ))
async def list_run_logs(
    context: Context,
    run_id: RunPath,
    process: Annotated[ProcessName | None, Query(description="Only the output of this process.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[LogChunk]:
    """List the output of the run's processes, in the order of attempts and processes."""
    after = decode_cursor("logs", cursor, _LOG_POSITION)
    items, following = await service.list_logs(
        context.engine, run_id, process=process, after=None if after is None else LogPosition(*after), limit=limit
    )
    return Page(items=items, next=None if following is None else encode_cursor("logs", following))
