"""HTTP of campaigns and experiments, and of retrying runs."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response, status
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, StringConstraints

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
from lem_server.access.guard import CurrentPrincipal, requires
from lem_server.campaigns import reading, results, service
from lem_server.context import Context
from lem_server.http.idempotency import IdempotencyKey, fingerprint, run_once
from lem_server.http.paging import Cursor, Limit
from lem_server.http.path_ids import CampaignPath, ExperimentPath, RunPath
from lem_server.http.problems import problem_responses

router = APIRouter(prefix="/api/v1", tags=["campaigns"])

_Label = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^=\x00]+=[^\x00]*$")]

_BODY = problem_responses(ProblemCode.BAD_REQUEST, ProblemCode.PAYLOAD_TOO_LARGE)
_ONE = problem_responses(ProblemCode.NOT_FOUND)
_LOCATION = {"Location": {"description": "URL of the campaign.", "schema": {"type": "string"}}}
_CREATED: dict[int | str, dict[str, Any]] = {
    201: {
        "description": "The campaign, created now or by an earlier request with this key.",
        "headers": _LOCATION,
    },
    **problem_responses(ProblemCode.BAD_REQUEST, ProblemCode.PAYLOAD_TOO_LARGE, ProblemCode.IDEMPOTENCY_MISMATCH),
}


@router.post("/campaigns:plan", response_model=CampaignPlan, responses=_BODY, openapi_extra=requires(Scope.READ))
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
    responses=_CREATED,
    openapi_extra=requires(Scope.SUBMIT),
)
async def submit_campaign(
    context: Context, principal: CurrentPrincipal, spec: CampaignSpec, idempotency_key: IdempotencyKey = None
) -> Response:
    """Store a campaign with its experiments and queue its runs. Any problem refuses the whole campaign."""
    planned = await service.expand(spec)
    async with context.engine.begin() as connection:

        async def produce() -> tuple[int, BaseModel]:
            view = await service.submit(connection, spec, planned, submitted_by=principal.name)
            return status.HTTP_201_CREATED, view

        answer = await run_once(
            connection,
            principal=principal.token_id,
            route="submit_campaign",
            key=idempotency_key,
            request=fingerprint(spec),
            produce=produce,
        )
    location = f"/api/v1/campaigns/{json.loads(answer.body)['id']}"
    return Response(answer.body, answer.status, media_type="application/json", headers={"Location": location})


@router.get("/campaigns", responses=problem_responses(ProblemCode.BAD_REQUEST), openapi_extra=requires(Scope.READ))
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


@router.get("/campaigns/{campaign_id}", responses=_ONE, openapi_extra=requires(Scope.READ))
async def get_campaign(context: Context, campaign_id: CampaignPath) -> CampaignView:
    """Return one campaign, with the number of its runs in each state and the reason if none is live."""
    async with context.engine.connect() as connection:
        return await reading.watch_campaign(connection, context.settings.lease_terms, campaign_id)


@router.get(
    "/campaigns/{campaign_id}/experiments",
    responses=problem_responses(ProblemCode.BAD_REQUEST, ProblemCode.NOT_FOUND),
    openapi_extra=requires(Scope.READ),
)
async def list_experiments(
    context: Context, campaign_id: CampaignPath, limit: Limit = 100, cursor: Cursor = None
) -> Page[ExperimentView]:
    """List the campaign's experiments in the order of its sweep."""
    async with context.engine.connect() as connection:
        return await reading.list_experiments(connection, campaign_id, cursor=cursor, limit=limit)


@router.get("/experiments/{experiment_id}", responses=_ONE, openapi_extra=requires(Scope.READ))
async def get_experiment(context: Context, experiment_id: ExperimentPath) -> ExperimentView:
    """Return one experiment with its whole configuration and the hash of that."""
    async with context.engine.connect() as connection:
        return await reading.get_experiment(connection, experiment_id)


_CHANGES = problem_responses(ProblemCode.BAD_REQUEST, ProblemCode.NOT_FOUND, ProblemCode.CONFLICT)


