"""Queueing, reading, cancelling, pausing and retrying runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.states import ActorKind, FailureReason, RunState
from lem_domain.wire.runs import (
    LeaseEventKind,
    LeaseEventView,
    LogChunk,
    Progress,
    RunView,
    TransitionView,
)
from lem_server.http.problems import ProblemError, not_found
from lem_server.runs import change_queries, queries
from lem_server.runs.new_run import LOSSES_PER_RUN, NewRun
from lem_server.runs.queries import LogPosition, QueuePosition
from lem_server.runs.transitions import set_actor

RUNS_PER_INSERT = 10_000
"""Large enough that the number of statements is negligible, small enough for the memory of one."""


class RunFilter(NamedTuple):
    """The filter of a list of runs; None matches all."""

    campaign_id: UUID | None = None
    state: RunState | None = None


async def queue_runs(
    connection: AsyncConnection,
    runs: Sequence[NewRun],
    *,
    campaign_id: UUID,
    priority: int,
    retries: int,
    submitted_by: str,
) -> None:
    """Queue the runs of a new campaign in the transaction that creates it."""
    await set_actor(connection, ActorKind.USER, submitted_by)
    for first in range(0, len(runs), RUNS_PER_INSERT):
        await change_queries.insert(
            connection,
            runs[first : first + RUNS_PER_INSERT],
            campaign_id=campaign_id,
            priority=priority,
            retries=retries,
            losses=LOSSES_PER_RUN,
        )


async def list_runs(
    engine: AsyncEngine, wanted: RunFilter, *, after: QueuePosition | None, limit: int
) -> tuple[tuple[RunView, ...], QueuePosition | None]:
    """Return one page of runs in the order of the queue, and the key after which the next page begins."""
    async with engine.connect() as connection:
        rows = await queries.list_runs(
            connection, campaign_id=wanted.campaign_id, state=wanted.state, after=after, limit=limit + 1
        )
    shown = rows[:limit]
    following = QueuePosition(shown[-1].campaign_id, shown[-1].position) if len(rows) > limit else None
    return tuple(_run(row) for row in shown), following


async def get_run(engine: AsyncEngine, run_id: UUID) -> RunView:
    """Return one run.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        row = await queries.get_run(connection, run_id)
    if row is None:
        raise not_found(IdKind.RUN, run_id)
    return _run(row)


async def require_run(connection: AsyncConnection, run_id: UUID) -> None:
    """Check that a run exists.

    Raises:
        ProblemError: `not_found`.
    """
    if await queries.get_run(connection, run_id) is None:
        raise not_found(IdKind.RUN, run_id)


async def cancel_run(engine: AsyncEngine, run_id: UUID, *, cancelled_by: str) -> RunView:
    """Cancel a queued run at once, or ask the worker of a live run to stop it. An ended run is unchanged.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.begin() as connection:
        if await change_queries.lock_run(connection, run_id) is None:
            raise not_found(IdKind.RUN, run_id)
        await _cancel(connection, [run_id], cancelled_by)
    return await get_run(engine, run_id)


async def cancel_runs_of_campaign(connection: AsyncConnection, campaign_id: UUID, *, cancelled_by: str) -> None:
    """Cancel every open run of a campaign. The caller has locked the campaign's row."""
    await _cancel(connection, await change_queries.lock_open_runs(connection, campaign_id), cancelled_by)


async def cancel_after_failure(connection: AsyncConnection, campaign_id: UUID) -> int:
    """Cancel a campaign's queued runs if one of its runs failed; return their number. The campaign's row is locked."""
    run_ids = await change_queries.lock_open_runs(connection, campaign_id)
    await set_actor(connection, ActorKind.SERVER, "fail_fast")
    return await change_queries.cancel_after_failure(connection, campaign_id, run_ids)


async def ask_campaign_to_pause(connection: AsyncConnection, campaign_id: UUID, *, pause: bool) -> None:
    """Ask the workers of a campaign's live runs to hand them back, or withdraw that. The campaign's row is locked."""
    await change_queries.ask_for_pause(connection, campaign_id, pause=pause)


async def wake_claims(connection: AsyncConnection, campaign_id: UUID) -> None:
    """Wake waiting claims, because a campaign's queued runs may now be claimed."""
    await change_queries.notify_queue(connection, campaign_id)


async def retry_run(connection: AsyncConnection, run_id: UUID, *, retried_by: str) -> RunView:
    """Queue a failed or interrupted run again with full budgets. A queued or live run is unchanged.

    The caller has locked the run's campaign.

    Raises:
        ProblemError: `not_found`, or `conflict` if the run has a result or was cancelled.
    """
    state = await change_queries.lock_run(connection, run_id)
    if state is None:
        raise not_found(IdKind.RUN, run_id)
    if state in (RunState.COMPLETED, RunState.AGGREGATED, RunState.CANCELLED):
        raise ProblemError(
            ProblemCode.CONFLICT,
            f"the run is {state}, which cannot be undone; submit its configuration again to measure it again.",
        )
    await set_actor(connection, ActorKind.USER, retried_by)
    await change_queries.retry(connection, run_id, losses=LOSSES_PER_RUN, message=f"queued again by {retried_by}")
    row = await queries.get_run(connection, run_id)
    if row is None:
        raise not_found(IdKind.RUN, run_id)
    return _run(row)


