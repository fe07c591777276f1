"""Heartbeats, and the leases that miss them. `lem_server.attempts` ends the attempts of expired leases."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import UUID as PgUuid
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.sql import bindparam

from lem_domain.ids import IdKind, format_id, parse_id
from lem_domain.wire.workers import AttemptVerdict, Heartbeat, HeartbeatAnswer, HeartbeatVerdict
from lem_server.database.rows import read_all
from lem_server.leases.fence import require_boot
from lem_server.settings import LeaseTerms

logger = logging.getLogger(__name__)


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
    SELECT renewed.attempt_id, renewed.cancel, renewed.pause, held.until < now() AS was_late
      FROM renewed
      JOIN held ON held.attempt_id = renewed.attempt_id
""").bindparams(
    bindparam("attempt_ids", type_=ARRAY(PgUuid(as_uuid=True))),
    bindparam("progress", type_=ARRAY(JSONB(none_as_null=True))),
)


async def heartbeat(engine: AsyncEngine, terms: LeaseTerms, *, worker_id: UUID, request: Heartbeat) -> HeartbeatAnswer:
    """Renew every lease that the worker still holds, and report the others as lost.

    Raises:
        ProblemError: `boot_superseded`.
    """
    attempts = [parse_id(IdKind.ATTEMPT, attempt.attempt_id) for attempt in request.attempts]
    renewed: list[RenewedLease] = []
    async with engine.begin() as connection:
        worker = await require_boot(connection, worker_id, request.boot_id)
        if attempts:
            renewed = await read_all(
                connection,
                _RENEW,
                RenewedLease,
                worker_id=worker_id,
                boot_id=request.boot_id,
                ttl=timedelta(seconds=terms.ttl_s),
                attempt_ids=attempts,
                progress=[one.progress and one.progress.model_dump(mode="json") for one in request.attempts],
            )
    held = {lease.attempt_id: lease for lease in renewed}
    return HeartbeatAnswer(
        attempts=tuple(
            AttemptVerdict(
                attempt_id=format_id(IdKind.ATTEMPT, attempt_id),
                verdict=_verdict(held.get(attempt_id)),
                lease_s=terms.ttl_s if attempt_id in held else None,
            )
            for attempt_id in attempts
        ),
        next_beat_s=terms.heartbeat_interval_s,
        drain=worker.draining,
    )


def _verdict(lease: RenewedLease | None) -> HeartbeatVerdict:
    if lease is None:
        return HeartbeatVerdict.LOST
    if lease.was_late:
        logger.warning("%s missed its heartbeat deadline but recovered", format_id(IdKind.ATTEMPT, lease.attempt_id))
    if lease.cancel:
        return HeartbeatVerdict.CANCEL
    return HeartbeatVerdict.PAUSE if lease.pause else HeartbeatVerdict.OK


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


async def mark_suspects(engine: AsyncEngine) -> int:
    """Log the leases that ran out since the last pass, whose attempts may still recover; return their number."""
    async with engine.begin() as connection:
        suspects = list((await connection.execute(_SUSPECT)).scalars())
    for attempt_id in suspects:
        logger.warning("%s missed its heartbeat deadline and is suspect", format_id(IdKind.ATTEMPT, attempt_id))
    return len(suspects)
