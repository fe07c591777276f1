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
    devices: list[str]
    """Exactly those to be leased, in order."""
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


class FreeDevice(NamedTuple):
    """A device of a worker that nobody leases."""

    uuid: str
    name: str
    kind: str


_FREE_DEVICES = text("""
    SELECT offered.device, known.device ->> 'name', known.device ->> 'kind'
      FROM unnest(:devices) WITH ORDINALITY AS offered (device, place)
      JOIN workers w ON w.id = :worker_id
      JOIN jsonb_array_elements(w.devices) AS known (device) ON known.device ->> 'uuid' = offered.device
     WHERE NOT EXISTS (SELECT 1 FROM device_leases d WHERE d.device_uuid = offered.device)
     ORDER BY offered.place
""").bindparams(bindparam("devices", type_=ARRAY(Text)))


async def free_devices(connection: AsyncConnection, worker_id: UUID, devices: Sequence[str]) -> list[FreeDevice]:
    """Those of the offered devices that are the worker's and that nobody leases, in the offered order."""
    rows = await connection.execute(_FREE_DEVICES, {"worker_id": worker_id, "devices": list(devices)})
    return [FreeDevice(*row) for row in rows]


# Index ix_runs_claim; the campaigns' primary key. The campaign is locked too, so that nothing of it is claimed after
# its pause was answered; one that is just being paused is passed over. `fitting` are the free devices that the run
# takes: those it names in its own order, or those of the kind it asks for in the worker's, or any.
_NEXT_RUN = text("""
    SELECT r.id, fitting.uuids[1:r.device_count], r.attempts
      FROM runs r
      JOIN campaigns c ON c.id = r.campaign_id
     CROSS JOIN LATERAL (
           SELECT array_agg(free.uuid ORDER BY array_position(r.device_uuids, free.uuid), free.place) AS uuids
             FROM unnest(:uuids, :names, :kinds) WITH ORDINALITY AS free (uuid, name, kind, place)
            WHERE (r.device_uuids IS NULL OR free.uuid = ANY (r.device_uuids))
              AND (r.device_like IS NULL OR free.name ILIKE r.device_like OR free.kind ILIKE r.device_like)
           ) fitting
     WHERE r.state = 'queued' AND r.backend = :backend AND r.device_count <= cardinality(fitting.uuids)
       AND r.not_before <= now() AND c.state = 'active'
     ORDER BY r.priority DESC, r.campaign_id, r.position
     LIMIT 1
       FOR NO KEY UPDATE OF r SKIP LOCKED
       FOR SHARE OF c SKIP LOCKED
""").bindparams(*(bindparam(name, type_=ARRAY(Text)) for name in ("uuids", "names", "kinds")))


async def next_run(connection: AsyncConnection, *, backend: str, free: Sequence[FreeDevice]) -> Candidate | None:
    """Lock the first queued run that fits, and choose its devices among the free ones."""
    parameters = {
        "backend": backend,
        "uuids": [device.uuid for device in free],
        "names": [device.name for device in free],
        "kinds": [device.kind for device in free],
    }
    row = (await connection.execute(_NEXT_RUN, parameters)).one_or_none()
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
    ttl: timedelta,
) -> bool:
    """Make the attempt, its lease and its device leases; False when a device was leased meanwhile (roll back then)."""
    ids = {"attempt_id": attempt_id, "run_id": candidate.run_id, "worker_id": worker_id, "boot_id": boot_id}
    devices = candidate.devices
    await connection.execute(
        _INSERT_ATTEMPT, {**ids, "number": candidate.attempts + 1, "claim_id": claim_id, "devices": devices}
    )
    await connection.execute(_INSERT_LEASE, {**ids, "ttl": ttl})
    leased = await connection.execute(_INSERT_DEVICE_LEASES, {"attempt_id": attempt_id, "devices": devices})
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