async def retry_runs_of_campaign(connection: AsyncConnection, campaign_id: UUID, *, retried_by: str) -> tuple[str, ...]:
    """Queue every failed or interrupted run of a campaign again with full budgets; return them in order.

    The caller has locked the campaign.
    """
    await set_actor(connection, ActorKind.USER, retried_by)
    retried = await change_queries.retry_of_campaign(
        connection, campaign_id, losses=LOSSES_PER_RUN, message=f"queued again by {retried_by}"
    )
    return tuple(format_id(IdKind.RUN, run_id) for run_id in retried)


async def campaign_of(connection: AsyncConnection, run_id: UUID) -> UUID:
    """Return the campaign of a run.

    Raises:
        ProblemError: `not_found`.
    """
    campaign_id = await change_queries.campaign_of(connection, run_id)
    if campaign_id is None:
        raise not_found(IdKind.RUN, run_id)
    return campaign_id


async def list_lease_events(
    engine: AsyncEngine, run_id: UUID, *, after: int, limit: int
) -> tuple[tuple[LeaseEventView, ...], int | None]:
    """Return one page of the lease events of a run, and the entry after which the next page begins.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        await require_run(connection, run_id)
        rows = await queries.list_lease_events(connection, run_id, after=after, limit=limit + 1)
    shown = rows[:limit]
    return tuple(_lease_event(row) for row in shown), shown[-1].id if len(rows) > limit else None


async def list_transitions(
    engine: AsyncEngine, run_id: UUID, *, after: int, limit: int
) -> tuple[tuple[TransitionView, ...], int | None]:
    """Return one page of a run's transitions, and the entry after which the next page begins.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        await require_run(connection, run_id)
        rows = await queries.list_transitions(connection, run_id, after=after, limit=limit + 1)
    shown = rows[:limit]
    return tuple(_transition(row) for row in shown), shown[-1].id if len(rows) > limit else None


async def list_logs(
    engine: AsyncEngine, run_id: UUID, *, process: str | None, after: LogPosition | None, limit: int
) -> tuple[tuple[LogChunk, ...], LogPosition | None]:
    """Return one page of the output of a run's processes, and the key after which the next page begins.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        await require_run(connection, run_id)
        rows = await queries.list_logs(connection, run_id, process=process, after=after, limit=limit + 1)
    shown = rows[:limit]
    following = LogPosition(shown[-1].number, shown[-1].process, shown[-1].seq) if len(rows) > limit else None
    return tuple(_log(row) for row in shown), following


async def _cancel(connection: AsyncConnection, run_ids: Sequence[UUID], cancelled_by: str) -> None:
    await set_actor(connection, ActorKind.USER, cancelled_by)
    await change_queries.cancel(connection, run_ids, message=f"cancelled by {cancelled_by}")


def _run(row: queries.ListedRun) -> RunView:
    return RunView(
        id=format_id(IdKind.RUN, row.id),
        campaign_id=format_id(IdKind.CAMPAIGN, row.campaign_id),
        experiment_id=format_id(IdKind.EXPERIMENT, row.experiment_id),
        display_name=row.display_name,
        backend=row.backend,
        cycle=row.cycle,
        position=row.position,
        state=RunState(row.state),
        reason=None if row.reason is None else FailureReason(row.reason),
        message=row.message,
        attempts=row.attempts,
        current_attempt=_attempt_id(row.current_attempt),
        cancel_requested=row.cancel_requested,
        created_at=row.created_at,
        updated_at=row.updated_at,
        progress=None if row.progress is None else Progress.model_validate(row.progress),
    )


def _transition(row: queries.RecordedTransition) -> TransitionView:
    return TransitionView(
        source=None if row.source is None else RunState(row.source),
        target=RunState(row.target),
        at=row.at,
        actor=ActorKind(row.actor),
        actor_name=row.actor_name,
        reason=row.reason,
        message=row.message,
        attempt_id=_attempt_id(row.attempt_id),
    )


def _lease_event(row: queries.RecordedLeaseEvent) -> LeaseEventView:
    return LeaseEventView(
        attempt_id=format_id(IdKind.ATTEMPT, row.attempt_id),
        kind=LeaseEventKind(row.kind),
        at=row.at,
        silent_s=row.silent_s,
    )


def _log(row: queries.StoredLog) -> LogChunk:
    return LogChunk(
        attempt_id=format_id(IdKind.ATTEMPT, row.attempt_id),
        process=row.process,
        seq=row.seq,
        received_at=row.received_at,
        text=row.text,
    )


def _attempt_id(value: UUID | None) -> str | None:
    return None if value is None else format_id(IdKind.ATTEMPT, value)
