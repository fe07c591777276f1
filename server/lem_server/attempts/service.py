"""An attempt from its start to its end, whether its worker ends it or the server does."""

from __future__ import annotations

import logging
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import StreamManifest
from lem_domain.ids import IdKind, format_id
from lem_domain.states import ActorKind, FailureReason, RunState
from lem_domain.wire.workers import CompleteAttempt, EndAttempt, StartAttempt
from lem_server.attempts import queries
from lem_server.attempts.endings import end_without_result
from lem_server.evidence import service as evidence
from lem_server.evidence.texts import storable, storable_text
from lem_server.http.problems import ProblemError, required
from lem_server.leases import fence
from lem_server.leases.fence import FencedAttempt
from lem_server.runs.transitions import set_actor
from lem_server.settings import LeaseTerms

logger = logging.getLogger(__name__)


async def start_attempt(engine: AsyncEngine, attempt: FencedAttempt, request: StartAttempt) -> None:
    """Open the window: move the run from `initialised` to `running`. A repeated request changes nothing.

    Raises:
        ProblemError: `not_found`, `lease_lost`, `attempt_closed`, or `conflict` if a cancel was requested.
    """
    async with engine.begin() as connection:
        row = await _lock(connection, attempt)
        await _lock_open_attempt(connection, row, attempt)
        if row.run_state == RunState.RUNNING and row.started:
            return
        if row.cancel_requested:
            raise ProblemError(
                ProblemCode.CONFLICT, "a cancel of the run was requested; end the attempt with outcome cancelled."
            )
        effective_config = storable(request.effective_config.model_dump(mode="json"))
        await queries.store_start(connection, attempt.attempt_id, storable(request.environment), effective_config)
        await set_actor(connection, ActorKind.WORKER, format_id(IdKind.WORKER, attempt.worker_id))
        await queries.move_run(connection, row.run_id, RunState.RUNNING.value)


async def complete_attempt(engine: AsyncEngine, attempt: FencedAttempt, request: CompleteAttempt) -> None:
    """Compare the manifest with the stored chunks and move the run from `running` to `completed`.

    A repeated request with the same manifest changes nothing.

    Raises:
        ProblemError: `not_found`, `lease_lost`, `attempt_closed`, or `manifest_incomplete` with the missing numbers.
    """
    manifest = [stream.model_dump(mode="json") for stream in sorted(request.manifest, key=_stream_key)]
    async with engine.begin() as connection:
        row = await _lock(connection, attempt)
        if _is_owner(row, attempt) and row.outcome == "completed" and row.manifest == manifest:
            return
        await _lock_open_attempt(connection, row, attempt)
        await evidence.verify_manifest(
            connection, attempt.attempt_id, processes=request.processes, manifest=request.manifest
        )
        await queries.close_attempt(connection, attempt.attempt_id, queries.Ending("completed", manifest=manifest))
        await fence.end_lease(connection, attempt.attempt_id)
        await set_actor(connection, ActorKind.WORKER, format_id(IdKind.WORKER, attempt.worker_id))
        await queries.move_run(connection, row.run_id, RunState.COMPLETED.value)


async def end_attempt(engine: AsyncEngine, attempt: FencedAttempt, request: EndAttempt) -> None:
    """End an attempt without a result at its worker's request. A repeated request changes nothing.

    Raises:
        ProblemError: `not_found`, `lease_lost`, `attempt_closed`.
    """
    async with engine.begin() as connection:
        row = await _lock(connection, attempt)
        # An interruption is stored as a cancel if a cancel was requested (see `end_without_result`).
        same = (request.outcome, "cancelled") if request.outcome == "interrupted" else (request.outcome,)
        if _is_owner(row, attempt) and row.outcome in same:
            return
        await _lock_open_attempt(connection, row, attempt)
        effective_config = request.effective_config
        ending = queries.Ending(
            request.outcome,
            request.reason,
            storable_text(request.message),
            environment=None if request.environment is None else storable(request.environment),
            effective_config=None if effective_config is None else storable(effective_config.model_dump(mode="json")),
        )
        worker = format_id(IdKind.WORKER, attempt.worker_id)
        await end_without_result(connection, row, ending, ActorKind.WORKER, worker)


