"""SQL of an attempt behind its lease: the fence, its start, its end, and what becomes of its run.

Lock order, everywhere: the run's row first, then its lease.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam


class AttemptRow(NamedTuple):
    """An attempt and the state of its run."""

    attempt_id: UUID
    run_id: UUID
    worker_id: UUID
    boot_id: UUID
    run_state: str
    current_attempt: UUID | None
    outcome: str | None
    started: bool
    manifest: Any
    cancel_requested: bool
    retries_left: int
    losses_left: int
    campaign_state: str


# KEY SHARE lets beats update the lease but keeps anybody from deleting it until this transaction ends.
_FENCE = text("""
    SELECT cancel FROM leases
     WHERE attempt_id = :attempt_id AND worker_id = :worker_id AND boot_id = :boot_id
       FOR KEY SHARE
""")


async def hold_fence(connection: AsyncConnection, *, attempt_id: UUID, worker_id: UUID, boot_id: UUID) -> bool | None:
    """Keep the lease from ending until the transaction does; None when it is not held, else whether to cancel."""
    found: bool | None = (
        await connection.execute(_FENCE, {"attempt_id": attempt_id, "worker_id": worker_id, "boot_id": boot_id})
    ).scalar_one_or_none()
    return found


# Whoever waited for the run sees only the locked rows as they are by then, so the attempt is locked too: in a mode that
# lets evidence refer to it, because a writer of evidence holds the lease already and would turn the order of locks.
_LOCK_ATTEMPT = text("""
    SELECT a.id, a.run_id, a.worker_id, a.boot_id, r.state, r.current_attempt, a.outcome, a.started_at IS NOT NULL,
           a.manifest, r.cancel_requested_at IS NOT NULL, r.retries_left, r.losses_left, c.state
      FROM attempts a
      JOIN runs r ON r.id = a.run_id
      JOIN campaigns c ON c.id = r.campaign_id
     WHERE a.id = :attempt_id
       FOR UPDATE OF r
       FOR NO KEY UPDATE OF a
""")


async def lock_attempt(connection: AsyncConnection, attempt_id: UUID) -> AttemptRow | None:
    """An attempt, its run's row and its own locked."""
    row = (await connection.execute(_LOCK_ATTEMPT, {"attempt_id": attempt_id})).one_or_none()
    return None if row is None else AttemptRow(*row)


async def lock_lease(connection: AsyncConnection, *, attempt_id: UUID, worker_id: UUID, boot_id: UUID) -> bool:
    """Lock the lease for ending it; False when this boot of the worker doesn't hold it."""
    row = await connection.execute(
        text("""
            SELECT 1 FROM leases
             WHERE attempt_id = :attempt_id AND worker_id = :worker_id AND boot_id = :boot_id
               FOR UPDATE
        """),
        {"attempt_id": attempt_id, "worker_id": worker_id, "boot_id": boot_id},
    )
    return row.one_or_none() is not None


# Devices come free, for other workers of the machine too; the channel of the queue is lem_queue.
_DELETE_LEASE = text("""
    WITH ended AS (DELETE FROM leases WHERE attempt_id = :id RETURNING attempt_id)
    SELECT pg_notify('lem_queue', '') FROM ended
""")


async def delete_lease(connection: AsyncConnection, attempt_id: UUID) -> None:
    """End a lease; its device leases go with it, and who waits for the devices is woken."""
    await connection.execute(_DELETE_LEASE, {"id": attempt_id})


_STORE_START = text("""
    UPDATE attempts
       SET started_at = coalesce(started_at, clock_timestamp()), environment = :environment,
           effective_config = :effective_config
     WHERE id = :attempt_id
""").bindparams(bindparam("environment", type_=JSONB), bindparam("effective_config", type_=JSONB))


async def store_start(
    connection: AsyncConnection,
    attempt_id: UUID,
    *,
    environment: dict[str, Any],
    effective_config: dict[str, Any],
) -> None:
    """What the worker found before its window opened."""
    await connection.execute(
        _STORE_START,
        {"attempt_id": attempt_id, "environment": environment, "effective_config": effective_config},
    )


_CLOSE_ATTEMPT = text("""
    UPDATE attempts
       SET ended_at = clock_timestamp(), outcome = :outcome, reason = :reason, message = :message,
           manifest = coalesce(:manifest, manifest), environment = coalesce(environment, :environment),
           effective_config = coalesce(effective_config, :effective_config)
     WHERE id = :attempt_id
""").bindparams(
    bindparam("manifest", type_=JSONB(none_as_null=True)),
    bindparam("environment", type_=JSONB(none_as_null=True)),
    bindparam("effective_config", type_=JSONB(none_as_null=True)),
)


async def close_attempt(
    connection: AsyncConnection,
    attempt_id: UUID,
    *,
    outcome: str,
    reason: str | None = None,
    message: str | None = None,
    manifest: list[dict[str, Any]] | None = None,
    environment: dict[str, Any] | None = None,
    effective_config: dict[str, Any] | None = None,
) -> None:
    """Write how an attempt ended."""
    await connection.execute(
        _CLOSE_ATTEMPT,
        {
            "attempt_id": attempt_id,
            "outcome": outcome,
            "reason": reason,
            "message": message,
            "manifest": manifest,
            "environment": environment,
            "effective_config": effective_config,
        },
    )


async def move_run(
    connection: AsyncConnection, run_id: UUID, state: str, *, reason: str | None = None, message: str | None = None
) -> None:
    """Move a locked run along an edge; the database refuses an illegal one."""
    await connection.execute(
        text("UPDATE runs SET state = :state, reason = :reason, message = :message WHERE id = :run_id"),
        {"run_id": run_id, "state": state, "reason": reason, "message": message},
    )


async def requeue(connection: AsyncConnection, run_id: UUID, *, retries: int, losses: int, message: str) -> None:
    """Queue a run again and take what it costs from its budgets."""
    await connection.execute(
        text("""
            UPDATE runs
               SET state = 'queued', reason = NULL, message = :message,
                   retries_left = retries_left - :retries, losses_left = losses_left - :losses
             WHERE id = :run_id
        """),
        {"run_id": run_id, "retries": retries, "losses": losses, "message": message},
    )


async def attempts_of_boot(connection: AsyncConnection, worker_id: UUID, boot_id: UUID) -> list[UUID]:
    """Attempts that this boot of a worker leases."""
    rows = await connection.execute(
        text("SELECT attempt_id FROM leases WHERE worker_id = :w AND boot_id = :b ORDER BY attempt_id"),
        {"w": worker_id, "b": boot_id},
    )
    return list(rows.scalars())


async def attempts_of_other_boots(connection: AsyncConnection, worker_id: UUID, boot_id: UUID) -> list[UUID]:
    """Attempts that an older boot of a worker still leases."""
    rows = await connection.execute(
        text("SELECT attempt_id FROM leases WHERE worker_id = :w AND boot_id <> :b ORDER BY attempt_id"),
        {"w": worker_id, "b": boot_id},
    )
    return list(rows.scalars())
