"""SQL of workers. There are few of them, so lists scan the primary key."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam


class WorkerRow(NamedTuple):
    """A worker with its current attempts and runs."""

    id: UUID
    name: str
    host: str
    backend: str
    devices: list[dict[str, Any]]
    versions: dict[str, str]
    labels: dict[str, str]
    draining: bool
    registered_at: datetime
    last_seen_at: datetime
    offline: bool
    attempts: list[UUID]
    runs: list[UUID]


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


_SELECT = """
    SELECT w.id, w.name, w.host, w.backend, w.devices, w.versions, w.labels, w.draining, w.registered_at,
           w.last_seen_at, w.signed_off_at IS NOT NULL OR w.last_seen_at + :ttl < now() AS offline,
           coalesce(array_agg(l.attempt_id) FILTER (WHERE l.attempt_id IS NOT NULL), '{}') AS attempts,
           coalesce(array_agg(l.run_id) FILTER (WHERE l.run_id IS NOT NULL), '{}') AS runs
      FROM workers w
      LEFT JOIN leases l ON l.worker_id = w.id
"""


async def list_workers(
    connection: AsyncConnection, *, ttl: timedelta, after: UUID | None, limit: int
) -> list[WorkerRow]:
    """Return one page of workers, ordered by id."""
    rows = await connection.execute(
        text(_SELECT + " WHERE CAST(:after AS uuid) IS NULL OR w.id > :after GROUP BY w.id ORDER BY w.id LIMIT :limit"),
        {"ttl": ttl, "after": after, "limit": limit},
    )
    return [WorkerRow(*row) for row in rows]


async def get_worker(connection: AsyncConnection, worker_id: UUID, *, ttl: timedelta) -> WorkerRow | None:
    """Return a worker; None when there is none."""
    row = (
        await connection.execute(text(_SELECT + " WHERE w.id = :id GROUP BY w.id"), {"ttl": ttl, "id": worker_id})
    ).one_or_none()
    return None if row is None else WorkerRow(*row)


async def set_draining(connection: AsyncConnection, worker_id: UUID) -> bool:
    """Mark a worker as draining; return False when there is none."""
    done = await connection.execute(text("UPDATE workers SET draining = true WHERE id = :id"), {"id": worker_id})
    return done.rowcount == 1


async def sign_off(connection: AsyncConnection, worker_id: UUID, boot_id: UUID) -> bool:
    """Mark a worker as offline; return False when this is not its current boot."""
    done = await connection.execute(
        text("UPDATE workers SET signed_off_at = coalesce(signed_off_at, now()) WHERE id = :id AND boot_id = :boot_id"),
        {"id": worker_id, "boot_id": boot_id},
    )
    return done.rowcount == 1
