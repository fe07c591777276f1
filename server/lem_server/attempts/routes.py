"""HTTP of attempts: reading them, and their start and end by the worker."""

from __future__ import annotations

from fastapi import APIRouter

from lem_domain.errors import ProblemCode
from lem_domain.wire.access import Scope
from lem_domain.wire.base import Page
from lem_domain.wire.runs import AttemptView
from lem_domain.wire.workers import CompleteAttempt, EndAttempt, StartAttempt
from lem_server.access.guard import declares
from lem_server.attempts import queries, service
from lem_server.context import Context
from lem_server.http.paging import Cursor, Limit
from lem_server.http.path_ids import AttemptPath, RunPath
from lem_server.leases.dependencies import AttemptOfWorker, declares_work

router = APIRouter(prefix="/api/v1", tags=["attempts"])

_C = ProblemCode


@router.get("/attempts/{attempt_id}", **declares(Scope.READ, _C.NOT_FOUND))
async def get_attempt(context: Context, attempt_id: AttemptPath) -> AttemptView:
    """Return one attempt with its environment and the configuration that was in force."""
    async with context.engine.connect() as connection:
        return await queries.get_attempt(connection, attempt_id)


@router.get("/runs/{run_id}/attempts", **declares(Scope.READ, _C.BAD_REQUEST, _C.NOT_FOUND))
async def list_run_attempts(
    context: Context, run_id: RunPath, limit: Limit = 100, cursor: Cursor = None
) -> Page[AttemptView]:
    """List the attempts of a run, the first one first."""
    async with context.engine.connect() as connection:
        return await queries.ATTEMPTS.page(connection, run_id, cursor=cursor, limit=limit)


_CHANGE = (_C.NOT_FOUND, _C.LEASE_LOST, _C.ATTEMPT_CLOSED, _C.ILLEGAL_TRANSITION, _C.CLIENT_TOO_OLD)


@router.post("/attempts/{attempt_id}:start", **declares_work(*_CHANGE, _C.CONFLICT))
async def start_attempt(context: Context, attempt: AttemptOfWorker, request: StartAttempt) -> AttemptView:
    """Record that the backend is loaded and warm. The measured window may open once this is answered."""
    await service.start_attempt(context.engine, attempt, request)
    return await get_attempt(context, attempt.attempt_id)


@router.post("/attempts/{attempt_id}:complete", **declares_work(*_CHANGE, _C.MANIFEST_INCOMPLETE))
async def complete_attempt(context: Context, attempt: AttemptOfWorker, request: CompleteAttempt) -> AttemptView:
    """Complete an attempt whose evidence is all sent. The server compares the manifest and its digests with it."""
    await service.complete_attempt(context.engine, attempt, request)
    return await get_attempt(context, attempt.attempt_id)


@router.post("/attempts/{attempt_id}:end", **declares_work(*_CHANGE))
async def end_attempt(context: Context, attempt: AttemptOfWorker, request: EndAttempt) -> AttemptView:
    """End an attempt that failed, was interrupted or was cancelled. Evidence that it sent is kept."""
    await service.end_attempt(context.engine, attempt, request)
    return await get_attempt(context, attempt.attempt_id)
