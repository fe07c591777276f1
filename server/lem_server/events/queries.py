"""SQL of event streams: the log after a cursor, and the latest progress of live runs."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.wire.events import RunProgressEvent, RunTransitionEvent
from lem_server.database.rows import read_all


class Followed(NamedTuple):
    """The subject of a stream: a campaign, or one run of it."""

    campaign_id: UUID
    run_id: UUID | None = None


class EventCursor(NamedTuple):
    """A position in the log, which is ordered by transaction and then by entry."""

    xact: int
    id: int


class LoggedTransition(NamedTuple):
    """One transition. `stable`: no entry can appear before it, because no older transaction is open."""

    xact: int
    id: int
    stable: bool
    event: RunTransitionEvent


_TRANSITIONS = """
    SELECT t.xact::text::bigint AS xact, t.id, t.xact < pg_snapshot_xmin(pg_current_snapshot()) AS stable, t.run_id,
           e.display_name, r.cycle, t.source, t.target, t.at, t.reason, t.message
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
    connection: AsyncConnection, followed: Followed, *, after: EventCursor, limit: int
) -> list[LoggedTransition]:
    """Return the log of a campaign, or of one of its runs, after a cursor."""
    statement = _OF_CAMPAIGN if followed.run_id is None else _OF_RUN
    cursor = {"xact": str(after.xact), "id": after.id, "limit": limit}
    rows = await connection.execute(statement, {**followed._asdict(), **cursor})
    return [
        LoggedTransition(row["xact"], row["id"], row["stable"], RunTransitionEvent.model_validate(dict(row)))
        for row in rows.mappings()
    ]


_PROGRESS = """
    SELECT r.id AS run_id, l.attempt_id, e.display_name, r.cycle, l.progress
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


async def progress(connection: AsyncConnection, followed: Followed) -> list[RunProgressEvent]:
    """Return the latest progress of live runs."""
    statement = _PROGRESS_OF_CAMPAIGN if followed.run_id is None else _PROGRESS_OF_RUN
    return await read_all(connection, statement, RunProgressEvent, **followed._asdict())
