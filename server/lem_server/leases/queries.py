"""SQL of the lease protocol.

Lock order, everywhere: the run's row first, then its lease. Only the database's clock decides what has expired.
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
from sqlalchemy.types import Text


class ClaimRow(NamedTuple):
    """An attempt with what its worker needs."""

    attempt_id: UUID
    run_id: UUID
    campaign_id: UUID
    display_name: str
    cycle: int
    number: int
    config: dict[str, Any]
    config_hash: str
    devices: list[str]
    worker_id: UUID
    leased: bool


class Candidate(NamedTuple):
    """A queued run that was chosen and locked."""

    run_id: UUID
    device_count: int
    attempts: int


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


class LeaseRow(NamedTuple):
    """A lease that ended."""

    attempt_id: UUID
    run_id: UUID


class WorkerBoot(NamedTuple):
    """What a claim checks of its worker."""

    boot_id: UUID
    backend: str
    draining: bool


# The primary key of attempts' claim_id constraint.
_BY_CLAIM = text("""
    SELECT a.id, a.run_id, r.campaign_id, e.display_name, r.cycle, a.number, e.config, e.config_hash, a.devices,
           a.worker_id, l.attempt_id IS NOT NULL
      FROM attempts a
      JOIN runs r ON r.id = a.run_id
      JOIN experiments e ON e.id = r.experiment_id
      LEFT JOIN leases l ON l.attempt_id = a.id
     WHERE a.claim_id = :claim_id
""")


async def claim_row(connection: AsyncConnection, claim_id: UUID) -> ClaimRow | None:
    """The attempt that a claim made, if it was made."""
    row = (await connection.execute(_BY_CLAIM, {"claim_id": claim_id})).one_or_none()
    return None if row is None else ClaimRow(*row)


async def worker_boot(connection: AsyncConnection, worker_id: UUID) -> WorkerBoot | None:
    """The current boot of a worker."""
    row = (
        await connection.execute(
            text("SELECT boot_id, backend, draining FROM workers WHERE id = :id"), {"id": worker_id}
        )
    ).one_or_none()
    return None if row is None else WorkerBoot(*row)


_FREE_DEVICES = text("""
    SELECT offered.device
      FROM unnest(:devices) WITH ORDINALITY AS offered (device, place)
      JOIN workers w ON w.id = :worker_id
       AND w.devices @> jsonb_build_array(jsonb_build_object('uuid', offered.device))
     WHERE NOT EXISTS (SELECT 1 FROM device_leases d WHERE d.device_uuid = offered.device)
     ORDER BY offered.place
""").bindparams(bindparam("devices", type_=ARRAY(Text)))


async def free_devices(connection: AsyncConnection, worker_id: UUID, devices: Sequence[str]) -> list[str]:
    """Those of the offered devices that are the worker's and that nobody leases, in the offered order."""
    rows = await connection.execute(_FREE_DEVICES, {"worker_id": worker_id, "devices": list(devices)})
    return list(rows.scalars())


# Index ix_runs_claim; the campaigns' primary key.
_NEXT_RUN = text("""
    SELECT r.id, r.device_count, r.attempts
      FROM runs r
      JOIN campaigns c ON c.id = r.campaign_id
     WHERE r.state = 'queued' AND r.backend = :backend AND r.device_count <= :devices
       AND r.not_before <= now() AND c.state = 'active'
     ORDER BY r.priority DESC, r.campaign_id, r.position
     LIMIT 1
       FOR UPDATE OF r SKIP LOCKED
""")


async def next_run(connection: AsyncConnection, *, backend: str, devices: int) -> Candidate | None:
    """Lock the first queued run that fits."""
    row = (await connection.execute(_NEXT_RUN, {"backend": backend, "devices": devices})).one_or_none()
    return None if row is None else Candidate(*row)


_INSERT_ATTEMPT = text("""
    INSERT INTO attempts (id, run_id, number, worker_id, boot_id, claim_id, devices, device_details)
    SELECT :attempt_id, :run_id, :number, :worker_id, :boot_id, :claim_id, :devices,
           (SELECT jsonb_agg(known.device ORDER BY leased.place)
              FROM unnest(:devices) WITH ORDINALITY AS leased (uuid, place)
              JOIN jsonb_array_elements(w.devices) AS known (device) ON known.device ->> 'uuid' = leased.uuid)
      FROM workers w WHERE w.id = :worker_id
""").bindparams(bindparam("devices", type_=ARRAY(Text)))

_INSERT_LEASE = text("""
    INSERT INTO leases (attempt_id, run_id, worker_id, boot_id, until)
    VALUES (:attempt_id, :run_id, :worker_id, :boot_id, now() + :ttl)
""")

# Sorted, so that two workers that take the same devices can't wait for each other.
_INSERT_DEVICE_LEASES = text("""
    INSERT INTO device_leases (device_uuid, attempt_id)
    SELECT device, :attempt_id FROM unnest(:devices) AS device ORDER BY device
    ON CONFLICT (device_uuid) DO NOTHING
""").bindparams(bindparam("devices", type_=ARRAY(Text)))

