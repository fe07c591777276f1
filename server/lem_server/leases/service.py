"""Heartbeats, and which leases have expired. `lem_server.attempts` ends the attempts of expired leases."""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id, parse_id
from lem_domain.wire.workers import AttemptVerdict, Heartbeat, HeartbeatAnswer, HeartbeatVerdict
from lem_server.http.problems import ProblemError
from lem_server.leases import queries
from lem_server.settings import LeaseTerms

logger = logging.getLogger(__name__)


async def heartbeat(engine: AsyncEngine, terms: LeaseTerms, *, worker_id: UUID, request: Heartbeat) -> HeartbeatAnswer:
    """Renew every lease that the worker still holds, and report the others as lost.

    Raises:
        ProblemError: `boot_superseded`.
    """
    attempts = [
        (
            parse_id(IdKind.ATTEMPT, attempt.attempt_id),
            attempt.progress.model_dump(mode="json") if attempt.progress else None,
        )
        for attempt in request.attempts
    ]
    renewed: dict[UUID, queries.RenewedLease] = {}
    async with engine.begin() as connection:
        worker = await queries.record_contact(connection, worker_id, request.boot_id)
        if worker is None:
            raise ProblemError(
                ProblemCode.BOOT_SUPERSEDED,
                "this boot of the worker is not registered, has signed off, or a newer one is; register again.",
            )
        if attempts:
            renewed = await queries.renew(
                connection,
                worker_id=worker_id,
                boot_id=request.boot_id,
                attempts=sorted(attempts, key=lambda pair: pair[0]),
                ttl=timedelta(seconds=terms.ttl_s),
            )
    verdicts = []
    for attempt_id, _ in attempts:
        verdict = _verdict(renewed.get(attempt_id))
        verdicts.append(
            AttemptVerdict(
                attempt_id=format_id(IdKind.ATTEMPT, attempt_id),
                verdict=verdict,
                lease_s=None if verdict is HeartbeatVerdict.LOST else terms.ttl_s,
            )
        )
    return HeartbeatAnswer(attempts=tuple(verdicts), next_beat_s=terms.heartbeat_interval_s, drain=worker.draining)


def _verdict(lease: queries.RenewedLease | None) -> HeartbeatVerdict:
    if lease is None:
        return HeartbeatVerdict.LOST
    if lease.was_late:
        logger.warning("%s missed its heartbeat deadline but recovered", format_id(IdKind.ATTEMPT, lease.attempt_id))
    if lease.cancel:
        return HeartbeatVerdict.CANCEL
    return HeartbeatVerdict.PAUSE if lease.pause else HeartbeatVerdict.OK


async def mark_suspects(engine: AsyncEngine) -> int:
    """Log the leases that ran out since the last pass; return their number."""
    async with engine.begin() as connection:
        suspects = await queries.mark_suspects(connection)
    for attempt_id in suspects:
        logger.warning("%s missed its heartbeat deadline and is suspect", format_id(IdKind.ATTEMPT, attempt_id))
    return len(suspects)


async def expired_attempts(engine: AsyncEngine, terms: LeaseTerms) -> list[UUID]:
    """Return the attempts whose lease ran out longer ago than the grace."""
    async with engine.connect() as connection:
        return await queries.expired_attempts(connection, timedelta(seconds=terms.grace_s))


async def lock_if_expired(connection: AsyncConnection, attempt_id: UUID, terms: LeaseTerms) -> bool:
    """Lock a lease in order to end it; return False if it was renewed. The run's row must be locked already."""
    return await queries.still_expired(connection, attempt_id, timedelta(seconds=terms.grace_s))


async def attempts_of_boot(connection: AsyncConnection, *, worker_id: UUID, boot_id: UUID) -> list[UUID]:
    """Return the attempts that this boot of a worker leases."""
    return await queries.attempts_of_boot(connection, worker_id, boot_id)


async def attempts_of_other_boots(connection: AsyncConnection, *, worker_id: UUID, boot_id: UUID) -> list[UUID]:
    """Return the attempts that other boots of a worker still lease."""
    return await queries.attempts_of_other_boots(connection, worker_id, boot_id)
