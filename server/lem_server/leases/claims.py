"""Claims: one queued run for a worker that has idle devices, under a lease, exactly once per claim id."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils.compat import uuid7

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.states import ActorKind
from lem_domain.wire.workers import Assignment, ClaimRequest
from lem_server.database.listener import Hub
from lem_server.leases import claim_queries as queries
from lem_server.leases.terms import LeaseTerms
from lem_server.problems import ProblemError
from lem_server.runs.transitions import set_actor


async def claim(
    engine: AsyncEngine, hub: Hub, terms: LeaseTerms, *, worker_id: UUID, request: ClaimRequest
) -> Assignment | None:
    """A run for this worker, waiting up to `request.wait_s` for one; None when there is none.

    No database connection is held while waiting. A repeated `claim_id` gets the attempt that it made before.

    Raises:
        ProblemError: the worker is unknown, this boot is not its current one, or the claim's lease has ended since.
    """
    clock = hub.clock
    deadline = clock() + request.wait_s
    while True:
        ticket = hub.queue_ticket()
        assignment = await _claim_now(engine, terms, worker_id, request)
        if assignment is not None:
            return assignment
        remaining = deadline - clock()
        if remaining <= 0 or hub.stopping:
            return None
        await hub.wait_for_queue(ticket, remaining)


async def _claim_now(
    engine: AsyncEngine, terms: LeaseTerms, worker_id: UUID, request: ClaimRequest
) -> Assignment | None:
    # A device that another worker took between the look and the insert is not offered at the next look.
    for _ in request.devices:
        with contextlib.suppress(_DeviceTaken):
            return await _claim_once(engine, terms, worker_id, request)
    return None


async def _claim_once(
    engine: AsyncEngine, terms: LeaseTerms, worker_id: UUID, request: ClaimRequest
) -> Assignment | None:
    try:
        async with engine.begin() as connection:
            known = await queries.claim_row(connection, request.claim_id)
            if known is None:
                known = await _take(connection, terms, worker_id, request)
            elif known.worker_id != worker_id or not known.leased:
                raise ProblemError(
                    ProblemCode.LEASE_LOST, "the lease that this claim made has ended; claim again with a new claim_id."
                )
            return None if known is None else _assignment(known, terms)
    except IntegrityError as error:
        # The same claim, sent twice at once: the other one made the attempt; answer with it.
        if "uq_attempts_claim_id" not in str(error.orig):
            raise
        async with engine.connect() as connection:
            made = await queries.claim_row(connection, request.claim_id)
        return None if made is None else _assignment(made, terms)


class _DeviceTaken(Exception):
    """Another worker leased a device between the look and the insert; everything is rolled back."""


async def _take(
    connection: AsyncConnection, terms: LeaseTerms, worker_id: UUID, request: ClaimRequest
) -> queries.ClaimRow | None:
    worker = await queries.touch_worker(connection, worker_id, request.boot_id)
    if worker is None:
        raise ProblemError(
            ProblemCode.BOOT_SUPERSEDED,
            "this boot of the worker is not registered, has signed off, or a newer one is; register again.",
        )
    # The worker's row is locked now: the same claim, sent twice at once, has made its attempt by here or never will.
    made_before = await queries.claim_row(connection, request.claim_id)
    if made_before is not None:
        return made_before
    if worker.draining:
        return None
    free = await queries.free_devices(connection, worker_id, request.devices)
    if not free:
        return None
    candidate = await queries.next_run(connection, backend=worker.backend, free=free)
    if candidate is None:
        return None
    await set_actor(connection, ActorKind.WORKER, format_id(IdKind.WORKER, worker_id))
    made = await queries.insert_attempt(
        connection,
        attempt_id=uuid7(),
        candidate=candidate,
        worker_id=worker_id,
        boot_id=request.boot_id,
        claim_id=request.claim_id,
        ttl=timedelta(seconds=terms.ttl_s),
    )
    if not made:
        raise _DeviceTaken
    return await queries.claim_row(connection, request.claim_id)


def _assignment(row: queries.ClaimRow, terms: LeaseTerms) -> Assignment:
    return Assignment(
        attempt_id=format_id(IdKind.ATTEMPT, row.attempt_id),
        run_id=format_id(IdKind.RUN, row.run_id),
        campaign_id=format_id(IdKind.CAMPAIGN, row.campaign_id),
        display_name=row.display_name,
        cycle=row.cycle,
        number=row.number,
        config=ExperimentConfig.model_validate(row.config),
        config_hash=row.config_hash,
        devices=tuple(row.devices),
        lease_s=terms.ttl_s,
        beat_interval_s=terms.beat_interval_s,
    )
