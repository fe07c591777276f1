"""HTTP of runs: reading and cancelling them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import ProcessName
from lem_domain.ids import CampaignId, IdKind, parse_id
from lem_domain.states import RunState
from lem_domain.wire.access import Scope
from lem_domain.wire.base import Page
from lem_domain.wire.runs import LeaseEventView, LogChunk, RunView, TransitionView
from lem_server.access.guard import CurrentPrincipal, declares
from lem_server.context import Context
from lem_server.http.paging import Cursor, Limit
from lem_server.http.path_ids import RunPath
from lem_server.runs import changes, reading

router = APIRouter(prefix="/api/v1", tags=["runs"])

_C = ProblemCode


@router.get("/runs", **declares(Scope.READ, _C.BAD_REQUEST))
async def list_runs(
    context: Context,
    campaign_id: Annotated[CampaignId | None, Query(description="Only runs of this campaign.")] = None,
    state: Annotated[RunState | None, Query(description="Only runs in this state.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[RunView]:
    """List runs in the order of the queue: campaigns by age, the runs of one in its order."""
    wanted = None if campaign_id is None else parse_id(IdKind.CAMPAIGN, campaign_id)
    async with context.engine.connect() as connection:
        return await reading.list_runs(connection, campaign_id=wanted, state=state, cursor=cursor, limit=limit)


@router.get("/runs/{run_id}", **declares(Scope.READ, _C.NOT_FOUND))
async def get_run(context: Context, run_id: RunPath) -> RunView:
    """Return one run, with its progress while it is live."""
    async with context.engine.connect() as connection:
        return await reading.get_run(connection, run_id)


@router.post("/runs/{run_id}:cancel", **declares(Scope.SUBMIT, _C.NOT_FOUND))
async def cancel_run(context: Context, principal: CurrentPrincipal, run_id: RunPath) -> RunView:
    """Cancel a queued run at once. A live one is stopped after its worker's next heartbeat; an ended one stays."""
    async with context.engine.begin() as connection:
        return await changes.cancel_run(connection, run_id, cancelled_by=principal.name)


@router.get("/runs/{run_id}/transitions", **declares(Scope.READ, _C.BAD_REQUEST, _C.NOT_FOUND))
async def list_run_transitions(
    context: Context, run_id: RunPath, limit: Limit = 100, cursor: Cursor = None
) -> Page[TransitionView]:
    """List every transition of the run with its actor, time and reason, the oldest first."""
    async with context.engine.connect() as connection:
        return await reading.TRANSITIONS.page(connection, run_id, cursor=cursor, limit=limit)


@router.get("/runs/{run_id}/lease_events", **declares(Scope.READ, _C.BAD_REQUEST, _C.NOT_FOUND))
async def list_run_lease_events(
    context: Context, run_id: RunPath, limit: Limit = 100, cursor: Cursor = None
) -> Page[LeaseEventView]:
    """List when the leases of the run's attempts became suspect or recovered, the oldest first."""
    async with context.engine.connect() as connection:
        return await reading.LEASE_EVENTS.page(connection, run_id, cursor=cursor, limit=limit)


@router.get("/runs/{run_id}/logs", **declares(Scope.READ, _C.BAD_REQUEST, _C.NOT_FOUND))
async def list_run_logs(
    context: Context,
    run_id: RunPath,
    process: Annotated[ProcessName | None, Query(description="Only the output of this process.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[LogChunk]:
    """List the output of the run's processes, in the order of attempts and processes."""
    async with context.engine.connect() as connection:
        return await reading.list_logs(connection, run_id, process=process, cursor=cursor, limit=limit)
