"""SQL of claims: the next run that fits, with an attempt, a lease and device leases made for it in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import ARRAY
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


# Index ix_runs_claim; the campaigns' primary key. The campaign is locked too, so that nothing of it is claimed after
# its pause was answered; one that is just being paused is passed over.
_NEXT_RUN = text("""
    SELECT r.id, r.device_count, r.attempts
      FROM runs r
      JOIN campaigns c ON c.id = r.campaign_id
     WHERE r.state = 'queued' AND r.backend = :backend AND r.device_count <= :devices
       AND r.not_before <= now() AND c.state = 'active'
     ORDER BY r.priority DESC, r.campaign_id, r.position
     LIMIT 1
       FOR NO KEY UPDATE OF r SKIP LOCKED
       FOR SHARE OF c SKIP LOCKED
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
