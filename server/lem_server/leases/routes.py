"""HTTP of the lease protocol: what workers send beside their evidence."""

from __future__ import annotations

import math

from fastapi import APIRouter, Depends, Response, status

from lem_domain.errors import ProblemCode
from lem_domain.wire.access import Scope
from lem_domain.wire.runs import AttemptView
from lem_domain.wire.workers import (
    Assignment,
    BeatAnswer,
    ClaimRequest,
    CompleteAttempt,
    EndAttempt,
    Heartbeat,
    StartAttempt,
)
from lem_server.access.guard import requires
from lem_server.context import Context
from lem_server.http.path_ids import WorkerPath
from lem_server.http.problems import problem_responses
from lem_server.leases import claims, service
from lem_server.leases.dependencies import HolderOfAttempt, require_protocol
from lem_server.runs import service as runs

router = APIRouter(prefix="/api/v1", tags=["worker protocol"], dependencies=[Depends(require_protocol)])

_C = ProblemCode
_WORK = requires(Scope.WORK)


@router.post(
    "/workers/{worker_id}/claims",
    responses={
        status.HTTP_204_NO_CONTENT: {
            "description": "Nothing to do within `wait_s`.",
            "headers": {
                "Retry-After": {
                    "description": "There is a run for this worker that has to wait: seconds until it is worth asking.",
                    "schema": {"type": "integer"},
                }
            },
        },
        **problem_responses(_C.BOOT_SUPERSEDED, _C.LEASE_LOST, _C.CLIENT_TOO_OLD),
    },
    response_model=Assignment,
    openapi_extra=_WORK,
)
async def claim_run(context: Context, worker_id: WorkerPath, request: ClaimRequest) -> Assignment | Response:
    """Claim the next run that fits; held open up to `wait_s`. The same `claim_id` gets the same attempt."""
    found = await claims.claim(
        context.engine, context.hub, context.settings.lease_terms, worker_id=worker_id, request=request
    )
    if found.assignment is not None:
        return found.assignment
    headers = {} if found.again_in_s is None else {"Retry-After": str(math.ceil(found.again_in_s))}
    return Response(status_code=status.HTTP_204_NO_CONTENT, headers=headers)


@router.post(
    "/workers/{worker_id}/heartbeat",
    responses=problem_responses(_C.BOOT_SUPERSEDED, _C.CLIENT_TOO_OLD),
    openapi_extra=_WORK,
)
async def beat(context: Context, worker_id: WorkerPath, request: Heartbeat) -> BeatAnswer:
    """Renew every lease that the worker holds, in one call, and hear what became of them."""
    return await service.heartbeat(context.engine, context.settings.lease_terms, worker_id=worker_id, request=request)


_ENDS = problem_responses(_C.NOT_FOUND, _C.LEASE_LOST, _C.ATTEMPT_CLOSED, _C.ILLEGAL_TRANSITION, _C.CLIENT_TOO_OLD)


@router.post("/attempts/{attempt_id}:start", responses=_ENDS, openapi_extra=_WORK)
async def start_attempt(context: Context, holder: HolderOfAttempt, request: StartAttempt) -> AttemptView:
    """The backend is loaded and warm; the measured window may open when this is answered."""
    await service.start(context.engine, holder, request)
    return await runs.get_attempt(context.engine, holder.attempt_id)


@router.post(
    "/attempts/{attempt_id}:complete",
    responses=problem_responses(
        _C.NOT_FOUND, _C.LEASE_LOST, _C.ATTEMPT_CLOSED, _C.ILLEGAL_TRANSITION, _C.MANIFEST_INCOMPLETE, _C.CLIENT_TOO_OLD
    ),
    openapi_extra=_WORK,
)
async def complete_attempt(context: Context, holder: HolderOfAttempt, request: CompleteAttempt) -> AttemptView:
    """All evidence is sent; the manifest is compared with what is stored, to the digest."""
    await service.complete(context.engine, holder, request)
    return await runs.get_attempt(context.engine, holder.attempt_id)


@router.post("/attempts/{attempt_id}:end", responses=_ENDS, openapi_extra=_WORK)
async def end_attempt(context: Context, holder: HolderOfAttempt, request: EndAttempt) -> AttemptView:
    """The attempt failed, was interrupted or cancelled; what it sent so far is kept."""
    await service.end_attempt(context.engine, holder, request)
    return await runs.get_attempt(context.engine, holder.attempt_id)
