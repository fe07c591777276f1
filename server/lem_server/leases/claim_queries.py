"""SQL of claims: lock the next run that fits, then create its attempt, lease and device leases in one transaction."""

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
from uuid_utils.compat import uuid7

from lem_domain.config.gaps import ExperimentCycle
from lem_domain.ids import IdKind, format_id
from lem_domain.states import ActorKind
from lem_domain.wire.workers import ClaimRequest
from lem_server.database.rows import read_one
from lem_server.leases.queue_queries import FITTING, FREE, free_parameters
from lem_server.leases.scheduling import FreeDevice, NextRun, QueuedCampaign
from lem_server.runs.transitions import set_actor
from lem_server.settings import LeaseTerms


class ClaimedAttempt(NamedTuple):
    """An attempt with everything that its worker needs."""

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


class LockedRun(NamedTuple):
    """A queued run that this transaction has chosen and locked."""

    run_id: UUID
    attempts: int
    next: NextRun


# Index uq_attempts_claim_id.
_BY_CLAIM = text("""
    SELECT a.id AS attempt_id, a.run_id, r.campaign_id, e.display_name, r.cycle, a.number, e.config, e.config_hash,
           a.devices, a.worker_id, l.attempt_id IS NOT NULL AS leased
      FROM attempts a
      JOIN runs r ON r.id = a.run_id
      JOIN experiments e ON e.id = r.experiment_id
      LEFT JOIN leases l ON l.attempt_id = a.id
     WHERE a.claim_id = :claim_id
""")


async def claimed_attempt(connection: AsyncConnection, claim_id: UUID) -> ClaimedAttempt | None:
    """Return the attempt that a claim created, or None."""
    return await read_one(connection, _BY_CLAIM, ClaimedAttempt, claim_id=claim_id)


# Index ix_runs_claim; the campaigns' primary key. FOR SHARE OF c: a pause that was answered holds for every later
# claim. SKIP LOCKED: a claim never waits for another claim or for a pause, it takes the next run instead; and because
# it does not wait, locking the run before its campaign cannot deadlock. Under a strict order only the run at
# `position` will do, otherwise the first that fits and that no other transaction is claiming.
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


async def lock_next_run(
    connection: AsyncConnection, campaign: QueuedCampaign, *, free: Sequence[FreeDevice]
) -> LockedRun | None:
    """Lock the first queued run of a campaign that fits the free devices."""
    parameters = {
        **free_parameters(free),
        "campaign_id": campaign.campaign_id,
        "backend": campaign.backend,
        "position": campaign.run.position if campaign.strict else None,
    }
    row = (await connection.execute(_NEXT_RUN, parameters)).one_or_none()
    if row is None:
        return None
    run = NextRun(row[2], ExperimentCycle(row[3], row[4]), row[5], tuple(row[6]), tuple(row[7] or ()))
    return LockedRun(row[0], row[1], run)


_INSERT_ATTEMPT = text("""
    INSERT INTO attempts (id, run_id, number, worker_id, boot_id, claim_id, devices, device_details)
    SELECT :attempt_id, :run_id, :number, :worker_id, :boot_id, :claim_id, :devices,
           (SELECT jsonb_agg(known.device ORDER BY leased.ordinal)
              FROM unnest(:devices) WITH ORDINALITY AS leased (uuid, ordinal)
              JOIN jsonb_array_elements(w.devices) AS known (device) ON known.device ->> 'uuid' = leased.uuid)
      FROM workers w WHERE w.id = :worker_id
""").bindparams(bindparam("devices", type_=ARRAY(Text)))

_INSERT_LEASE = text("""
    INSERT INTO leases (attempt_id, run_id, worker_id, boot_id, until)
    VALUES (:attempt_id, :run_id, :worker_id, :boot_id, now() + :ttl)
""")