async def end_expired(engine: AsyncEngine, terms: LeaseTerms) -> int:
    """End every attempt whose lease expired longer ago than the grace; return their number.

    Several replicas may run this at the same time: each attempt is locked, and its lease is
    checked again under the lock.
    """
    async with engine.connect() as connection:
        expired = await fence.expired_attempts(connection, terms)
    ended = 0
    for attempt_id in expired:
        async with engine.begin() as connection:
            row = await queries.lock_attempt(connection, attempt_id)
            if row is None or not await fence.lock_if_expired(connection, attempt_id, terms):
                continue
            await _end_lost(
                connection, row, f"no heartbeat of the worker for {terms.ttl_s + terms.grace_s:.0f} s; see its log"
            )
            ended += 1
    if ended:
        logger.warning("ended %d attempts whose workers were lost", ended)
    return ended


async def end_older_boots(connection: AsyncConnection, *, worker_id: UUID, boot_id: UUID) -> None:
    """End the attempts that earlier boots of a worker still lease: its new boot proves that they no longer run."""
    for held in await fence.leases_of_worker(connection, worker_id):
        row = None if held.boot_id == boot_id else await _lock_held(connection, held)
        if row is not None:
            await _end_lost(connection, row, "the worker was restarted during the run")


async def end_leaving_boot(connection: AsyncConnection, *, worker_id: UUID, boot_id: UUID) -> None:
    """End the attempts that a boot still leases when it signs off, such as a claim whose answer it did not receive."""
    message = "the worker signed off while it held the run"
    ending = queries.Ending("interrupted", FailureReason.WORKER_SHUTDOWN, message)
    for held in await fence.leases_of_worker(connection, worker_id):
        row = await _lock_held(connection, held) if held.boot_id == boot_id else None
        if row is not None:
            await end_without_result(connection, row, ending, ActorKind.WORKER, format_id(IdKind.WORKER, worker_id))


async def _lock_held(connection: AsyncConnection, held: FencedAttempt) -> queries.LockedAttempt | None:
    """Lock an attempt and its lease; return None if the lease has ended meanwhile."""
    row = await queries.lock_attempt(connection, held.attempt_id)
    return row if row is not None and await fence.lock_lease(connection, held) else None


async def _end_lost(connection: AsyncConnection, row: queries.LockedAttempt, message: str) -> None:
    ending = queries.Ending("interrupted", FailureReason.WORKER_LOST, message)
    await end_without_result(connection, row, ending, ActorKind.SERVER, "lease protocol")


async def _lock(connection: AsyncConnection, attempt: FencedAttempt) -> queries.LockedAttempt:
    row = await queries.lock_attempt(connection, attempt.attempt_id)
    return required(row, IdKind.ATTEMPT, attempt.attempt_id)


async def _lock_open_attempt(connection: AsyncConnection, row: queries.LockedAttempt, attempt: FencedAttempt) -> None:
    """Lock the lease (after the run's row, see `queries`) and require that the attempt has not ended.

    Raises:
        ProblemError: `attempt_closed`, `lease_lost`.
    """
    if _is_owner(row, attempt) and row.outcome in ("completed", "failed"):
        raise ProblemError(
            ProblemCode.ATTEMPT_CLOSED, f"the attempt has already ended as {row.outcome} and accepts no more writes."
        )
    if not await fence.lock_lease(connection, attempt):
        raise fence.lease_lost()


def _is_owner(row: queries.LockedAttempt, attempt: FencedAttempt) -> bool:
    return (row.worker_id, row.boot_id) == (attempt.worker_id, attempt.boot_id)


def _stream_key(stream: StreamManifest) -> tuple[str, str]:
    return stream.process, stream.stream.value
