"""SQL that reads runs, their transitions, their lease events and their output."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class ListedRun(NamedTuple):
    """A run as it is shown."""

    id: UUID
    campaign_id: UUID
    experiment_id: UUID
    display_name: str
    backend: str
    cycle: int
    position: int
    state: str
    reason: str | None
    message: str | None
    attempts: int
    current_attempt: UUID | None
    cancel_requested: bool
    created_at: datetime
    updated_at: datetime
    progress: dict[str, Any] | None


class QueuePosition(NamedTuple):
    """The sort key of runs: campaigns by age, the runs of one in the order of its queue."""

    campaign_id: UUID
    position: int


class RecordedTransition(NamedTuple):
    """One entry of a run's log of transitions."""

    id: int
    source: str | None
    target: str
    at: datetime
    actor: str
    actor_name: str
    reason: str | None
    message: str | None
    attempt_id: UUID | None


class RecordedLeaseEvent(NamedTuple):
    """One entry of the log of leases."""

    id: int
    attempt_id: UUID
    kind: str
    at: datetime
    silent_s: float


class LogPosition(NamedTuple):
    """The sort key of the output of a run; `number` is that of the attempt."""

    number: int
    process: str
    seq: int


class StoredLog(NamedTuple):
    """A piece of a process's output."""

    number: int
    attempt_id: UUID
    process: str
    seq: int
    received_at: datetime
    text: str


_SELECT_RUNS = """
    SELECT r.id, r.campaign_id, r.experiment_id, e.display_name, r.backend, r.cycle, r.position, r.state, r.reason,
           r.message, r.attempts, r.current_attempt, r.cancel_requested_at IS NOT NULL, r.created_at, r.updated_at,
           l.progress
      FROM runs r
      JOIN experiments e ON e.id = r.experiment_id
      LEFT JOIN leases l ON l.run_id = r.id
"""

# Index uq_runs_campaign_id_position gives the order, with and without a campaign; uq_leases_run_id finds the progress.
# Within one campaign only the position is compared, because a comparison of pairs would not give the index scan its
# starting point.
_LIST = """
     WHERE {conditions}
     ORDER BY r.campaign_id, r.position
     LIMIT :limit
"""
_AFTER = "(r.campaign_id, r.position) > (:after_campaign, :after_position)"
_OF_CAMPAIGN = "r.campaign_id = :campaign_id AND r.position > :after_position"
_IN_STATE = "r.state = :state"
_FIRST = QueuePosition(UUID(int=0), -1)


async def list_runs(
    connection: AsyncConnection, *, campaign_id: UUID | None, state: str | None, after: QueuePosition | None, limit: int
) -> list[ListedRun]:
    """Return runs in the order of the queue."""
    after = after or _FIRST
    parameters: dict[str, object] = {"limit": limit}
    if campaign_id is None:
        conditions = [_AFTER]
        parameters |= {"after_campaign": after.campaign_id, "after_position": after.position}
    elif campaign_id < after.campaign_id:
        return []
    else:
        conditions = [_OF_CAMPAIGN]
        begun = campaign_id == after.campaign_id
        parameters |= {"campaign_id": campaign_id, "after_position": after.position if begun else _FIRST.position}
    if state is not None:
        conditions.append(_IN_STATE)
        parameters["state"] = state
    rows = await connection.execute(text(_SELECT_RUNS + _LIST.format(conditions=" AND ".join(conditions))), parameters)
    return [ListedRun(*row) for row in rows]


# The runs' primary key.
_GET = text(_SELECT_RUNS + " WHERE r.id = :id")


async def get_run(connection: AsyncConnection, run_id: UUID) -> ListedRun | None:
    """Return one run."""
    row = (await connection.execute(_GET, {"id": run_id})).one_or_none()
    return None if row is None else ListedRun(*row)


_LEASE_EVENTS = text("""
    SELECT id, attempt_id, kind, at, silent_s FROM lease_events
     WHERE run_id = :run_id AND id > :after ORDER BY id LIMIT :limit
""")


async def list_lease_events(
    connection: AsyncConnection, run_id: UUID, *, after: int, limit: int
) -> list[RecordedLeaseEvent]:
    """Return the events of the leases of a run's attempts (index ix_lease_events_run_id)."""
    rows = await connection.execute(_LEASE_EVENTS, {"run_id": run_id, "after": after, "limit": limit})
    return [RecordedLeaseEvent(*row) for row in rows]


# Index ix_run_transitions_run_id.
_LIST_TRANSITIONS = text("""
    SELECT id, source, target, at, actor, actor_name, reason, message, attempt_id
      FROM run_transitions
     WHERE run_id = :run_id AND id > :after
     ORDER BY id
     LIMIT :limit
""")


async def list_transitions(
    connection: AsyncConnection, run_id: UUID, *, after: int, limit: int
) -> list[RecordedTransition]:
    """Return a run's transitions. They are written under the lock of its row, so their ids are in order of time."""
    rows = await connection.execute(_LIST_TRANSITIONS, {"run_id": run_id, "after": after, "limit": limit})
    return [RecordedTransition(*row) for row in rows]


# Index uq_attempts_run_id_number, then the logs' primary key.
_LIST_LOGS = text("""
    SELECT a.number, l.attempt_id, l.process, l.seq, l.received_at, l.text
      FROM attempts a
      JOIN logs l ON l.attempt_id = a.id
     WHERE a.run_id = :run_id
       AND (a.number, l.process, l.seq) > (:number, :after_process, :seq)
       AND (CAST(:process AS text) IS NULL OR l.process = :process)
     ORDER BY a.number, l.process, l.seq
     LIMIT :limit
""")


async def list_logs(
    connection: AsyncConnection, run_id: UUID, *, process: str | None, after: LogPosition | None, limit: int
) -> list[StoredLog]:
    """Return the output of the processes of a run, in the order of attempts and processes."""
    after = after or LogPosition(0, "", -1)
    rows = await connection.execute(
        _LIST_LOGS,
        {
            "run_id": run_id,
            "process": process,
            "number": after.number,
            "after_process": after.process,
            "seq": after.seq,
            "limit": limit,
        },
    )
    return [StoredLog(*row) for row in rows]
