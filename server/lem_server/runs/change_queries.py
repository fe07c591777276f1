"""SQL that changes runs: insert, cancel, pause, retry. A trigger of the database writes the log of transitions."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam
from sqlalchemy.types import Integer, Text

from lem_server.runs.new_run import NewRun

_UUIDS: ARRAY[UUID] = ARRAY(Uuid)

_INSERT = text("""
    INSERT INTO runs (id, campaign_id, experiment_id, cycle, position, backend, device_count, device_uuids,
                      device_like, priority, retries_left, losses_left)
    SELECT new.id, :campaign_id, new.experiment_id, new.cycle, new.position, new.backend, new.device_count,
           string_to_array(new.device_uuids, ','), new.device_like, :priority, :retries, :losses
      FROM unnest(:ids, :experiment_ids, :cycles, :positions, :backends, :device_counts, :device_uuids, :device_likes)
           AS new (id, experiment_id, cycle, position, backend, device_count, device_uuids, device_like)
     ORDER BY new.position
""").bindparams(
    bindparam("ids", type_=_UUIDS),
    bindparam("experiment_ids", type_=_UUIDS),
    bindparam("cycles", type_=ARRAY(Integer)),
    bindparam("positions", type_=ARRAY(Integer)),
    bindparam("backends", type_=ARRAY(Text)),
    bindparam("device_counts", type_=ARRAY(Integer)),
    bindparam("device_uuids", type_=ARRAY(Text)),
    bindparam("device_likes", type_=ARRAY(Text)),
)


async def insert(
    connection: AsyncConnection, runs: Sequence[NewRun], *, campaign_id: UUID, priority: int, retries: int, losses: int
) -> None:
    """Insert queued runs with one statement."""
    await connection.execute(
        _INSERT,
        {
            "campaign_id": campaign_id,
            "priority": priority,
            "retries": retries,
            "losses": losses,
            "ids": [run.id for run in runs],
            "experiment_ids": [run.experiment_id for run in runs],
            "cycles": [run.cycle for run in runs],
            "positions": [run.position for run in runs],
            "backends": [run.backend for run in runs],
            "device_counts": [run.device_count for run in runs],
            # unnest flattens arrays of arrays, so each list is one text; a UUID contains no comma.
            "device_uuids": [",".join(run.device_uuids) or None for run in runs],
            "device_likes": [run.device_like for run in runs],
        },
    )


async def lock_run(connection: AsyncConnection, run_id: UUID) -> str | None:
    """Lock a run against other changes of its state; return its state, or None if it does not exist."""
    state: str | None = (
        await connection.execute(text("SELECT state FROM runs WHERE id = :id FOR NO KEY UPDATE"), {"id": run_id})
    ).scalar_one_or_none()
    return state


# Index ix_runs_campaign_id_state. Includes failed and interrupted runs, so that this statement waits for a transaction
# that is queueing one again: no later statement can miss it. In the order of ids, so that two transactions that lock
# the runs of a campaign cannot deadlock.
_LOCK_OPEN = text("""
    SELECT id FROM runs
     WHERE campaign_id = :campaign_id AND state IN ('queued', 'initialised', 'running', 'failed', 'interrupted')
     ORDER BY id
       FOR NO KEY UPDATE
""")


async def lock_open_runs(connection: AsyncConnection, campaign_id: UUID) -> list[UUID]:
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


async def cancel(connection: AsyncConnection, run_ids: Sequence[UUID], *, message: str) -> None:
    """Cancel the waiting runs among the locked ones, and ask the workers of the live ones to stop."""
    ids = list(run_ids)
    await connection.execute(_CANCEL_WAITING, {"ids": ids, "message": message})
    await connection.execute(_REQUEST_CANCEL, {"ids": ids})
    await connection.execute(_CANCEL_LEASES, {"ids": ids})


# Index ix_runs_campaign_id_state. The campaign is locked, so no retry is queueing its failed runs.
_CANCEL_AFTER_FAILURE = text("""
    UPDATE runs r
       SET state = 'cancelled', reason = 'fail_fast',
           message = 'not run: ' || failed.named || ' failed, and the campaign ends with the first failure (fail_fast)'
      FROM (SELECT 'run_' || replace(f.id::text, '-', '') AS named FROM runs f
             WHERE f.campaign_id = :campaign_id AND f.state = 'failed' ORDER BY f.position LIMIT 1) failed
     WHERE r.id = ANY(:ids) AND r.state = 'queued'
