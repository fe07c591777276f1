"""Queues, cancels, pauses and retries runs. A trigger of the database writes the log of transitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam
from sqlalchemy.types import Integer, Text

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.states import ActorKind, RunState
from lem_domain.wire.runs import RunView
from lem_server.http.problems import ProblemError, required
from lem_server.runs.reading import get_run
from lem_server.runs.transitions import set_actor

RUNS_PER_INSERT = 10_000
"""Large enough that the number of statements is negligible, small enough for the memory of one."""
LOSSES_PER_RUN = 3
"""Losses after which a run is queued again; one more ends it as failed. A user's retry resets the budget."""


class NewRun(NamedTuple):
    """A run to queue."""

    id: UUID
    experiment_id: UUID
    cycle: int
    position: int
    backend: str
    device_count: int
    device_uuids: str | None = None
    """The devices that the run requires, in order, separated by commas; None if any will do."""
    device_like: str | None = None
    """SQL pattern (ILIKE) for the name or kind of each device."""


_UUIDS: ARRAY[UUID] = ARRAY(Uuid)

_INSERT = text("""
    INSERT INTO runs (id, campaign_id, experiment_id, cycle, position, backend, device_count, device_uuids,
                      device_like, priority, retries_left, losses_left)
    SELECT new.id, :campaign_id, new.experiment_id, new.cycle, new.position, new.backend, new.device_count,
           string_to_array(new.device_uuids, ','), new.device_like, :priority, :retries, :losses
      FROM unnest(:id, :experiment_id, :cycle, :position, :backend, :device_count, :device_uuids, :device_like)
           AS new (id, experiment_id, cycle, position, backend, device_count, device_uuids, device_like)
     ORDER BY new.position
""").bindparams(
    *(bindparam(name, type_=_UUIDS) for name in ("id", "experiment_id")),
    *(bindparam(name, type_=ARRAY(Integer)) for name in ("cycle", "position", "device_count")),
    *(bindparam(name, type_=ARRAY(Text)) for name in ("backend", "device_uuids", "device_like")),
)


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
        piece = runs[first : first + RUNS_PER_INSERT]
        columns = zip(NewRun._fields, map(list, zip(*piece, strict=True)), strict=True)
        await connection.execute(
            _INSERT,
            {
                "campaign_id": campaign_id,
                "priority": priority,
                "retries": retries,
                "losses": LOSSES_PER_RUN,
                **dict(columns),
            },
        )


async def campaign_of(connection: AsyncConnection, run_id: UUID) -> UUID:
    """Return the campaign of a run.

    Raises:
        ProblemError: `not_found`.
    """
    found = await connection.execute(text("SELECT campaign_id FROM runs WHERE id = :id"), {"id": run_id})
    campaign_id: UUID | None = found.scalar_one_or_none()
    return required(campaign_id, IdKind.RUN, run_id)


async def lock_run(connection: AsyncConnection, run_id: UUID) -> str:
    """Lock a run against other changes of its state; return its state.

    Raises:
        ProblemError: `not_found`.
    """
    found = await connection.execute(text("SELECT state FROM runs WHERE id = :id FOR NO KEY UPDATE"), {"id": run_id})
    state: str | None = found.scalar_one_or_none()
    return required(state, IdKind.RUN, run_id)


# Index ix_runs_campaign_id_state. Includes failed and interrupted runs, so that this statement waits for a transaction
# that is queueing one again: no later statement can miss it. In the order of ids, so that two transactions that lock
# the runs of a campaign cannot deadlock.
_LOCK_OPEN = text("""
    SELECT id FROM runs
     WHERE campaign_id = :campaign_id AND state IN ('queued', 'initialised', 'running', 'failed', 'interrupted')
     ORDER BY id
       FOR NO KEY UPDATE
""")


async def _lock_open_runs(connection: AsyncConnection, campaign_id: UUID) -> list[UUID]:
    """Lock every run of a campaign whose state can still change."""
    return list((await connection.execute(_LOCK_OPEN, {"campaign_id": campaign_id})).scalars())


_CANCEL_WAITING = text("""
    UPDATE runs SET state = 'cancelled', reason = 'user_cancelled', message = :message, cancel_requested_at = now()
     WHERE id = ANY(:ids) AND state IN ('queued', 'interrupted') AND NOT imported
""").bindparams(bindparam("ids", type_=_UUIDS))

_REQUEST_CANCEL = text("""
    UPDATE runs SET cancel_requested_at = now()
     WHERE id = ANY(:ids) AND state IN ('initialised', 'running') AND cancel_requested_at IS NULL
""").bindparams(bindparam("ids", type_=_UUIDS))

# Index uq_leases_run_id. After the runs, as the lock order of the lease protocol requires.
_CANCEL_LEASES = text("""
    UPDATE leases SET cancel = true WHERE run_id = ANY(:ids) AND NOT cancel
""").bindparams(bindparam("ids", type_=_UUIDS))


async def _cancel(connection: AsyncConnection, ids: list[UUID], cancelled_by: str) -> None:
    """Cancel the waiting runs among the locked ones, and ask the workers of the live ones to stop."""
    await set_actor(connection, ActorKind.USER, cancelled_by)
    await connection.execute(_CANCEL_WAITING, {"ids": ids, "message": f"cancelled by {cancelled_by}"})
    await connection.execute(_REQUEST_CANCEL, {"ids": ids})
    await connection.execute(_CANCEL_LEASES, {"ids": ids})


