"""SQL of event streams: the log after a cursor, and the latest progress of live runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class EventCursor(NamedTuple):
    """A position in the log, which is ordered by transaction and then by entry."""

    xact: int
    id: int


class EventRow(NamedTuple):
    """One transition. `stable`: no entry can appear before it, because no older transaction is open."""

    xact: int
    id: int
    stable: bool
    run_id: UUID
    display_name: str
    cycle: int
    source: str | None
    target: str
    at: datetime
    reason: str | None
    message: str | None


class ProgressRow(NamedTuple):
    """A live run and its latest progress."""

    run_id: UUID
    attempt_id: UUID
    display_name: str
    cycle: int
    progress: dict[str, Any]


_TRANSITIONS = """
    SELECT t.xact::text::bigint, t.id, t.xact < pg_snapshot_xmin(pg_current_snapshot()), t.run_id, e.display_name,
           r.cycle, t.source, t.target, t.at, t.reason, t.message
      FROM run_transitions t
      JOIN runs r ON r.id = t.run_id
      JOIN experiments e ON e.id = r.experiment_id
     WHERE {condition} AND (t.xact, t.id) > (CAST(CAST(:xact AS text) AS xid8), :id)
     ORDER BY t.xact, t.id
     LIMIT :limit
"""
# Index ix_run_transitions_campaign_id.
_OF_CAMPAIGN = text(_TRANSITIONS.format(condition="t.campaign_id = :campaign_id"))
# Index ix_run_transitions_run_id; one run has few entries.
_OF_RUN = text(_TRANSITIONS.format(condition="t.run_id = :run_id"))


async def transitions(
    connection: AsyncConnection, *, campaign_id: UUID, run_id: UUID | None, after: EventCursor, limit: int
) -> list[EventRow]:
    """Return the log of a campaign, or of one of its runs, after a cursor."""
    where = {"campaign_id": campaign_id} if run_id is None else {"run_id": run_id}
    rows = await connection.execute(
        _OF_CAMPAIGN if run_id is None else _OF_RUN,
        {**where, "xact": str(after.xact), "id": after.id, "limit": limit},
    )
    return [EventRow(*row) for row in rows]


_PROGRESS = """
    SELECT r.id, l.attempt_id, e.display_name, r.cycle, l.progress
      FROM runs r
      JOIN leases l ON l.run_id = r.id
      JOIN experiments e ON e.id = r.experiment_id
     WHERE {condition} AND r.state IN ('initialised', 'running') AND l.progress IS NOT NULL
     ORDER BY r.position
"""
# Index ix_runs_campaign_id_state.
_PROGRESS_OF_CAMPAIGN = text(_PROGRESS.format(condition="r.campaign_id = :campaign_id"))
# The runs' primary key.
_PROGRESS_OF_RUN = text(_PROGRESS.format(condition="r.id = :run_id"))


async def progress(connection: AsyncConnection, *, campaign_id: UUID, run_id: UUID | None) -> Sequence[ProgressRow]:
    """Return the latest progress of live runs."""
    if run_id is None:
        rows = await connection.execute(_PROGRESS_OF_CAMPAIGN, {"campaign_id": campaign_id})
    else:
        rows = await connection.execute(_PROGRESS_OF_RUN, {"run_id": run_id})
    return [ProgressRow(*row) for row in rows]
