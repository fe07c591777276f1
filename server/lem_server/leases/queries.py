"""SQL of leases: the fence, heartbeats and expiry. Only the database's clock decides what has expired.

Lock order in every transaction: worker, campaign, run, attempt, lease. A claim locks its run before the campaign, but
with SKIP LOCKED (see `claim_queries`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import UUID as PgUuid
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

# KEY SHARE conflicts with the deletion of the lease but not with heartbeats, which update no key column.
_FENCE = text("""
    SELECT cancel FROM leases
     WHERE attempt_id = :attempt_id AND worker_id = :worker_id AND boot_id = :boot_id
       FOR KEY SHARE
""")


async def hold_fence(connection: AsyncConnection, *, attempt_id: UUID, worker_id: UUID, boot_id: UUID) -> bool | None:
    """Keep the lease from ending before the transaction; return whether to cancel, or None without a lease."""
    found: bool | None = (
        await connection.execute(_FENCE, {"attempt_id": attempt_id, "worker_id": worker_id, "boot_id": boot_id})
    ).scalar_one_or_none()
    return found


# FOR UPDATE waits for every write of evidence that holds the fence, so that none of them commits after the end.
_LOCK_LEASE = text("""
    SELECT 1 FROM leases
     WHERE attempt_id = :attempt_id AND worker_id = :worker_id AND boot_id = :boot_id
       FOR UPDATE
""")


async def lock_lease(connection: AsyncConnection, *, attempt_id: UUID, worker_id: UUID, boot_id: UUID) -> bool:
    """Lock a lease in order to end it; return False if this boot of the worker does not hold it."""
    row = await connection.execute(_LOCK_LEASE, {"attempt_id": attempt_id, "worker_id": worker_id, "boot_id": boot_id})
    return row.one_or_none() is not None


# Claims that wait for a run are notified, because the devices are free now: lem_queue is the channel of the queue.
_DELETE_LEASE = text("""
    WITH ended AS (DELETE FROM leases WHERE attempt_id = :id RETURNING attempt_id)
    SELECT pg_notify('lem_queue', '') FROM ended
""")


async def delete_lease(connection: AsyncConnection, attempt_id: UUID) -> None:
    """Delete a lease together with its device leases (ON DELETE CASCADE), and wake waiting claims."""
    await connection.execute(_DELETE_LEASE, {"id": attempt_id})


class WorkerBoot(NamedTuple):
    """The state of a worker that a claim or a heartbeat checks."""

    boot_id: UUID
    backend: str
    draining: bool


# A heartbeat may arrive after its worker signed off, so only a registration revives a boot that has signed off.
_CONTACT = text("""
    UPDATE workers SET last_seen_at = now()
     WHERE id = :id AND boot_id = :boot_id AND signed_off_at IS NULL
    RETURNING boot_id, backend, draining
""")


async def record_contact(connection: AsyncConnection, worker_id: UUID, boot_id: UUID) -> WorkerBoot | None:
    """Record a sign of life and lock the worker's row; return None if this boot is not current or has signed off."""
    row = (await connection.execute(_CONTACT, {"id": worker_id, "boot_id": boot_id})).one_or_none()
    return None if row is None else WorkerBoot(*row)


class RenewedLease(NamedTuple):
    """A lease that a heartbeat renewed, and the requests to its worker."""

    attempt_id: UUID
    cancel: bool
    pause: bool
    was_late: bool
    """It had run out; lease_events has a `recovered` entry now."""


# Primary key of leases. No index covers a changed column, so PostgreSQL updates within the page (HOT). Leases are
# locked in the order of their ids, so that two heartbeats cannot deadlock, and before their old values are read. An
# expiry is logged here too, because maintenance may not have run since.
_RENEW = text("""
    WITH held AS (
        SELECT l.attempt_id, l.run_id, l.until, l.beat_at, l.suspect_since
          FROM leases l
         WHERE l.attempt_id = ANY(:attempt_ids) AND l.worker_id = :worker_id AND l.boot_id = :boot_id
         ORDER BY l.attempt_id
           FOR NO KEY UPDATE
    ), renewed AS (
        UPDATE leases l
           SET until = now() + :ttl, beat_at = now(), suspect_since = NULL,
               progress = coalesce(sent.progress, l.progress)
          FROM unnest(:attempt_ids, :progress) AS sent (attempt_id, progress)
          JOIN held ON held.attempt_id = sent.attempt_id
         WHERE l.attempt_id = sent.attempt_id
        RETURNING l.attempt_id, l.cancel, l.pause
    ), logged AS (
        INSERT INTO lease_events (attempt_id, run_id, kind, at, silent_s)
        SELECT held.attempt_id, held.run_id, event.kind, event.at, extract(epoch FROM event.at - held.beat_at)
          FROM held
         CROSS JOIN LATERAL (
               VALUES ('suspect', held.until, held.suspect_since IS NULL), ('recovered', now(), true)
               ) AS event (kind, at, new)
         WHERE held.until < now() AND event.new
         ORDER BY held.attempt_id, event.at
    )
    SELECT renewed.attempt_id, renewed.cancel, renewed.pause, held.until < now()
      FROM renewed
      JOIN held ON held.attempt_id = renewed.attempt_id
""").bindparams(
    bindparam("attempt_ids", type_=ARRAY(PgUuid(as_uuid=True))),
    bindparam("progress", type_=ARRAY(JSONB(none_as_null=True))),
)


