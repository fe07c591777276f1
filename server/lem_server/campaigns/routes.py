"""HTTP of campaigns and experiments, and of retrying runs."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response, status
from fastapi.responses import StreamingResponse
from pydantic import StringConstraints

from lem_domain.config.campaign import CampaignSpec
from lem_domain.errors import ProblemCode
from lem_domain.states import CampaignState
from lem_domain.wire.access import Scope
from lem_domain.wire.base import Page
from lem_domain.wire.campaigns import (
    CampaignPlan,
    CampaignResults,
    CampaignView,
    ExperimentView,
    PauseCampaign,
    PlaceCampaign,
    RetriedRuns,
)
from lem_domain.wire.runs import RunView
from lem_server.access.guard import CurrentPrincipal, declares
from lem_server.campaigns import planning, reading, results, service
from lem_server.context import Context
from lem_server.http.idempotency import IdempotencyKey, KeyedRequest, fingerprint, run_once
from lem_server.http.method_query import StoredMethod
from lem_server.http.paging import Cursor, Limit
from lem_server.http.path_ids import CampaignPath, ExperimentPath, RunPath

router = APIRouter(prefix="/api/v1", tags=["campaigns"])

_C = ProblemCode

_Label = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^=\x00]+=[^\x00]*$")]

_CREATED: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "The campaign, created now or by an earlier request with this key.",
        "headers": {"Location": {"description": "URL of the campaign.", "schema": {"type": "string"}}},
    },
}


@router.post(
    "/campaigns:plan", response_model=CampaignPlan, **declares(Scope.READ, _C.BAD_REQUEST, _C.PAYLOAD_TOO_LARGE)
)
async def plan_campaign(
    context: Context,
    spec: CampaignSpec,
    listed: Annotated[
        int | None,
        Query(ge=0, description="List at most this many experiments and runs. Their numbers are always included."),
    ] = None,
) -> Response:
    """Return what a submission would queue: experiments, runs, duplicates and unmet needs. Stores nothing."""
    pieces = await service.plan(context.engine, spec, listed=listed)
    return StreamingResponse(pieces, media_type="application/json")


@router.post(
    "/campaigns",
    status_code=status.HTTP_201_CREATED,
    response_model=CampaignView,
    **declares(Scope.SUBMIT, _C.BAD_REQUEST, _C.PAYLOAD_TOO_LARGE, _C.IDEMPOTENCY_MISMATCH, answers=_CREATED),
)
async def submit_campaign(
    context: Context, principal: CurrentPrincipal, spec: CampaignSpec, idempotency_key: IdempotencyKey = None
) -> Response:
    """Store a campaign with its experiments and queue its runs. Any problem refuses the whole campaign."""
    planned = await asyncio.to_thread(planning.expand_campaign, spec)  # before the transaction
    async with context.engine.begin() as connection:
        answer = await run_once(
            connection,
            KeyedRequest(principal.token_id, "submit_campaign", idempotency_key, fingerprint(spec)),
            lambda: service.submit(connection, spec, planned, submitted_by=principal.name),
            status=status.HTTP_201_CREATED,
        )
    location = f"/api/v1/campaigns/{json.loads(answer.body)['id']}"
    return Response(answer.body, answer.status, media_type="application/json", headers={"Location": location})


@router.get("/campaigns", **declares(Scope.READ, _C.BAD_REQUEST))
async def list_campaigns(
    context: Context,
    state: Annotated[CampaignState | None, Query(description="Only campaigns in this state.")] = None,
    name: Annotated[
        str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="Only campaigns of exactly this name.")
    ] = None,
    label: Annotated[
        list[_Label] | None,
        Query(max_length=64, description="Only campaigns with this label, KEY=VALUE. Of several, all must match."),
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[CampaignView]:
    """List campaigns, the newest first."""
    labels = dict(one.split("=", 1) for one in label or ())
    async with context.engine.connect() as connection:
        return await reading.list_campaigns(
            connection, state=state, name=name, labels=labels, cursor=cursor, limit=limit
        )


@router.get("/campaigns/{campaign_id}", **declares(Scope.READ, _C.NOT_FOUND))
async def get_campaign(context: Context, campaign_id: CampaignPath) -> CampaignView:
    """Return one campaign, with the number of its runs in each state and the reason if none is live."""
    async with context.engine.connect() as connection:
        return await reading.watch_campaign(connection, context.settings.lease_terms, campaign_id)


@router.get("/campaigns/{campaign_id}/experiments", **declares(Scope.READ, _C.BAD_REQUEST, _C.NOT_FOUND))
async def list_experiments(
    context: Context, campaign_id: CampaignPath, limit: Limit = 100, cursor: Cursor = None
) -> Page[ExperimentView]:
    """List the campaign's experiments in the order of its sweep."""
    async with context.engine.connect() as connection:
        return await reading.list_experiments(connection, campaign_id, cursor=cursor, limit=limit)


