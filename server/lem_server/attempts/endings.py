"""How an attempt without a result ends: the next state of its run, and the charge to the run's budgets.

`follow_up` holds the rules as a pure function. `end_without_result` applies them in a transaction that has locked the
run's row and the lease.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.states import ActorKind, FailureReason, RunState
from lem_server.attempts import queries
from lem_server.leases.fence import end_lease
from lem_server.runs.changes import LOSSES_PER_RUN
from lem_server.runs.transitions import set_actor


class FollowUp(NamedTuple):
    """The server's own transition after the one that ended the attempt."""

    state: RunState | None
    """Target of the second transition, or None."""
    retries: int = 0
    losses: int = 0


def follow_up(
    outcome: queries.Outcome,
    reason: FailureReason | None,
    *,
    retries_left: int,
    losses_left: int,
    cancel_requested: bool,
    campaign_cancelled: bool,
) -> FollowUp:
    """Decide what the server does with a run after its attempt ended.

    An interruption is charged to the budget of losses and a failure to the user's retries; a pause is not charged.
    """
    wanted = not (cancel_requested or campaign_cancelled)
    if outcome == "interrupted" and wanted and reason is FailureReason.USER_PAUSED:
        return FollowUp(RunState.QUEUED)
    if outcome == "interrupted" and wanted:
        return FollowUp(RunState.QUEUED, losses=1) if losses_left > 0 else FollowUp(RunState.FAILED)
    if outcome == "failed" and wanted and retries_left > 0:
        return FollowUp(RunState.QUEUED, retries=1)
    return FollowUp(None)


async def end_without_result(
    connection: AsyncConnection, attempt: queries.LockedAttempt, ending: queries.Ending, actor: ActorKind, name: str
) -> None:
    """End an attempt: free its lease and devices, move its run, and queue the run again if its budgets allow that."""
    campaign_cancelled = attempt.campaign_state == "cancelled"
    if ending.outcome == "interrupted" and (attempt.cancel_requested or campaign_cancelled):
        # A cancel was requested, so the loss of the worker completes it.
        ending = ending._replace(outcome="cancelled", reason=FailureReason.USER_CANCELLED)
    await queries.close_attempt(connection, attempt.attempt_id, ending)
    await end_lease(connection, attempt.attempt_id)
    await set_actor(connection, actor, name)
    await queries.move_run(connection, attempt.run_id, ending.outcome, reason=ending.reason, message=ending.message)
    then = follow_up(
        ending.outcome,
        ending.reason,
        retries_left=attempt.retries_left,
        losses_left=attempt.losses_left,
        cancel_requested=attempt.cancel_requested,
        campaign_cancelled=campaign_cancelled,
    )
    if then.state is None:
        return
    await set_actor(connection, ActorKind.SERVER, "lease protocol")
    if then.state is RunState.QUEUED:
        await queries.requeue(
            connection,
            attempt.run_id,
            retries=then.retries,
            losses=then.losses,
            message=f"queued again after: {ending.message}",
        )
    else:
        await queries.move_run(
            connection,
            attempt.run_id,
            then.state.value,
            reason=FailureReason.WORKER_LOST,
            message=f"quarantined after {LOSSES_PER_RUN + 1} attempts lost their worker; `lemctl retry` queues it "
            f"again. The last error: {ending.message}",
        )