async def renew(
    connection: AsyncConnection,
    *,
    worker_id: UUID,
    boot_id: UUID,
    attempts: Sequence[tuple[UUID, dict[str, Any] | None]],
    ttl: timedelta,
) -> dict[UUID, RenewedLease]:
    """Renew the leases that this boot of the worker still holds; return them by attempt."""
    rows = await connection.execute(
        _RENEW,
        {
            "worker_id": worker_id,
            "boot_id": boot_id,
            "ttl": ttl,
            "attempt_ids": [attempt_id for attempt_id, _ in attempts],
            "progress": [progress for _, progress in attempts],
        },
    )
    return {row[0]: RenewedLease(*row) for row in rows}


# A scan: the table has one row per running attempt. SKIP LOCKED leaves a lease that a heartbeat is renewing right now
# to the next pass.
_SUSPECT = text("""
    WITH late AS (
        SELECT attempt_id FROM leases WHERE until < now() AND suspect_since IS NULL
         ORDER BY attempt_id
           FOR NO KEY UPDATE SKIP LOCKED
    ), marked AS (
        UPDATE leases l SET suspect_since = l.until FROM late WHERE l.attempt_id = late.attempt_id
        RETURNING l.attempt_id, l.run_id, l.until, l.beat_at
    )
    INSERT INTO lease_events (attempt_id, run_id, kind, at, silent_s)
    SELECT attempt_id, run_id, 'suspect', until, extract(epoch FROM until - beat_at) FROM marked ORDER BY attempt_id
    RETURNING attempt_id
""")


async def mark_suspects(connection: AsyncConnection) -> list[UUID]:
    """Log the leases that ran out since the last pass; their attempts can recover until the grace ends."""
    return list((await connection.execute(_SUSPECT)).scalars())


async def expired_attempts(connection: AsyncConnection, grace: timedelta) -> list[UUID]:
    """Return the attempts whose lease ended more than `grace` ago (a scan of a small table)."""
    rows = await connection.execute(
        text("SELECT attempt_id FROM leases WHERE until + :grace < now() ORDER BY attempt_id"), {"grace": grace}
    )
    return list(rows.scalars())


async def still_expired(connection: AsyncConnection, attempt_id: UUID, grace: timedelta) -> bool:
    """Lock a lease in order to end it; return False if a heartbeat renewed it meanwhile."""
    # FOR UPDATE waits for a heartbeat that is renewing the lease, then checks `until` again (READ COMMITTED), and for
    # the writes that hold the fence.
    row = await connection.execute(
        text("SELECT 1 FROM leases WHERE attempt_id = :attempt_id AND until + :grace < now() FOR UPDATE"),
        {"attempt_id": attempt_id, "grace": grace},
    )
    return row.one_or_none() is not None


async def attempts_of_boot(connection: AsyncConnection, worker_id: UUID, boot_id: UUID) -> list[UUID]:
    """Return the attempts that this boot of a worker leases."""
    rows = await connection.execute(
        text("SELECT attempt_id FROM leases WHERE worker_id = :w AND boot_id = :b ORDER BY attempt_id"),
        {"w": worker_id, "b": boot_id},
    )
    return list(rows.scalars())


async def attempts_of_other_boots(connection: AsyncConnection, worker_id: UUID, boot_id: UUID) -> list[UUID]:
    """Return the attempts that other boots of a worker still lease."""
    rows = await connection.execute(
        text("SELECT attempt_id FROM leases WHERE worker_id = :w AND boot_id <> :b ORDER BY attempt_id"),
        {"w": worker_id, "b": boot_id},
    )
    return list(rows.scalars())
