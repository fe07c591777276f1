"""Heartbeats, and an attempt's way from its start to its end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import StreamManifest
from lem_domain.ids import IdKind, format_id, parse_id
from lem_domain.states import ActorKind, FailureReason, RunState
from lem_domain.wire.workers import (
    AttemptVerdict,
    BeatAnswer,
    BeatVerdict,
    CompleteAttempt,
    EndAttempt,
    Heartbeat,
    StartAttempt,
)
from lem_server.evidence import service as evidence
from lem_server.evidence.texts import storable, storable_text
from lem_server.http.problems import ProblemError, not_there
from lem_server.leases import claim_queries, queries
from lem_server.leases import heartbeat_queries as beat_queries
from lem_server.leases.durations import LeaseTerms
from lem_server.leases.endings import end
from lem_server.leases.fence import Holder, lease_lost
from lem_server.runs.transitions import set_actor

logger = logging.getLogger(__name__)


async def heartbeat(engine: AsyncEngine, terms: LeaseTerms, *, worker_id: UUID, request: Heartbeat) -> BeatAnswer:
    """Renew every lease that the worker still holds; tells it what became of the others.

    Raises:
        ProblemError: `boot_superseded`.
    """
    held = [
        (
            parse_id(IdKind.ATTEMPT, attempt.attempt_id),
            attempt.progress.model_dump(mode="json") if attempt.progress else None,
        )
        for attempt in request.attempts
    ]
    async with engine.begin() as connection:
        worker = await claim_queries.touch_worker(connection, worker_id, request.boot_id)
        if worker is None:
            raise ProblemError(
                ProblemCode.BOOT_SUPERSEDED,
                "this boot of the worker is not registered, has signed off, or a newer one is; register again.",
            )
        renewed = (
            await beat_queries.beat(
                connection,
                worker_id=worker_id,
                boot_id=request.boot_id,
                attempts=sorted(held, key=lambda pair: pair[0]),
                ttl=timedelta(seconds=terms.ttl_s),
            )
            if held
            else {}
        )
    verdicts = []
    for attempt_id, _ in held:
        verdict = _verdict(renewed.get(attempt_id))
        verdicts.append(
            AttemptVerdict(
                attempt_id=format_id(IdKind.ATTEMPT, attempt_id),
                verdict=verdict,
                lease_s=None if verdict is BeatVerdict.LOST else terms.ttl_s,
            )
        )
    return BeatAnswer(attempts=tuple(verdicts), next_beat_s=terms.beat_interval_s, drain=worker.draining)


def _verdict(row: beat_queries.BeatRow | None) -> BeatVerdict:
    if row is None:
        return BeatVerdict.LOST
    if row.was_late:
        logger.warning("%s was not heard of in time and goes on", format_id(IdKind.ATTEMPT, row.attempt_id))
    if row.cancel:
        return BeatVerdict.CANCEL
    return BeatVerdict.PAUSE if row.pause else BeatVerdict.OK


async def start(engine: AsyncEngine, holder: Holder, request: StartAttempt) -> None:
    """The measured window opens: `initialised` to `running`. Sent again it changes nothing.

    Raises:
        ProblemError: `not_found`, `lease_lost`, or `conflict` when a cancel was asked for.
    """
    async with engine.begin() as connection:
        row = await _locked(connection, holder)
        if row.run_state == RunState.RUNNING and row.started:
            return
        if row.cancel_requested:
            raise ProblemError(
                ProblemCode.CONFLICT, "the run's cancel was asked for; end the attempt with outcome cancelled."
            )
        await queries.store_start(
            connection,
            holder.attempt_id,
            environment=storable(request.environment),
            effective_config=storable(request.effective_config.model_dump(mode="json")),
        )
        await set_actor(connection, ActorKind.WORKER, format_id(IdKind.WORKER, holder.worker_id))
        await queries.move_run(connection, row.run_id, RunState.RUNNING.value)


async def complete(engine: AsyncEngine, holder: Holder, request: CompleteAttempt) -> None:
    """Verify the manifest against what is stored and end the attempt: `running` to `completed`.

    Raises:
        ProblemError: `manifest_incomplete` with the exact missing numbers, `lease_lost`, `attempt_closed`.
    """
    manifest = [one.model_dump(mode="json") for one in sorted(request.manifest, key=_place)]
    async with engine.begin() as connection:
        row = await _attempt(connection, holder)
        if _is_of(row, holder) and row.outcome == "completed" and row.manifest == manifest:
            return
        await _require_open(connection, row, holder)
        await evidence.verify_manifest(
            connection, holder.attempt_id, processes=request.processes, manifest=request.manifest
        )
        await queries.close_attempt(connection, holder.attempt_id, outcome="completed", manifest=manifest)
        await queries.delete_lease(connection, holder.attempt_id)
        await set_actor(connection, ActorKind.WORKER, format_id(IdKind.WORKER, holder.worker_id))
        await queries.move_run(connection, row.run_id, RunState.COMPLETED.value)


async def end_attempt(engine: AsyncEngine, holder: Holder, request: EndAttempt) -> None:
    """The worker ends an attempt without a result. The same end sent again changes nothing.

    Raises:
        ProblemError: `lease_lost`, `attempt_closed`.
    """
    async with engine.begin() as connection:
        row = await _attempt(connection, holder)
        # An interruption of a run that nobody wants any more ended as its cancel (see `end`).
        same = (request.outcome, "cancelled") if request.outcome == "interrupted" else (request.outcome,)
        if _is_of(row, holder) and row.outcome in same:
            return
        await _require_open(connection, row, holder)
        await end(
            connection,
            row,
            actor=ActorKind.WORKER,
            actor_name=format_id(IdKind.WORKER, holder.worker_id),
            outcome=request.outcome,
            reason=request.reason,
            message=storable_text(request.message),
            environment=None if request.environment is None else storable(request.environment),
            effective_config=(
                None if request.effective_config is None else storable(request.effective_config.model_dump(mode="json"))
            ),
        )


async def mark_suspects(engine: AsyncEngine) -> int:
    """Write down which leases ran out since the last look; says how many."""
    async with engine.begin() as connection:
        suspects = await beat_queries.mark_suspects(connection)
    for attempt_id in suspects:
        logger.warning("%s missed its beats and is suspect", format_id(IdKind.ATTEMPT, attempt_id))
    return len(suspects)


async def expire(engine: AsyncEngine, terms: LeaseTerms) -> int:
    """End every attempt whose lease ran out longer than the grace ago; any replica may do this at any time.

    Returns how many were ended.
    """
    grace = timedelta(seconds=terms.grace_s)
    async with engine.connect() as connection:
        candidates = await beat_queries.expired_attempts(connection, grace)
    ended = 0
    for attempt_id in candidates:
        async with engine.begin() as connection:
            row = await queries.lock_attempt(connection, attempt_id)
            if row is None or not await beat_queries.still_expired(connection, attempt_id, grace):
                continue
            await _lose(connection, row, f"the worker was not heard of for {terms.ttl_s + terms.grace_s:.0f} s")
            ended += 1
    if ended:
        logger.warning("ended %d attempts whose workers were lost", ended)
    return ended


async def end_older_boots(connection: AsyncConnection, *, worker_id: UUID, boot_id: UUID) -> Sequence[UUID]:
    """End what earlier boots of a worker still lease: a new boot proves that they are gone."""
    ended = []
    for attempt_id in await queries.attempts_of_other_boots(connection, worker_id, boot_id):
        row = await queries.lock_attempt(connection, attempt_id)
        if row is None or not await queries.lock_lease(
            connection, attempt_id=attempt_id, worker_id=worker_id, boot_id=row.boot_id
        ):
            continue
        await _lose(connection, row, "the worker was started anew while it was busy with the run")
        ended.append(attempt_id)
    return ended


async def end_leaving_boot(connection: AsyncConnection, *, worker_id: UUID, boot_id: UUID) -> None:
    """End what a boot that leaves still leases, above all a claim whose answer it did not wait for."""
    for attempt_id in await queries.attempts_of_boot(connection, worker_id, boot_id):
        row = await queries.lock_attempt(connection, attempt_id)
        if row is None or not await queries.lock_lease(
            connection, attempt_id=attempt_id, worker_id=worker_id, boot_id=boot_id
        ):
            continue
        await end(
            connection,
            row,
            actor=ActorKind.WORKER,
            actor_name=format_id(IdKind.WORKER, worker_id),
            outcome="interrupted",
            reason=FailureReason.WORKER_SHUTDOWN,
            message="the worker left while it held the run",
        )


async def _lose(connection: AsyncConnection, row: queries.AttemptRow, message: str) -> None:
    await end(
        connection,
        row,
        actor=ActorKind.SERVER,
        actor_name="lease protocol",
        outcome="interrupted",
        reason=FailureReason.WORKER_LOST,
        message=message,
    )


async def _attempt(connection: AsyncConnection, holder: Holder) -> queries.AttemptRow:
    row = await queries.lock_attempt(connection, holder.attempt_id)
    if row is None:
        raise not_there(IdKind.ATTEMPT, holder.attempt_id)
    return row


async def _locked(connection: AsyncConnection, holder: Holder) -> queries.AttemptRow:
    row = await _attempt(connection, holder)
    await _require_open(connection, row, holder)
    return row


async def _require_open(connection: AsyncConnection, row: queries.AttemptRow, holder: Holder) -> None:
    if _is_of(row, holder) and row.outcome in ("completed", "failed"):
        raise ProblemError(
            ProblemCode.ATTEMPT_CLOSED, f"the attempt has already ended as {row.outcome}; nothing more is taken."
        )
    if not await queries.lock_lease(
        connection, attempt_id=holder.attempt_id, worker_id=holder.worker_id, boot_id=holder.boot_id
    ):
        raise lease_lost()


def _is_of(row: queries.AttemptRow, holder: Holder) -> bool:
    return (row.worker_id, row.boot_id) == (holder.worker_id, holder.boot_id)


def _place(one: StreamManifest) -> tuple[str, str]:
    return one.process, one.stream.value
