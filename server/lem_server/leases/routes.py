"""HTTP of leases: claims and heartbeats of workers."""

from __future__ import annotations

import math

from fastapi import APIRouter, Response, status

from lem_domain.errors import ProblemCode
from lem_domain.wire.workers import Assignment, ClaimRequest, Heartbeat, HeartbeatAnswer
from lem_server.context import Context
from lem_server.http.path_ids import WorkerPath
from lem_server.leases import claims, service
from lem_server.leases.dependencies import declares_work

router = APIRouter(prefix="/api/v1", tags=["worker protocol"])

_C = ProblemCode


@router.post(
    "/workers/{worker_id}/claims",
    response_model=Assignment,
    **declares_work(
        _C.BOOT_SUPERSEDED,
        _C.LEASE_LOST,
        answers={
            status.HTTP_204_NO_CONTENT: {
                "description": "No run within `wait_s`.",
                "headers": {
                    "Retry-After": {
                        "description": "A run for this worker has to wait: seconds until the next claim is useful.",
                        "schema": {"type": "integer"},
                    }
                },
            }
        },
    ),
)
async def claim_run(context: Context, worker_id: WorkerPath, request: ClaimRequest) -> Assignment | Response:
    """Claim the next run that fits, waiting up to `wait_s`. A repeated `claim_id` returns the same attempt."""
    found = await claims.claim(
        context.engine, context.hub, context.settings.lease_terms, worker_id=worker_id, request=request
    )
    if found.assignment is not None:
        return found.assignment
    headers = {} if found.retry_after_s is None else {"Retry-After": str(math.ceil(found.retry_after_s))}
    return Response(status_code=status.HTTP_204_NO_CONTENT, headers=headers)


@router.post("/workers/{worker_id}/heartbeat", **declares_work(_C.BOOT_SUPERSEDED))
async def send_heartbeat(context: Context, worker_id: WorkerPath, request: Heartbeat) -> HeartbeatAnswer:
    """Renew every lease that the worker holds in one request, and return a verdict on each."""
    return await service.heartbeat(context.engine, context.settings.lease_terms, worker_id=worker_id, request=request)