@router.post("/campaigns/{campaign_id}:pause", responses=_CHANGES, openapi_extra=requires(Scope.SUBMIT))
async def pause_campaign(
    context: Context, campaign_id: CampaignPath, request: PauseCampaign | None = None
) -> CampaignView:
    """Pause the claims of its runs. Live runs finish, or are stopped and queued again (`live_runs`)."""
    return await service.pause(context.engine, campaign_id, live_runs=(request or PauseCampaign()).live_runs)


@router.post("/campaigns/{campaign_id}:resume", responses=_CHANGES, openapi_extra=requires(Scope.SUBMIT))
async def resume_campaign(context: Context, campaign_id: CampaignPath) -> CampaignView:
    """Resume a paused campaign. Failed runs are queued again by `:retry_failed`."""
    return await service.resume(context.engine, campaign_id)


_RETRIED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The runs queued again, now or by the first request with this Idempotency-Key."},
    **problem_responses(ProblemCode.NOT_FOUND, ProblemCode.CONFLICT, ProblemCode.IDEMPOTENCY_MISMATCH),
}


@router.post(
    "/campaigns/{campaign_id}:retry_failed",
    response_model=RetriedRuns,
    responses=_RETRIED,
    openapi_extra=requires(Scope.SUBMIT),
)
async def retry_failed_runs(
    context: Context, principal: CurrentPrincipal, campaign_id: CampaignPath, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue every failed or interrupted run again, each for a new attempt with full budgets."""
    async with context.engine.begin() as connection:

        async def produce() -> tuple[int, BaseModel]:
            retried = await service.retry_failed(connection, campaign_id, retried_by=principal.name)
            return status.HTTP_200_OK, retried

        answer = await run_once(
            connection,
            principal=principal.token_id,
            route="retry_failed_runs",
            key=idempotency_key,
            request=campaign_id.bytes,
            produce=produce,
        )
    return Response(answer.body, answer.status, media_type="application/json")


@router.post(
    "/runs/{run_id}:retry",
    response_model=RunView,
    responses=_RETRIED,
    openapi_extra=requires(Scope.SUBMIT),
    tags=["runs"],
)
async def retry_run(
    context: Context, principal: CurrentPrincipal, run_id: RunPath, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue a failed or interrupted run again for a new attempt. A queued or live run is unchanged."""
    async with context.engine.begin() as connection:

        async def produce() -> tuple[int, BaseModel]:
            return status.HTTP_200_OK, await service.retry_run(connection, run_id, retried_by=principal.name)

        answer = await run_once(
            connection,
            principal=principal.token_id,
            route="retry_run",
            key=idempotency_key,
            request=run_id.bytes,
            produce=produce,
        )
    return Response(answer.body, answer.status, media_type="application/json")


@router.post("/campaigns/{campaign_id}:place", responses=_CHANGES, openapi_extra=requires(Scope.SUBMIT))
async def place_campaign(
    context: Context, principal: CurrentPrincipal, campaign_id: CampaignPath, request: PlaceCampaign
) -> CampaignView:
    """Let the next run choose other devices for the campaign. Earlier places stay on record."""
    return await service.place(context.engine, campaign_id, placement=request.placement, placed_by=principal.name)


@router.post("/campaigns/{campaign_id}:cancel", responses=_ONE, openapi_extra=requires(Scope.SUBMIT))
async def cancel_campaign(context: Context, principal: CurrentPrincipal, campaign_id: CampaignPath) -> CampaignView:
    """Cancel queued runs at once; workers stop live runs after their next heartbeat. A repetition changes nothing."""
    return await service.cancel(context.engine, campaign_id, cancelled_by=principal.name)


@router.get(
    "/campaigns/{campaign_id}/results",
    response_model=CampaignResults,
    responses=_ONE,
    openapi_extra=requires(Scope.READ),
)
async def get_campaign_results(context: Context, campaign_id: CampaignPath) -> Response:
    """Return every experiment over its cycles from the runs aggregated so far, and why other runs have no result."""
    pieces = await results.campaign_results(context.engine, campaign_id)
    return StreamingResponse(pieces, media_type="application/json")