_INITIALISE = text("""
    UPDATE runs
       SET state = 'initialised', current_attempt = :attempt_id, attempts = attempts + 1,
           reason = NULL, message = NULL, cancel_requested_at = NULL
     WHERE id = :run_id
""")


async def insert_attempt(
    connection: AsyncConnection,
    *,
    attempt_id: UUID,
    candidate: Candidate,
    worker_id: UUID,
    boot_id: UUID,
    claim_id: UUID,
    devices: Sequence[str],
    ttl: timedelta,
) -> bool:
    """Make the attempt, its lease and its device leases; False when a device was leased meanwhile (roll back then)."""
    ids = {"attempt_id": attempt_id, "run_id": candidate.run_id, "worker_id": worker_id, "boot_id": boot_id}
    await connection.execute(
        _INSERT_ATTEMPT, {**ids, "number": candidate.attempts + 1, "claim_id": claim_id, "devices": list(devices)}
    )
    await connection.execute(_INSERT_LEASE, {**ids, "ttl": ttl})
    leased = await connection.execute(_INSERT_DEVICE_LEASES, {"attempt_id": attempt_id, "devices": list(devices)})
    if leased.rowcount != len(devices):
        return False
    await connection.execute(_INITIALISE, {"attempt_id": attempt_id, "run_id": candidate.run_id})
    return True


# Primary key of leases; no index stands on a changed column, so the update stays on its page (HOT).
_BEAT = text("""
    UPDATE leases l
       SET until = now() + :ttl, beat_at = now(), progress = coalesce(beat.progress, l.progress)
      FROM unnest(:attempt_ids, :progress) AS beat (attempt_id, progress)
     WHERE l.attempt_id = beat.attempt_id AND l.worker_id = :worker_id AND l.boot_id = :boot_id
    RETURNING l.attempt_id, l.cancel
""").bindparams(
    bindparam("attempt_ids", type_=ARRAY(PgUuid(as_uuid=True))),
    bindparam("progress", type_=ARRAY(JSONB(none_as_null=True))),
)


async def beat(
    connection: AsyncConnection,
    *,
    worker_id: UUID,
    boot_id: UUID,
    attempts: Sequence[tuple[UUID, dict[str, Any] | None]],
    ttl: timedelta,
) -> dict[UUID, bool]:
    """Renew the leases that this boot of the worker still holds; maps each to whether its cancel was asked for."""
    rows = await connection.execute(
        _BEAT,
        {
            "worker_id": worker_id,
            "boot_id": boot_id,
            "ttl": ttl,
            "attempt_ids": [attempt_id for attempt_id, _ in attempts],
            "progress": [progress for _, progress in attempts],
        },
    )
    return {row.attempt_id: row.cancel for row in rows}


async def touch_worker(connection: AsyncConnection, worker_id: UUID, boot_id: UUID) -> WorkerBoot | None:
    """Note that a worker was heard of and lock its row; None when this is not its current boot, or it has signed off.

    A claim may outlive its worker's connection, so only a registration brings a boot that has left back.
    """
    row = (
        await connection.execute(
            text("""
                UPDATE workers SET last_seen_at = now()
                 WHERE id = :id AND boot_id = :boot_id AND signed_off_at IS NULL
                RETURNING boot_id, backend, draining
            """),
            {"id": worker_id, "boot_id": boot_id},
        )
    ).one_or_none()
    return None if row is None else WorkerBoot(*row)


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


async def delete_lease(connection: AsyncConnection, attempt_id: UUID) -> None:
    """End a lease; its device leases go with it."""
    await connection.execute(text("DELETE FROM leases WHERE attempt_id = :id"), {"id": attempt_id})


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


async def expired_attempts(connection: AsyncConnection, grace: timedelta) -> list[UUID]:
    """Attempts whose lease ended more than the grace ago (the table is tiny: a scan)."""
    rows = await connection.execute(
        text("SELECT attempt_id FROM leases WHERE until + :grace < now() ORDER BY attempt_id"), {"grace": grace}
    )
    return list(rows.scalars())


async def attempts_of_boot(connection: AsyncConnection, worker_id: UUID, boot_id: UUID) -> list[UUID]:
    """Attempts that this boot of a worker leases."""
    rows = await connection.execute(
        text("SELECT attempt_id FROM leases WHERE worker_id = :w AND boot_id = :b ORDER BY attempt_id"),
        {"w": worker_id, "b": boot_id},
    )
    return list(rows.scalars())


async def still_expired(connection: AsyncConnection, attempt_id: UUID, grace: timedelta) -> bool:
    """Lock a lease if it has still not been renewed."""
    row = await connection.execute(
        text("""
            SELECT 1 FROM leases WHERE attempt_id = :attempt_id AND until + :grace < now() FOR UPDATE
        """),
        {"attempt_id": attempt_id, "grace": grace},
    )
    return row.one_or_none() is not None


async def attempts_of_other_boots(connection: AsyncConnection, worker_id: UUID, boot_id: UUID) -> list[UUID]:
    """Attempts that an older boot of a worker still leases."""
    rows = await connection.execute(
        text("SELECT attempt_id FROM leases WHERE worker_id = :w AND boot_id <> :b ORDER BY attempt_id"),
        {"w": worker_id, "b": boot_id},
    )
    return list(rows.scalars())
