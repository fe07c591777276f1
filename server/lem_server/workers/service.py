"""Registers, lists, drains and signs off workers."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id, parse_id
from lem_domain.wire.workers import Device, Registered, RegisterWorker, WorkerState, WorkerView
from lem_server.attempts import service as attempts
from lem_server.http.problems import ProblemError, not_found
from lem_server.settings import LeaseTerms
from lem_server.workers import queries

_WORKERS_PER_PAGE = 500


async def register(engine: AsyncEngine, terms: LeaseTerms, request: RegisterWorker) -> Registered:
    """Register a worker and end the leases of its older boots.

    Raises:
        ProblemError: `boot_superseded` when a newer boot registered before.
    """
    worker_id = parse_id(IdKind.WORKER, request.id)
    async with engine.begin() as connection:
        registered = await queries.register(
            connection,
            **{
                "id": worker_id,
                **request.model_dump(mode="json", include={"name", "host", "backend", "devices", "versions", "labels"}),
                "boot_id": request.boot_id,
            },
        )
        if not registered:
            raise ProblemError(
                ProblemCode.BOOT_SUPERSEDED,
                "a newer boot of this worker is registered; restart the worker for a new boot.",
            )
        await attempts.end_older_boots(connection, worker_id=worker_id, boot_id=request.boot_id)
    return Registered(id=request.id, beat_interval_s=terms.heartbeat_interval_s, lease_ttl_s=terms.ttl_s)


async def list_workers(
    engine: AsyncEngine, terms: LeaseTerms, *, after: UUID | None, limit: int
) -> tuple[tuple[WorkerView, ...], UUID | None]:
    """Return one page of workers, and the cursor of the next; None at the end."""
    async with engine.connect() as connection:
        rows = await queries.list_workers(connection, ttl=timedelta(seconds=terms.ttl_s), after=after, limit=limit + 1)
    shown = rows[:limit]
    return tuple(_view(row) for row in shown), shown[-1].id if len(rows) > limit else None


async def online_by_backend(engine: AsyncEngine, terms: LeaseTerms) -> dict[str, int]:
    """Count the workers of each backend that are not offline."""
    counted: dict[str, int] = {}
    after: UUID | None = None
    while True:
        found, after = await list_workers(engine, terms, after=after, limit=_WORKERS_PER_PAGE)
        for worker in found:
            if worker.state is not WorkerState.OFFLINE:
                counted[worker.backend] = counted.get(worker.backend, 0) + 1
        if after is None:
            return counted


async def get_worker(engine: AsyncEngine, terms: LeaseTerms, worker_id: UUID) -> WorkerView:
    """Return a worker.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        row = await queries.get_worker(connection, worker_id, ttl=timedelta(seconds=terms.ttl_s))
    if row is None:
        raise not_found(IdKind.WORKER, worker_id)
    return _view(row)


async def drain(engine: AsyncEngine, terms: LeaseTerms, worker_id: UUID) -> WorkerView:
    """Mark a worker as draining: it finishes its attempts and claims nothing more until it is restarted.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.begin() as connection:
        if not await queries.set_draining(connection, worker_id):
            raise not_found(IdKind.WORKER, worker_id)
    return await get_worker(engine, terms, worker_id)


async def sign_off(engine: AsyncEngine, worker_id: UUID, boot_id: UUID) -> None:
    """Mark a worker as offline and interrupt its current runs.

    Raises:
        ProblemError: `boot_superseded`.
    """
    async with engine.begin() as connection:
        if not await queries.sign_off(connection, worker_id, boot_id):
            raise ProblemError(
                ProblemCode.BOOT_SUPERSEDED,
                "this boot of the worker is not registered, or a newer boot is; restart the worker.",
            )
        await attempts.end_leaving_boot(connection, worker_id=worker_id, boot_id=boot_id)


def _view(row: queries.WorkerRow) -> WorkerView:
    state = WorkerState.OFFLINE if row.offline else WorkerState.DRAINING if row.draining else WorkerState.ONLINE
    return WorkerView(
        id=format_id(IdKind.WORKER, row.id),
        name=row.name,
        host=row.host,
        backend=row.backend,
        state=state,
        devices=tuple(Device.model_validate(device) for device in row.devices),
        versions=row.versions,
        labels=row.labels,
        registered_at=row.registered_at,
        last_seen_at=row.last_seen_at,
        current_attempts=tuple(format_id(IdKind.ATTEMPT, attempt) for attempt in row.attempts),
        current_runs=tuple(format_id(IdKind.RUN, run) for run in row.runs),
    )