# Sorted, so that two workers that lease the same devices cannot deadlock. ON CONFLICT waits for the other transaction;
# a device that it leased is then missing from the row count.
_INSERT_DEVICE_LEASES = text("""
    INSERT INTO device_leases (device_uuid, attempt_id)
    SELECT device, :attempt_id FROM unnest(:devices) AS device ORDER BY device
    ON CONFLICT (device_uuid) DO NOTHING
""").bindparams(bindparam("devices", type_=ARRAY(Text)))

# Index uq_campaign_places_current: of two claims that place a campaign, the second waits here and then fails.
_INSERT_PLACE = text("""
    INSERT INTO campaign_places (campaign_id, simulated, devices, kind, name)
    VALUES (:campaign_id, :simulated, :devices, :kind, :name)
    ON CONFLICT (campaign_id, simulated) WHERE ended_at IS NULL DO NOTHING
""").bindparams(bindparam("devices", type_=ARRAY(Text)))

# For a run with more devices than any earlier one. Such claims share the devices of the place, so only one succeeds.
_EXTEND_PLACE = text("""
    UPDATE campaign_places SET devices = :devices
     WHERE campaign_id = :campaign_id AND simulated = :simulated AND ended_at IS NULL
       AND cardinality(devices) < cardinality(:devices)
""").bindparams(bindparam("devices", type_=ARRAY(Text)))


async def _record_place(connection: AsyncConnection, campaign: QueuedCampaign, devices: Sequence[FreeDevice]) -> bool:
    """Record where a campaign's runs are placed; return False if another claim just did (the caller rolls back)."""
    if campaign.placement == "any" or campaign.run.named:
        return True
    values = {
        "campaign_id": campaign.campaign_id,
        "simulated": campaign.backend == "simulated",  # as in the queries of the queue
        "devices": [device.uuid for device in devices],
    }
    if campaign.place is None:
        model = {"kind": devices[0].kind, "name": devices[0].name}
        return (await connection.execute(_INSERT_PLACE, {**values, **model})).rowcount == 1
    if campaign.strict and len(devices) > len(campaign.place.devices):
        await connection.execute(_EXTEND_PLACE, values)
    return True


# This transaction leases the devices, so no other one writes these rows. Their primary keys.
_RECORD_USE = text("""
    INSERT INTO device_uses (device_uuid, attempt_id)
    SELECT device, :attempt_id FROM unnest(:devices) AS device
    ON CONFLICT (device_uuid) DO UPDATE SET attempt_id = excluded.attempt_id
""").bindparams(bindparam("devices", type_=ARRAY(Text)))
_RECORD_TURN = text("""
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


class ClaimConflict(Exception):
    """Another transaction leased a device or placed the campaign after this one's query; roll back and retry."""


async def create_attempt(
    connection: AsyncConnection,
    terms: LeaseTerms,
    worker_id: UUID,
    request: ClaimRequest,
    campaign: QueuedCampaign,
    run: LockedRun,
    devices: Sequence[FreeDevice],
) -> None:
    """Create an attempt of a locked run, its lease and its device leases.

    Raises:
        ClaimConflict: another transaction leased a device or placed the campaign.
    """
    await set_actor(connection, ActorKind.WORKER, format_id(IdKind.WORKER, worker_id))
    if not await _record_place(connection, campaign, devices):
        raise ClaimConflict
    values = {
        "attempt_id": uuid7(),
        "run_id": run.run_id,
        "number": run.attempts + 1,
        "campaign_id": campaign.campaign_id,
        "worker_id": worker_id,
        "boot_id": request.boot_id,
        "claim_id": request.claim_id,
        "devices": [device.uuid for device in devices],
        "ttl": timedelta(seconds=terms.ttl_s),
    }
    await connection.execute(_INSERT_ATTEMPT, values)
    await connection.execute(_INSERT_LEASE, values)
    if (await connection.execute(_INSERT_DEVICE_LEASES, values)).rowcount != len(devices):
        raise ClaimConflict
    for statement in (_RECORD_USE, _RECORD_TURN, _INITIALISE):
        await connection.execute(statement, values)