@router.get("/experiments/{experiment_id}", **declares(Scope.READ, _C.NOT_FOUND))
async def get_experiment(context: Context, experiment_id: ExperimentPath) -> ExperimentView:
    """Return one experiment with its whole configuration and the hash of that."""
    async with context.engine.connect() as connection:
        return await reading.get_experiment(connection, experiment_id)


_CHANGES = (_C.BAD_REQUEST, _C.NOT_FOUND, _C.CONFLICT)


@router.post("/campaigns/{campaign_id}:pause", **declares(Scope.SUBMIT, *_CHANGES))
async def pause_campaign(
    context: Context, campaign_id: CampaignPath, request: PauseCampaign | None = None
) -> CampaignView:
    """Pause the claims of its runs. Live runs finish, or are stopped and queued again (`live_runs`)."""
    return await service.pause(context.engine, campaign_id, live_runs=(request or PauseCampaign()).live_runs)


@router.post("/campaigns/{campaign_id}:resume", **declares(Scope.SUBMIT, *_CHANGES))
async def resume_campaign(context: Context, campaign_id: CampaignPath) -> CampaignView:
    """Resume a paused campaign. Failed runs are queued again by `:retry_failed`."""
    return await service.resume(context.engine, campaign_id)


_RETRY = declares(
    Scope.SUBMIT,
    _C.NOT_FOUND,
    _C.CONFLICT,
    _C.IDEMPOTENCY_MISMATCH,
    answers={200: {"description": "The runs queued again, now or by the first request with this Idempotency-Key."}},
)


@router.post("/campaigns/{campaign_id}:retry_failed", response_model=RetriedRuns, **_RETRY)
async def retry_failed_runs(
    context: Context, principal: CurrentPrincipal, campaign_id: CampaignPath, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue every failed or interrupted run again, each for a new attempt with full budgets."""
    async with context.engine.begin() as connection:
        answer = await run_once(
            connection,
            KeyedRequest(principal.token_id, "retry_failed_runs", idempotency_key, campaign_id.bytes),
            lambda: service.retry_failed(connection, campaign_id, retried_by=principal.name),
        )
    return Response(answer.body, answer.status, media_type="application/json")


@router.post("/runs/{run_id}:retry", response_model=RunView, tags=["runs"], **_RETRY)
async def retry_run(
    context: Context, principal: CurrentPrincipal, run_id: RunPath, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue a failed or interrupted run again for a new attempt. A queued or live run is unchanged."""
    async with context.engine.begin() as connection:
        answer = await run_once(
            connection,
            KeyedRequest(principal.token_id, "retry_run", idempotency_key, run_id.bytes),
            lambda: service.retry_run(connection, run_id, retried_by=principal.name),
        )
    return Response(answer.body, answer.status, media_type="application/json")


@router.post("/campaigns/{campaign_id}:place", **declares(Scope.SUBMIT, *_CHANGES))
async def place_campaign(
    context: Context, principal: CurrentPrincipal, campaign_id: CampaignPath, request: PlaceCampaign
) -> CampaignView:
    """Let the next run choose other devices for the campaign. Earlier places stay on record."""
    return await service.place(context.engine, campaign_id, placement=request.placement, placed_by=principal.name)


@router.post("/campaigns/{campaign_id}:cancel", **declares(Scope.SUBMIT, _C.NOT_FOUND))
async def cancel_campaign(context: Context, principal: CurrentPrincipal, campaign_id: CampaignPath) -> CampaignView:
    """Cancel queued runs at once; workers stop live runs after their next heartbeat. A repetition changes nothing."""
    return await service.cancel(context.engine, campaign_id, cancelled_by=principal.name)


@router.get("/campaigns/{campaign_id}/results", response_model=CampaignResults, **declares(Scope.READ, _C.NOT_FOUND))
async def get_campaign_results(context: Context, campaign_id: CampaignPath, method: StoredMethod = None) -> Response:
    """Return every experiment over its cycles from the runs aggregated so far, and why other runs have no result."""
    pieces = await results.campaign_results(context.engine, campaign_id, method)
    return StreamingResponse(pieces, media_type="application/json")