async def cancel_run(connection: AsyncConnection, run_id: UUID, *, cancelled_by: str) -> RunView:
    """Cancel a queued run at once, or ask the worker of a live run to stop it. An ended run is unchanged.

    Raises:
        ProblemError: `not_found`.
    """
    await lock_run(connection, run_id)
    await _cancel(connection, [run_id], cancelled_by)
    return await get_run(connection, run_id)


async def cancel_runs_of_campaign(connection: AsyncConnection, campaign_id: UUID, *, cancelled_by: str) -> None:
    """Cancel every open run of a campaign. The caller has locked the campaign's row."""
    await _cancel(connection, await _lock_open_runs(connection, campaign_id), cancelled_by)


# Index ix_runs_campaign_id_state. The campaign is locked, so no retry is queueing its failed runs.
_CANCEL_AFTER_FAILURE = text("""
    UPDATE runs r
       SET state = 'cancelled', reason = 'fail_fast',
           message = 'not run: ' || failed.named || ' failed, and the campaign ends with the first failure (fail_fast)'
      FROM (SELECT 'run_' || replace(f.id::text, '-', '') AS named FROM runs f
             WHERE f.campaign_id = :campaign_id AND f.state = 'failed' ORDER BY f.position LIMIT 1) failed
     WHERE r.id = ANY(:ids) AND r.state = 'queued'
""").bindparams(bindparam("ids", type_=_UUIDS))


async def cancel_after_failure(connection: AsyncConnection, campaign_id: UUID) -> int:
    """Cancel a campaign's queued runs if one of its runs failed; return their number. The campaign's row is locked."""
    ids = await _lock_open_runs(connection, campaign_id)
    await set_actor(connection, ActorKind.SERVER, "fail_fast")
    return (await connection.execute(_CANCEL_AFTER_FAILURE, {"campaign_id": campaign_id, "ids": ids})).rowcount


# A user's retry resets the budgets to those of the campaign. Index ix_runs_campaign_id_state for a whole campaign.
_RETRY = """
    UPDATE runs r
       SET state = 'queued', reason = NULL, message = :message, cancel_requested_at = NULL, not_before = now(),
           retries_left = (c.spec -> 'execution' ->> 'retries')::smallint, losses_left = :losses
      FROM campaigns c
     WHERE c.id = r.campaign_id AND r.state IN ('failed', 'interrupted') AND {which}
    RETURNING r.id, r.position
"""


async def retry_run(connection: AsyncConnection, run_id: UUID, *, retried_by: str) -> RunView:
    """Queue a failed or interrupted run again with full budgets. A queued or live run is unchanged.

    The caller has locked the run's campaign.

    Raises:
        ProblemError: `not_found`, or `conflict` if the run has a result or was cancelled.
    """
    state = await lock_run(connection, run_id)
    if state in (RunState.COMPLETED, RunState.AGGREGATED, RunState.CANCELLED):
        raise ProblemError(
            ProblemCode.CONFLICT,
            f"the run is {state}, which cannot be undone; submit its configuration again to measure it again.",
        )
    await _retry(connection, "r.id = :id", run_id, retried_by)
    return await get_run(connection, run_id)


async def retry_runs_of_campaign(connection: AsyncConnection, campaign_id: UUID, *, retried_by: str) -> tuple[str, ...]:
    """Queue every failed or interrupted run of a campaign again with full budgets; return them in order.

    The caller has locked the campaign.
    """
    retried = await _retry(connection, "r.campaign_id = :id", campaign_id, retried_by)
    return tuple(format_id(IdKind.RUN, run_id) for run_id in retried)


async def _retry(connection: AsyncConnection, which: str, value: UUID, retried_by: str) -> list[UUID]:
    await set_actor(connection, ActorKind.USER, retried_by)
    rows = await connection.execute(
        text(_RETRY.format(which=which)),
        {"id": value, "losses": LOSSES_PER_RUN, "message": f"queued again by {retried_by}"},
    )
    return [row.id for row in sorted(rows, key=lambda row: row.position)]


# The runs are locked before their leases, as the lock order requires.
_LOCK_LIVE = text("""
    SELECT id FROM runs WHERE campaign_id = :id AND state IN ('initialised', 'running') ORDER BY id FOR NO KEY UPDATE
""")
_PAUSE_LEASES = text("UPDATE leases SET pause = :pause WHERE run_id = ANY(:ids)").bindparams(
    bindparam("ids", type_=_UUIDS)
)


async def ask_campaign_to_pause(connection: AsyncConnection, campaign_id: UUID, *, pause: bool) -> None:
    """Ask the workers of a campaign's live runs to hand them back, or withdraw that. The campaign's row is locked."""
    ids = list((await connection.execute(_LOCK_LIVE, {"id": campaign_id})).scalars())
    await connection.execute(_PAUSE_LEASES, {"ids": ids, "pause": pause})


# Index ix_runs_campaign_id_state. Waiting claims listen on lem_queue; PostgreSQL sends notifications at the commit.
_NOTIFY_QUEUE = text("""
    SELECT pg_notify('lem_queue', backend)
      FROM (SELECT DISTINCT backend FROM runs WHERE campaign_id = :id AND state = 'queued') waiting
""")


async def wake_claims(connection: AsyncConnection, campaign_id: UUID) -> None:
    """Wake waiting claims once this transaction is committed, because a campaign's queued runs may now be claimed."""
    await connection.execute(_NOTIFY_QUEUE, {"id": campaign_id})
