"""Registers, counts, drains and signs off workers."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, parse_id
from lem_domain.wire.workers import Registered, RegisterWorker, WorkerView
from lem_server.attempts import service as attempts
from lem_server.http.problems import ProblemError
from lem_server.settings import LeaseTerms
from lem_server.workers import queries


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


async def online_by_backend(engine: AsyncEngine, terms: LeaseTerms) -> dict[str, int]:
    """Count the workers of each backend that are not offline."""
    async with engine.connect() as connection:
        rows = await connection.execute(queries.COUNT_ONLINE, {"ttl": timedelta(seconds=terms.ttl_s)})
    return {row.backend: row.workers for row in rows}


async def drain(engine: AsyncEngine, terms: LeaseTerms, worker_id: UUID) -> WorkerView:
    """Mark a worker as draining: it finishes its attempts and claims nothing more until it is restarted.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.begin() as connection:
        await connection.execute(queries.DRAIN, {"id": worker_id})
        return await queries.get_worker(connection, terms, worker_id)


async def sign_off(engine: AsyncEngine, worker_id: UUID, boot_id: UUID) -> None:
    """Mark a worker as offline and interrupt its current runs.

    Raises:
        ProblemError: `boot_superseded`.
    """
    async with engine.begin() as connection:
        done = await connection.execute(queries.SIGN_OFF, {"id": worker_id, "boot_id": boot_id})
        if done.rowcount == 0:
            raise ProblemError(
                ProblemCode.BOOT_SUPERSEDED,
                "this boot of the worker is not registered, or a newer boot is; restart the worker.",
            )
        await attempts.end_leaving_boot(connection, worker_id=worker_id, boot_id=boot_id)
