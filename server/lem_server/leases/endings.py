"""How an attempt ends, whoever ends it: what becomes of its run, and what that costs of the run's budgets.

The rules are a pure function; `end` carries them out inside a transaction that holds the run's row and its lease.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.states import ActorKind, FailureReason, RunState
from lem_server.leases import queries
from lem_server.runs.budgets import LOSSES_PER_RUN
from lem_server.runs.transitions import set_actor

Outcome = Literal["failed", "interrupted", "cancelled"]


class Sequel(NamedTuple):
    """What follows the first transition of an ending."""

    state: RunState | None
    """A second transition by the server, or none."""
    retries: int = 0
    losses: int = 0


def sequel(
    outcome: Outcome,
    reason: FailureReason,
    *,
    retries_left: int,
    losses_left: int,
    cancel_requested: bool,
    campaign_cancelled: bool,
) -> Sequel:
    """What the server does with a run after its attempt ended so.

    An interruption costs the budget for losses, a failure the user's retries, and neither the other's; a pause costs
    nothing.
    """
    wanted = not (cancel_requested or campaign_cancelled)
    if outcome == "interrupted" and wanted and reason is FailureReason.USER_PAUSED:
        return Sequel(RunState.QUEUED)
    if outcome == "interrupted" and wanted:
        return Sequel(RunState.QUEUED, losses=1) if losses_left > 0 else Sequel(RunState.FAILED)
    if outcome == "failed" and wanted and retries_left > 0:
        return Sequel(RunState.QUEUED, retries=1)
    return Sequel(None)


async def end(
    connection: AsyncConnection,
    row: queries.AttemptRow,
    *,
    actor: ActorKind,
    actor_name: str,
    outcome: Outcome,
    reason: FailureReason,
    message: str,
    environment: dict[str, Any] | None = None,
    effective_config: dict[str, Any] | None = None,
) -> None:
    """End an attempt without a result: release its lease and devices, move its run, queue it again where it may be."""
    if outcome == "interrupted" and (row.cancel_requested or row.campaign_state == "cancelled"):
        # Nobody wants the run any more, so the loss of its worker completes the cancel.
        outcome, reason = "cancelled", FailureReason.USER_CANCELLED
    await queries.close_attempt(
        connection,
        row.attempt_id,
        outcome=outcome,
        reason=reason.value,
        message=message,
        environment=environment,
        effective_config=effective_config,
    )
    await queries.delete_lease(connection, row.attempt_id)
    await set_actor(connection, actor, actor_name)
    await queries.move_run(connection, row.run_id, outcome, reason=reason.value, message=message)
    then = sequel(
        outcome,
        reason,
        retries_left=row.retries_left,
        losses_left=row.losses_left,
        cancel_requested=row.cancel_requested,
        campaign_cancelled=row.campaign_state == "cancelled",
    )
    if then.state is None:
        return
    await set_actor(connection, ActorKind.SERVER, "lease protocol")
    if then.state is RunState.QUEUED:
        await queries.requeue(
            connection, row.run_id, retries=then.retries, losses=then.losses, message=f"queued again after: {message}"
        )
    else:
        await queries.move_run(
            connection,
            row.run_id,
            then.state.value,
            reason=FailureReason.WORKER_LOST.value,
            message=f"put aside after {LOSSES_PER_RUN + 1} workers did not finish it (lemctl retry tries again); "
            f"the last: {message}",
        )
