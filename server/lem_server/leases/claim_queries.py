"""SQL of claims: the next run that fits, with an attempt, a lease and device leases made for it in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam
from sqlalchemy.types import Text

from lem_domain.backends.registry import backend_spec
from lem_domain.config.gaps import Turn
from lem_server.leases.queue_queries import FITTING, FREE, of_free
from lem_server.leases.scheduling import FreeDevice, Head, Waiting


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
    attempts: int
    head: Head


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


# Index ix_runs_claim; the campaigns' primary key. The campaign is locked too, so that nothing of it is claimed after
# its pause was answered; one that is just being paused is passed over. Where the order is strict only the run at
# `position` will do, otherwise the first that fits and that nobody else is just claiming.
_NEXT_RUN = text(
    """
    SELECT r.id, r.attempts, r.position, r.experiment_id, r.cycle, r.device_count, fitting.uuids, r.device_uuids
      FROM runs r
      JOIN campaigns c ON c.id = r.campaign_id
     CROSS JOIN LATERAL (
           {FITTING}
           ) fitting
     WHERE r.state = 'queued' AND r.campaign_id = :campaign_id AND r.backend = :backend
       AND (CAST(:position AS integer) IS NULL OR r.position = :position)
       AND r.device_count <= cardinality(fitting.uuids) AND r.not_before <= now() AND c.state = 'active'
     ORDER BY r.position
     LIMIT 1
       FOR NO KEY UPDATE OF r SKIP LOCKED
       FOR SHARE OF c SKIP LOCKED
""".replace("{FITTING}", FITTING)
).bindparams(*FREE)


async def next_run(connection: AsyncConnection, waiting: Waiting, *, free: Sequence[FreeDevice]) -> Candidate | None:
    """Lock the first queued run of a campaign that fits."""
    parameters = {
        **of_free(free),
        "campaign_id": waiting.campaign_id,
        "backend": waiting.backend,
        "position": waiting.head.position if waiting.strict else None,
    }
    row = (await connection.execute(_NEXT_RUN, parameters)).one_or_none()
    if row is None:
        return None
    return Candidate(row[0], row[1], Head(row[2], Turn(row[3], row[4]), row[5], tuple(row[6]), tuple(row[7] or ())))


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

# One campaign is placed once at a time: whoever comes second waits here for the first, and looks again.
_PLACE = text("""
    INSERT INTO campaign_places (campaign_id, simulated, devices, kind, name)
    VALUES (:campaign_id, :simulated, :devices, :kind, :name)
    ON CONFLICT (campaign_id, simulated) WHERE ended_at IS NULL DO NOTHING
""").bindparams(bindparam("devices", type_=ARRAY(Text)))

# A run with more devices than any before it; the devices that they share are leased by it, so nobody else is here.
_EXTEND_PLACE = text("""
    UPDATE campaign_places SET devices = :devices
     WHERE campaign_id = :campaign_id AND simulated = :simulated AND ended_at IS NULL
       AND cardinality(devices) < cardinality(:devices)
""").bindparams(bindparam("devices", type_=ARRAY(Text)))


async def place(connection: AsyncConnection, waiting: Waiting, devices: Sequence[FreeDevice]) -> bool:
    """Note where a campaign's runs are from now on; False when somebody else has just done so (roll back then)."""
    if waiting.placement == "any" or waiting.head.named:
        return True
    values = {
        "campaign_id": waiting.campaign_id,
        "simulated": backend_spec(waiting.backend).is_simulated,
        "devices": [device.uuid for device in devices],
    }
    if waiting.place is None:
        model = {"kind": devices[0].kind, "name": devices[0].name}
        return (await connection.execute(_PLACE, {**values, **model})).rowcount == 1
    if waiting.strict and len(devices) > len(waiting.place.devices):
        await connection.execute(_EXTEND_PLACE, values)
    return True


# The devices are leased by this transaction, so nobody else writes these rows. Their primary keys.
_NOTE_USE = text("""
    INSERT INTO device_uses (device_uuid, attempt_id)
    SELECT device, :attempt_id FROM unnest(:devices) AS device
    ON CONFLICT (device_uuid) DO UPDATE SET attempt_id = excluded.attempt_id
""").bindparams(bindparam("devices", type_=ARRAY(Text)))
_NOTE_TURN = text("""
    INSERT INTO campaign_devices (campaign_id, device_uuid, run_id)
    SELECT :campaign_id, device, :run_id FROM unnest(:devices) AS device
    ON CONFLICT (campaign_id, device_uuid) DO UPDATE SET run_id = excluded.run_id, claimed_at = excluded.claimed_at
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
    campaign_id: UUID,
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
    used = {"campaign_id": campaign_id, "run_id": candidate.run_id, "devices": list(devices)}
    await connection.execute(_NOTE_USE, {"attempt_id": attempt_id, "devices": list(devices)})
    await connection.execute(_NOTE_TURN, used)
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


_ASK = text("""
    UPDATE workers SET last_seen_at = now(), asked_at = now(), temperatures_c = :temperatures_c
     WHERE id = :id AND boot_id = :boot_id AND signed_off_at IS NULL
    RETURNING boot_id, backend, draining
""").bindparams(bindparam("temperatures_c", type_=JSONB))


async def note_question(
    connection: AsyncConnection, worker_id: UUID, boot_id: UUID, temperatures_c: Mapping[str, float]
) -> WorkerBoot | None:
    """As `touch_worker`, and that it asks for work, with how warm its devices are."""
    values = {"id": worker_id, "boot_id": boot_id, "temperatures_c": dict(temperatures_c)}
    row = (await connection.execute(_ASK, values)).one_or_none()
    return None if row is None else WorkerBoot(*row)
