"""SQL that changes runs: queueing in bulk, cancelling, pausing, trying again. The log is the database's own doing."""

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
    """Queue runs with one statement."""
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
            # No UUID holds a comma.
            "device_uuids": [",".join(run.device_uuids) or None for run in runs],
            "device_likes": [run.device_like for run in runs],
        },
    )


async def lock_run(connection: AsyncConnection, run_id: UUID) -> str | None:
    """Lock a run against every other change of its state; its state, or None when there is no such run."""
    state: str | None = (
        await connection.execute(text("SELECT state FROM runs WHERE id = :id FOR NO KEY UPDATE"), {"id": run_id})
    ).scalar_one_or_none()
    return state


# Index ix_runs_campaign_id_state. A run that is just being queued again is waited for here, so that no statement
# after this one can overlook it.
_LOCK_OPEN = text("""
    SELECT id FROM runs
     WHERE campaign_id = :campaign_id AND state IN ('queued', 'initialised', 'running', 'failed', 'interrupted')
     ORDER BY id
       FOR NO KEY UPDATE
""")


async def lock_open_runs(connection: AsyncConnection, campaign_id: UUID) -> list[UUID]:
    """Lock every run of a campaign that could still move, in the order of their ids."""
    return list((await connection.execute(_LOCK_OPEN, {"campaign_id": campaign_id})).scalars())


_CANCEL_WAITING = text("""
    UPDATE runs SET state = 'cancelled', reason = 'user_cancelled', message = :message, cancel_requested_at = now()
     WHERE id = ANY(:ids) AND state IN ('queued', 'interrupted') AND NOT imported
""").bindparams(bindparam("ids", type_=_UUIDS))

_REQUEST_CANCEL = text("""
    UPDATE runs SET cancel_requested_at = now()
     WHERE id = ANY(:ids) AND state IN ('initialised', 'running') AND cancel_requested_at IS NULL
""").bindparams(bindparam("ids", type_=_UUIDS))

# Index uq_leases_run_id. The order of locks is that of the lease protocol: runs first, then leases.
_CANCEL_LEASES = text("""
    UPDATE leases SET cancel = true WHERE run_id = ANY(:ids) AND NOT cancel
""").bindparams(bindparam("ids", type_=_UUIDS))


async def cancel(connection: AsyncConnection, run_ids: Sequence[UUID], *, message: str) -> None:
    """Cancel those of the locked runs that wait, and ask the workers of those that are live."""
    ids = list(run_ids)
    await connection.execute(_CANCEL_WAITING, {"ids": ids, "message": message})
    await connection.execute(_REQUEST_CANCEL, {"ids": ids})
    await connection.execute(_CANCEL_LEASES, {"ids": ids})


# Index ix_runs_campaign_id_state. The campaign is locked, so none of its failed runs is being queued again.
_CANCEL_AFTER_FAILURE = text("""
    UPDATE runs r
       SET state = 'cancelled', reason = 'fail_fast',
           message = 'not run: ' || failed.named || ' failed, and the campaign ends with the first failure (fail_fast)'
      FROM (SELECT 'run_' || replace(f.id::text, '-', '') AS named FROM runs f
             WHERE f.campaign_id = :campaign_id AND f.state = 'failed' ORDER BY f.position LIMIT 1) failed
     WHERE r.id = ANY(:ids) AND r.state = 'queued'
""").bindparams(bindparam("ids", type_=_UUIDS))


async def cancel_after_failure(connection: AsyncConnection, campaign_id: UUID, run_ids: Sequence[UUID]) -> int:
    """Cancel those of the locked runs that are queued, if one of the campaign has failed; how many."""
    done = await connection.execute(_CANCEL_AFTER_FAILURE, {"campaign_id": campaign_id, "ids": list(run_ids)})
    return done.rowcount


async def campaign_of(connection: AsyncConnection, run_id: UUID) -> UUID | None:
    """The campaign of a run."""
    found: UUID | None = (
        await connection.execute(text("SELECT campaign_id FROM runs WHERE id = :id"), {"id": run_id})
    ).scalar_one_or_none()
    return found


# Budgets are the campaign's again: a user's retry is a new beginning. Index ix_runs_campaign_id_state where all of a
# campaign are meant.
_RETRY = """
    UPDATE runs r
       SET state = 'queued', reason = NULL, message = :message, cancel_requested_at = NULL, not_before = now(),
           retries_left = (c.spec -> 'execution' ->> 'retries')::smallint, losses_left = :losses
      FROM campaigns c
     WHERE c.id = r.campaign_id AND r.state IN ('failed', 'interrupted') AND {whose}
    RETURNING r.id, r.position
"""
_RETRY_ONE = text(_RETRY.format(whose="r.id = :id"))
_RETRY_ALL = text(_RETRY.format(whose="r.campaign_id = :id"))


async def retry(connection: AsyncConnection, run_id: UUID, *, losses: int, message: str) -> None:
    """Queue a run again if it failed or was interrupted."""
    await connection.execute(_RETRY_ONE, {"id": run_id, "losses": losses, "message": message})


async def retry_of_campaign(connection: AsyncConnection, campaign_id: UUID, *, losses: int, message: str) -> list[UUID]:
    """Queue every run of a campaign again that failed or was interrupted; which ones, in order."""
    rows = await connection.execute(_RETRY_ALL, {"id": campaign_id, "losses": losses, "message": message})
    return [row.id for row in sorted(rows, key=lambda row: row.position)]


# The runs are locked before their leases, as everywhere.
_LOCK_LIVE = text("""
    SELECT id FROM runs WHERE campaign_id = :id AND state IN ('initialised', 'running') ORDER BY id FOR NO KEY UPDATE
""")
_PAUSE_LEASES = text("UPDATE leases SET pause = :pause WHERE run_id = ANY(:ids)").bindparams(
    bindparam("ids", type_=_UUIDS)
)


async def ask_for_pause(connection: AsyncConnection, campaign_id: UUID, *, pause: bool) -> None:
    """Ask the workers of a campaign's live runs to hand them back, or take that back."""
    ids = list((await connection.execute(_LOCK_LIVE, {"id": campaign_id})).scalars())
    await connection.execute(_PAUSE_LEASES, {"ids": ids, "pause": pause})


# Index ix_runs_campaign_id_state; the channel of the queue is lem_queue.
_TELL_QUEUE = text("""
    SELECT pg_notify('lem_queue', backend)
      FROM (SELECT DISTINCT backend FROM runs WHERE campaign_id = :id AND state = 'queued') waiting
""")


async def tell_queue(connection: AsyncConnection, campaign_id: UUID) -> None:
    """Wake the claims that wait for what a campaign has queued, once this transaction is committed."""
    await connection.execute(_TELL_QUEUE, {"id": campaign_id})
