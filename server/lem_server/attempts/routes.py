"""HTTP of attempts: reading them, and their start and end by the worker."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from lem_domain.errors import ProblemCode
from lem_domain.wire.access import Scope
from lem_domain.wire.base import Page
from lem_domain.wire.runs import AttemptView
from lem_domain.wire.workers import CompleteAttempt, EndAttempt, StartAttempt
from lem_server.access.guard import requires
from lem_server.attempts import queries, service
from lem_server.context import Context
from lem_server.http.paging import Cursor, Limit
from lem_server.http.path_ids import AttemptPath, RunPath
from lem_server.http.problems import problem_responses
from lem_server.leases.dependencies import AttemptOfWorker, require_protocol

router = APIRouter(prefix="/api/v1", tags=["attempts"])

_C = ProblemCode
_READ = requires(Scope.READ)
_WORK = requires(Scope.WORK)
_PROTOCOL = [Depends(require_protocol)]


@router.get("/attempts/{attempt_id}", responses=problem_responses(_C.NOT_FOUND), openapi_extra=_READ)
async def get_attempt(context: Context, attempt_id: AttemptPath) -> AttemptView:
    """Return one attempt with its environment and the configuration that was in force."""
    async with context.engine.connect() as connection:
        return await queries.get_attempt(connection, attempt_id)


@router.get(
    "/runs/{run_id}/attempts",
    responses=problem_responses(_C.BAD_REQUEST, _C.NOT_FOUND),
    openapi_extra=_READ,
)
async def list_run_attempts(
    context: Context, run_id: RunPath, limit: Limit = 100, cursor: Cursor = None
) -> Page[AttemptView]:
    """List the attempts of a run, the first one first."""
    async with context.engine.connect() as connection:
        return await queries.list_attempts(connection, run_id, cursor=cursor, limit=limit)


_CHANGE = (_C.NOT_FOUND, _C.LEASE_LOST, _C.ATTEMPT_CLOSED, _C.ILLEGAL_TRANSITION, _C.CLIENT_TOO_OLD)


@router.post(
    "/attempts/{attempt_id}:start",
    responses=problem_responses(*_CHANGE, _C.CONFLICT),
    openapi_extra=_WORK,
    dependencies=_PROTOCOL,
)
async def start_attempt(context: Context, attempt: AttemptOfWorker, request: StartAttempt) -> AttemptView:
    """Record that the backend is loaded and warm. The measured window may open once this is answered."""
    await service.start_attempt(context.engine, attempt, request)
    return await get_attempt(context, attempt.attempt_id)


@router.post(
    "/attempts/{attempt_id}:complete",
    responses=problem_responses(*_CHANGE, _C.MANIFEST_INCOMPLETE),
    openapi_extra=_WORK,
    dependencies=_PROTOCOL,
)
async def complete_attempt(context: Context, attempt: AttemptOfWorker, request: CompleteAttempt) -> AttemptView:
    """Complete an attempt whose evidence is all sent. The server compares the manifest and its digests with it."""
    await service.complete_attempt(context.engine, attempt, request)
    return await get_attempt(context, attempt.attempt_id)


@router.post(
    "/attempts/{attempt_id}:end",
    responses=problem_responses(*_CHANGE),
    openapi_extra=_WORK,
    dependencies=_PROTOCOL,
)
async def end_attempt(context: Context, attempt: AttemptOfWorker, request: EndAttempt) -> AttemptView:
    """End an attempt that failed, was interrupted or was cancelled. Evidence that it sent is kept."""
    await service.end_attempt(context.engine, attempt, request)
    return await get_attempt(context, attempt.attempt_id)
