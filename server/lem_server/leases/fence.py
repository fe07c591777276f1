"""The fence: a worker's write counts only while the lease names its attempt, its id and its boot.

Only the database's clock decides what has expired. Lock order in every transaction: worker, campaign, run, attempt,
lease. A claim locks its run before the campaign, but with SKIP LOCKED (see `claim_queries`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

from lem_domain.errors import ProblemCode
from lem_server.database.rows import read_all, read_one
from lem_server.http.problems import ProblemError
from lem_server.settings import LeaseTerms


class FencedAttempt(NamedTuple):
    """An attempt, and the worker and boot that claim to hold its lease."""

    attempt_id: UUID
    worker_id: UUID
    boot_id: UUID


def lease_lost() -> ProblemError:
    """Build the answer to a worker that writes without the lease."""
    return ProblemError(
        ProblemCode.LEASE_LOST,
        "this worker no longer holds the attempt's lease; stop the attempt, its result is not accepted.",
    )


# KEY SHARE conflicts with the deletion of the lease but not with heartbeats, which update no key column.
_FENCE = text("""
    SELECT cancel FROM leases
     WHERE attempt_id = :attempt_id AND worker_id = :worker_id AND boot_id = :boot_id
       FOR KEY SHARE
""")


async def require_lease(connection: AsyncConnection, attempt: FencedAttempt) -> bool:
    """Keep the lease until the transaction ends; return whether the attempt is to be cancelled.

    Raises:
        ProblemError: `lease_lost`.
    """
    cancel: bool | None = (await connection.execute(_FENCE, attempt._asdict())).scalar_one_or_none()
    if cancel is None:
        raise lease_lost()
    return cancel


# FOR UPDATE waits for every write of evidence that holds the fence, so that none of them commits after the end.
_LOCK_LEASE = text("""
    SELECT 1 FROM leases
     WHERE attempt_id = :attempt_id AND worker_id = :worker_id AND boot_id = :boot_id
       FOR UPDATE
""")


async def lock_lease(connection: AsyncConnection, attempt: FencedAttempt) -> bool:
    """Lock the lease in order to end it; return False if it is not held. The run's row must be locked already."""
    return (await connection.execute(_LOCK_LEASE, attempt._asdict())).one_or_none() is not None


# Claims that wait for a run are notified, because the devices are free now: lem_queue is the channel of the queue.
_DELETE_LEASE = text("""
    WITH ended AS (DELETE FROM leases WHERE attempt_id = :id RETURNING attempt_id)
    SELECT pg_notify('lem_queue', '') FROM ended
""")


async def end_lease(connection: AsyncConnection, attempt_id: UUID) -> None:
    """Delete a locked lease together with its device leases (ON DELETE CASCADE), and wake waiting claims."""
    await connection.execute(_DELETE_LEASE, {"id": attempt_id})


async def leases_of_worker(connection: AsyncConnection, worker_id: UUID) -> list[FencedAttempt]:
    """Return the attempts that a worker leases, also those of earlier boots (a scan of a small table)."""
    statement = text("SELECT attempt_id, worker_id, boot_id FROM leases WHERE worker_id = :id ORDER BY attempt_id")
    return await read_all(connection, statement, FencedAttempt, id=worker_id)


async def expired_attempts(connection: AsyncConnection, terms: LeaseTerms) -> list[UUID]:
    """Return the attempts whose lease ran out longer ago than the grace (a scan of a small table)."""
    rows = await connection.execute(
        text("SELECT attempt_id FROM leases WHERE until + :grace < now() ORDER BY attempt_id"),
        {"grace": timedelta(seconds=terms.grace_s)},
    )
    return list(rows.scalars())


async def lock_if_expired(connection: AsyncConnection, attempt_id: UUID, terms: LeaseTerms) -> bool:
    """Lock a lease in order to end it; return False if it was renewed. The run's row must be locked already."""
    # FOR UPDATE waits for a heartbeat that is renewing the lease, then checks `until` again (READ COMMITTED), and for
    # the writes that hold the fence.
    row = await connection.execute(
        text("SELECT 1 FROM leases WHERE attempt_id = :attempt_id AND until + :grace < now() FOR UPDATE"),
        {"attempt_id": attempt_id, "grace": timedelta(seconds=terms.grace_s)},
    )
    return row.one_or_none() is not None


class WorkerBoot(NamedTuple):
    """The state of a worker that a claim or a heartbeat checks."""

    backend: str
    draining: bool


# A request may arrive after its worker signed off, so only a registration revives a boot that has signed off.
_CONTACT = text("""
    UPDATE workers
       SET last_seen_at = now(), temperatures_c = coalesce(:temperatures_c, temperatures_c),
           asked_at = CASE WHEN :temperatures_c IS NULL THEN asked_at ELSE now() END
     WHERE id = :id AND boot_id = :boot_id AND signed_off_at IS NULL
    RETURNING backend, draining
""").bindparams(bindparam("temperatures_c", type_=JSONB(none_as_null=True)))


async def require_boot(
    connection: AsyncConnection, worker_id: UUID, boot_id: UUID, temperatures_c: Mapping[str, float] | None = None
) -> WorkerBoot:
    """Record a sign of life and lock the worker's row. A claim gives the temperatures (°C) of its devices.

    Raises:
        ProblemError: `boot_superseded` if this boot is not current or has signed off.
    """
    temperatures = None if temperatures_c is None else dict(temperatures_c)
    values = {"id": worker_id, "boot_id": boot_id, "temperatures_c": temperatures}
    worker = await read_one(connection, _CONTACT, WorkerBoot, **values)
    if worker is None:
        raise ProblemError(
            ProblemCode.BOOT_SUPERSEDED,
            "this boot of the worker is not registered, has signed off, or a newer one is; register again.",
        )
    return worker
