"""Claims: one queued run for a worker with idle devices, under a lease, exactly once per claim id."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.wire.workers import Assignment, ClaimRequest
from lem_server.database.listener import QUEUE_POLL_S, Hub
from lem_server.http.problems import ProblemError
from lem_server.leases import claim_queries as queries
from lem_server.leases import queue_queries
from lem_server.leases.fence import require_boot
from lem_server.leases.scheduling import NOTHING_WAITS, Deferred, Outlook, SchedulingPass
from lem_server.settings import LeaseTerms

COOLING_RECHECK_S = 5.0
"""Longest wait of a claim while a device cools: only the worker's next claim brings a new temperature."""
MIN_WAIT_S = 0.05
"""A gap that ends within this time would otherwise make the loop query without a pause."""


class ClaimResult(NamedTuple):
    """The result of a claim."""

    assignment: Assignment | None
    retry_after_s: float | None = None
    """Set if a run for this worker has to wait: seconds until a gap ends; the poll interval if that is not known."""


async def claim(
    engine: AsyncEngine, hub: Hub, terms: LeaseTerms, *, worker_id: UUID, request: ClaimRequest
) -> ClaimResult:
    """Claim a run for this worker, waiting up to `request.wait_s` for one.

    No database connection is held during the wait. A repeated `claim_id` returns the attempt that it created.

    Raises:
        ProblemError: `boot_superseded` if the worker is unknown or this boot is not its current one, `lease_lost` if
            the lease of a repeated claim has ended.
    """
    clock = hub.clock
    deadline = clock() + request.wait_s
    while True:
        # Take the ticket before the query, so that a notification between query and wait is not lost.
        ticket = hub.queue_ticket()
        found = await _claim_now(engine, terms, worker_id, request)
        if isinstance(found, Assignment):
            return ClaimResult(found)
        if found.cooling:
            deadline = min(deadline, clock() + COOLING_RECHECK_S)
        remaining = deadline - clock()
        if remaining <= 0 or hub.stopping:
            return ClaimResult(None, _retry_after_s(found))
        if found.retry_after_s is not None:
            remaining = min(remaining, max(MIN_WAIT_S, found.retry_after_s))
        await hub.wait_for_queue(ticket, remaining)


def _retry_after_s(outlook: Outlook) -> float | None:
    if not outlook.run_waits:
        return None
    soon = QUEUE_POLL_S if outlook.retry_after_s is None else outlook.retry_after_s
    return min(soon, COOLING_RECHECK_S) if outlook.cooling else soon


async def _claim_now(
    engine: AsyncEngine, terms: LeaseTerms, worker_id: UUID, request: ClaimRequest
) -> Assignment | Outlook:
    # Each conflict removes one device, and a campaign is placed once, so this many tries suffice.
    for _ in range(len(request.devices) + 1):
        with contextlib.suppress(queries.ClaimConflict):
            return await _claim_once(engine, terms, worker_id, request)
    return NOTHING_WAITS


async def _claim_once(
    engine: AsyncEngine, terms: LeaseTerms, worker_id: UUID, request: ClaimRequest
) -> Assignment | Outlook:
    try:
        async with engine.begin() as connection:
            known = await queries.claimed_attempt(connection, request.claim_id)
            if known is None:
                claimed = await _claim_run(connection, terms, worker_id, request)
                return claimed if isinstance(claimed, Outlook) else _assignment(claimed, terms)
            if known.worker_id != worker_id or not known.leased:
                raise ProblemError(
                    ProblemCode.LEASE_LOST, "the lease of this claim has ended; claim again with a new claim_id."
                )
            return _assignment(known, terms)
    except IntegrityError as error:
        # The same claim arrived twice at once and the other request created the attempt.
        if "uq_attempts_claim_id" not in str(error.orig):
            raise
        async with engine.connect() as connection:
            created = await queries.claimed_attempt(connection, request.claim_id)
        return NOTHING_WAITS if created is None else _assignment(created, terms)


async def _claim_run(
    connection: AsyncConnection, terms: LeaseTerms, worker_id: UUID, request: ClaimRequest
) -> queries.ClaimedAttempt | Outlook:
    worker = await require_boot(connection, worker_id, request.boot_id, request.temperatures_c)
    # The worker's row is locked now, so a concurrent request with the same claim id has created its attempt by this
    # point or never will.
    created_before = await queries.claimed_attempt(connection, request.claim_id)
    if created_before is not None:
        return created_before
    if worker.draining:
        return NOTHING_WAITS
    free = await queue_queries.free_devices(connection, worker_id, request.devices, request.temperatures_c)
    if not free:
        return NOTHING_WAITS
    queue = await queue_queries.queue(connection, free)
    if not queue:
        return NOTHING_WAITS
    workers = await queue_queries.workers(connection, ttl=timedelta(seconds=terms.ttl_s))
    scheduling = SchedulingPass(worker.backend, free, [one.for_scheduling for one in workers if one.online])
    for choice in scheduling.choices(queue):
        run = await queries.lock_next_run(connection, choice.campaign, free=free)
        if run is None:
            continue  # another transaction is claiming the run, or pausing its campaign
        devices = scheduling.devices_for(choice.campaign, run.next)
        if isinstance(devices, Deferred):
            continue  # the locked run is a later one than the scheduling saw, and has to wait
        by_uuid = {device.uuid: device for device in free}
        await queries.create_attempt(
            connection, terms, worker_id, request, choice.campaign, run, [by_uuid[uuid] for uuid in devices]
        )
        created = await queries.claimed_attempt(connection, request.claim_id)
        return NOTHING_WAITS if created is None else created
    return scheduling.outlook


def _assignment(row: queries.ClaimedAttempt, terms: LeaseTerms) -> Assignment:
    return Assignment.model_validate(
        {**row._asdict(), "lease_s": terms.ttl_s, "beat_interval_s": terms.heartbeat_interval_s}
    )
