"""Routes of workers."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, status
from pydantic import Field

from lem_domain.errors import ProblemCode
from lem_domain.wire.access import Scope
from lem_domain.wire.base import Page, RequestModel
from lem_domain.wire.workers import Registered, RegisterWorker, WorkerView
from lem_server.access.guard import declares
from lem_server.context import Context
from lem_server.http.paging import Cursor, Limit
from lem_server.http.path_ids import WorkerPath
from lem_server.leases.dependencies import declares_work
from lem_server.workers import queries, service

router = APIRouter(prefix="/api/v1/workers", tags=["workers"])

_C = ProblemCode


class SignOff(RequestModel):
    """Sent by a worker that shuts down."""

    boot_id: UUID = Field(description="The boot that shuts down.")


@router.post("", **declares_work(_C.BOOT_SUPERSEDED))
async def register_worker(context: Context, request: RegisterWorker) -> Registered:
    """Register a worker. A new boot ends the leases of its older boots at once."""
    return await service.register(context.engine, context.settings.lease_terms, request)


@router.get("", **declares(Scope.READ, _C.BAD_REQUEST))
async def list_workers(context: Context, limit: Limit = 100, cursor: Cursor = None) -> Page[WorkerView]:
    """List all workers that ever registered, with their current attempts and runs."""
    async with context.engine.connect() as connection:
        return await queries.list_workers(connection, context.settings.lease_terms, cursor=cursor, limit=limit)


@router.get("/{worker_id}", **declares(Scope.READ, _C.NOT_FOUND))
async def get_worker(context: Context, worker_id: WorkerPath) -> WorkerView:
    """Return a worker."""
    async with context.engine.connect() as connection:
        return await queries.get_worker(connection, context.settings.lease_terms, worker_id)


@router.post("/{worker_id}:drain", **declares(Scope.SUBMIT, _C.NOT_FOUND))
async def drain_worker(context: Context, worker_id: WorkerPath) -> WorkerView:
    """Drain a worker: it finishes its attempts and claims nothing more until it is restarted."""
    return await service.drain(context.engine, context.settings.lease_terms, worker_id)


@router.post("/{worker_id}:sign_off", status_code=status.HTTP_204_NO_CONTENT, **declares_work(_C.BOOT_SUPERSEDED))
async def sign_off_worker(context: Context, worker_id: WorkerPath, request: SignOff) -> None:
    """Sign a worker off: it is offline at once, and its current runs are interrupted."""
    await service.sign_off(context.engine, worker_id, request.boot_id)
