"""SQL of workers. There are few of them, so lists scan the primary key."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

from lem_domain.ids import IdKind
from lem_domain.wire.base import Page
from lem_domain.wire.workers import WorkerView
from lem_server.database.rows import read_one
from lem_server.http.paging import Listing
from lem_server.http.problems import required
from lem_server.settings import LeaseTerms

_WORKERS = Listing("workers", WorkerView, id=UUID)
_REGISTER = text("""
    INSERT INTO workers (id, boot_id, name, host, backend, devices, versions, labels)
    VALUES (:id, :boot_id, :name, :host, :backend, :devices, :versions, :labels)
    ON CONFLICT (id) DO UPDATE
       SET boot_id = excluded.boot_id, name = excluded.name, host = excluded.host, backend = excluded.backend,
           devices = excluded.devices, versions = excluded.versions, labels = excluded.labels,
           last_seen_at = now(), signed_off_at = NULL,
           draining = workers.draining AND workers.boot_id = excluded.boot_id
     WHERE workers.boot_id = excluded.boot_id
        OR NOT EXISTS (SELECT 1 FROM worker_boots b WHERE b.worker_id = excluded.id AND b.boot_id = excluded.boot_id)
    RETURNING id
""").bindparams(*(bindparam(name, type_=JSONB) for name in ("devices", "versions", "labels")))


_INSERT_BOOT = text("""
    INSERT INTO worker_boots (worker_id, boot_id) VALUES (:id, :boot_id) ON CONFLICT (worker_id, boot_id) DO NOTHING
""")


async def register(connection: AsyncConnection, **values: object) -> bool:
    """Store a registration; a new boot ends draining.

    Returns False when another boot superseded this one: a late request must not undo a newer registration.
    """
    if (await connection.execute(_REGISTER, values)).one_or_none() is None:
        return False
    await connection.execute(_INSERT_BOOT, {"id": values["id"], "boot_id": values["boot_id"]})
    return True


_OFFLINE = "w.signed_off_at IS NOT NULL OR w.last_seen_at + :ttl < now()"
_SELECT = f"""
    SELECT w.id, w.name, w.host, w.backend, w.devices, w.versions, w.labels, w.registered_at,
           w.last_seen_at,
           CASE WHEN {_OFFLINE} THEN 'offline'
                WHEN w.draining THEN 'draining' ELSE 'online' END AS state,
           coalesce(array_agg(l.attempt_id) FILTER (WHERE l.attempt_id IS NOT NULL), '{{}}') AS current_attempts,
           coalesce(array_agg(l.run_id) FILTER (WHERE l.run_id IS NOT NULL), '{{}}') AS current_runs
      FROM workers w
      LEFT JOIN leases l ON l.worker_id = w.id
"""  # noqa: S608 - constants


_LIST = text(_SELECT + " WHERE CAST(:after AS uuid) IS NULL OR w.id > :after GROUP BY w.id ORDER BY w.id LIMIT :limit")
_GET = text(_SELECT + " WHERE w.id = :id GROUP BY w.id")
COUNT_ONLINE = text(f"SELECT backend, count(*) AS workers FROM workers w WHERE NOT ({_OFFLINE}) GROUP BY backend")  # noqa: S608


async def list_workers(
    connection: AsyncConnection, terms: LeaseTerms, *, cursor: str | None, limit: int
) -> Page[WorkerView]:
    """Return a page of workers with their current attempts and runs, ordered by id."""
    (after,) = _WORKERS.after(cursor, None)
    return await _WORKERS.page(connection, _LIST, limit, ttl=timedelta(seconds=terms.ttl_s), after=after)


async def get_worker(connection: AsyncConnection, terms: LeaseTerms, worker_id: UUID) -> WorkerView:
    """Return a worker with its current attempts and runs.

    Raises:
        ProblemError: `not_found`.
    """
    found = await read_one(connection, _GET, WorkerView, ttl=timedelta(seconds=terms.ttl_s), id=worker_id)
    return required(found, IdKind.WORKER, worker_id)


DRAIN = text("UPDATE workers SET draining = true WHERE id = :id")
SIGN_OFF = text("""
    UPDATE workers SET signed_off_at = coalesce(signed_off_at, now()) WHERE id = :id AND boot_id = :boot_id
""")