""").bindparams(bindparam("ids", type_=_UUIDS))


async def cancel_after_failure(connection: AsyncConnection, campaign_id: UUID, run_ids: Sequence[UUID]) -> int:
    """Cancel the queued runs among the locked ones if a run of the campaign failed; return their number."""
    done = await connection.execute(_CANCEL_AFTER_FAILURE, {"campaign_id": campaign_id, "ids": list(run_ids)})
    return done.rowcount


async def campaign_of(connection: AsyncConnection, run_id: UUID) -> UUID | None:
    """Return the campaign of a run."""
    found: UUID | None = (
        await connection.execute(text("SELECT campaign_id FROM runs WHERE id = :id"), {"id": run_id})
    ).scalar_one_or_none()
    return found


# A user's retry resets the budgets to those of the campaign. Index ix_runs_campaign_id_state for a whole campaign.
_RETRY = """
    UPDATE runs r
       SET state = 'queued', reason = NULL, message = :message, cancel_requested_at = NULL, not_before = now(),
           retries_left = (c.spec -> 'execution' ->> 'retries')::smallint, losses_left = :losses
      FROM campaigns c
     WHERE c.id = r.campaign_id AND r.state IN ('failed', 'interrupted') AND {which}
    RETURNING r.id, r.position
"""
_RETRY_ONE = text(_RETRY.format(which="r.id = :id"))
_RETRY_ALL = text(_RETRY.format(which="r.campaign_id = :id"))


async def retry(connection: AsyncConnection, run_id: UUID, *, losses: int, message: str) -> None:
    """Queue a failed or interrupted run again."""
    await connection.execute(_RETRY_ONE, {"id": run_id, "losses": losses, "message": message})


async def retry_of_campaign(connection: AsyncConnection, campaign_id: UUID, *, losses: int, message: str) -> list[UUID]:
    """Queue every failed or interrupted run of a campaign again; return them in order."""
    rows = await connection.execute(_RETRY_ALL, {"id": campaign_id, "losses": losses, "message": message})
    return [row.id for row in sorted(rows, key=lambda row: row.position)]


# The runs are locked before their leases, as the lock order requires.
_LOCK_LIVE = text("""
    SELECT id FROM runs WHERE campaign_id = :id AND state IN ('initialised', 'running') ORDER BY id FOR NO KEY UPDATE
""")
_PAUSE_LEASES = text("UPDATE leases SET pause = :pause WHERE run_id = ANY(:ids)").bindparams(
    bindparam("ids", type_=_UUIDS)
)


async def ask_for_pause(connection: AsyncConnection, campaign_id: UUID, *, pause: bool) -> None:
    """Ask the workers of a campaign's live runs to hand them back, or withdraw that."""
    ids = list((await connection.execute(_LOCK_LIVE, {"id": campaign_id})).scalars())
    await connection.execute(_PAUSE_LEASES, {"ids": ids, "pause": pause})


# Index ix_runs_campaign_id_state. Waiting claims listen on lem_queue; PostgreSQL sends notifications at the commit.
_NOTIFY_QUEUE = text("""
    SELECT pg_notify('lem_queue', backend)
      FROM (SELECT DISTINCT backend FROM runs WHERE campaign_id = :id AND state = 'queued') waiting
""")


async def notify_queue(connection: AsyncConnection, campaign_id: UUID) -> None:
    """Wake the claims that wait for runs of these backends, once this transaction is committed."""
    await connection.execute(_NOTIFY_QUEUE, {"id": campaign_id})
