"""Claims: one queued run for a worker that has idle devices, under a lease, exactly once per claim id."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils.compat import uuid7

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.states import ActorKind
from lem_domain.wire.workers import Assignment, ClaimRequest
from lem_server.database.listener import QUEUE_POLL_S, Hub
from lem_server.http.problems import ProblemError
from lem_server.leases import claim_queries as queries
from lem_server.leases import queue_queries
from lem_server.leases.scheduling import NOTHING_WAITS, FreeDevice, Held, Outlook, Round, Waiting
from lem_server.runs.transitions import set_actor
from lem_server.settings import LeaseTerms

COOLING_LOOK_S = 5.0
"""A worker whose device is to cool is let go after so long, so that it comes back with a new temperature."""
LEAST_WAIT_S = 0.05


class Claimed(NamedTuple):
    """What a claim is answered."""

    assignment: Assignment | None
    again_in_s: float | None = None
    """Without a run: one waits for this worker, at most so long or until somebody else is done; else None."""


async def claim(engine: AsyncEngine, hub: Hub, terms: LeaseTerms, *, worker_id: UUID, request: ClaimRequest) -> Claimed:
    """A run for this worker, waiting up to `request.wait_s` for one.

    No database connection is held while waiting. A repeated `claim_id` gets the attempt that it made before.

    Raises:
        ProblemError: the worker is unknown, this boot is not its current one, or the claim's lease has ended since.
    """
    clock = hub.clock
    deadline = clock() + request.wait_s
    while True:
        ticket = hub.queue_ticket()
        found = await _claim_now(engine, terms, worker_id, request)
        if isinstance(found, Assignment):
            return Claimed(found)
        if found.cooling:
            deadline = min(deadline, clock() + COOLING_LOOK_S)
        remaining = deadline - clock()
        if remaining <= 0 or hub.stopping:
            return Claimed(None, _again_in_s(found))
        if found.again_in_s is not None:
            remaining = min(remaining, max(LEAST_WAIT_S, found.again_in_s))
        await hub.wait_for_queue(ticket, remaining)


def _again_in_s(outlook: Outlook) -> float | None:
    if not outlook.something_waits:
        return None
    soon = QUEUE_POLL_S if outlook.again_in_s is None else outlook.again_in_s
    return min(soon, COOLING_LOOK_S) if outlook.cooling else soon


async def _claim_now(
    engine: AsyncEngine, terms: LeaseTerms, worker_id: UUID, request: ClaimRequest
) -> Assignment | Outlook:
    # A device that another worker took between the look and the insert is not offered at the next look, and a campaign
    # is placed once.
    for _ in range(len(request.devices) + 1):
        with contextlib.suppress(_Overtaken):
            return await _claim_once(engine, terms, worker_id, request)
    return NOTHING_WAITS


async def _claim_once(
    engine: AsyncEngine, terms: LeaseTerms, worker_id: UUID, request: ClaimRequest
) -> Assignment | Outlook:
    try:
        async with engine.begin() as connection:
            known = await queries.claim_row(connection, request.claim_id)
            if known is None:
                taken = await _take(connection, terms, worker_id, request)
                return taken if isinstance(taken, Outlook) else _assignment(taken, terms)
            if known.worker_id != worker_id or not known.leased:
                raise ProblemError(
                    ProblemCode.LEASE_LOST, "the lease that this claim made has ended; claim again with a new claim_id."
                )
            return _assignment(known, terms)
    except IntegrityError as error:
        # The same claim, sent twice at once: the other one made the attempt; answer with it.
        if "uq_attempts_claim_id" not in str(error.orig):
            raise
        async with engine.connect() as connection:
            made = await queries.claim_row(connection, request.claim_id)
        return NOTHING_WAITS if made is None else _assignment(made, terms)


class _Overtaken(Exception):
    """Between the look and the insert another worker leased a device, or placed the campaign; all is rolled back."""


async def _take(
    connection: AsyncConnection, terms: LeaseTerms, worker_id: UUID, request: ClaimRequest
) -> queries.ClaimRow | Outlook:
    worker = await queries.note_question(connection, worker_id, request.boot_id, request.temperatures_c)
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
        return NOTHING_WAITS
    free = await queue_queries.free_devices(connection, worker_id, request.devices, request.temperatures_c)
    if not free:
        return NOTHING_WAITS
    queue = await queue_queries.queue(connection, free)
    if not queue:
        return NOTHING_WAITS
    neighbours = await queue_queries.neighbours(connection, ttl=timedelta(seconds=terms.ttl_s))
    look = Round(worker.backend, free, neighbours)
    for choice in look.choices(queue):
        candidate = await queries.next_run(connection, choice.waiting, free=free)
        if candidate is None:
            continue  # whoever is claiming it just now, or pausing its campaign, was first
        devices = look.devices_for(choice.waiting, candidate.head)
        if isinstance(devices, Held):
            continue  # not the run that was looked at, and this one has to wait
        by_uuid = {device.uuid: device for device in free}
        await _make(connection, terms, worker_id, request, choice.waiting, candidate, [by_uuid[one] for one in devices])
        made = await queries.claim_row(connection, request.claim_id)
        return NOTHING_WAITS if made is None else made
    return look.outlook


async def _make(
    connection: AsyncConnection,
    terms: LeaseTerms,
    worker_id: UUID,
    request: ClaimRequest,
    waiting: Waiting,
    candidate: queries.Candidate,
    devices: Sequence[FreeDevice],
) -> None:
    """Make the attempt.

    Raises:
        _Overtaken: somebody else was faster.
    """
    await set_actor(connection, ActorKind.WORKER, format_id(IdKind.WORKER, worker_id))
    if not await queries.place(connection, waiting, devices):
        raise _Overtaken
    made = await queries.insert_attempt(
        connection,
        attempt_id=uuid7(),
        campaign_id=waiting.campaign_id,
        candidate=candidate,
        worker_id=worker_id,
        boot_id=request.boot_id,
        claim_id=request.claim_id,
        devices=[device.uuid for device in devices],
        ttl=timedelta(seconds=terms.ttl_s),
    )
    if not made:
        raise _Overtaken


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
