"""Reads runs, their transitions, their lease events and their output."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.evidence.streams import ProcessName
from lem_domain.ids import IdKind
from lem_domain.states import RunState
from lem_domain.wire.base import Page
from lem_domain.wire.runs import LeaseEventView, LogChunk, RunView, TransitionView
from lem_server.database.rows import read_one
from lem_server.http.paging import Int4, Int8, Listing
from lem_server.http.problems import required

M = TypeVar("M", bound=BaseModel)

_RUNS = Listing("runs", RunView, campaign_id=UUID, position=Int4)
_SELECT_RUNS = """
    SELECT r.id, r.campaign_id, r.experiment_id, e.display_name, r.backend, r.cycle, r.position, r.state, r.reason,
           r.message, r.attempts, r.current_attempt, r.cancel_requested_at IS NOT NULL AS cancel_requested,
           r.created_at, r.updated_at, l.progress
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


async def list_runs(
    connection: AsyncConnection, *, campaign_id: UUID | None, state: RunState | None, cursor: str | None, limit: int
) -> Page[RunView]:
    """Return a page of runs in the order of the queue: campaigns by age, the runs of one in its order."""
    after_campaign, after_position = _RUNS.after(cursor, UUID(int=0), -1)
    conditions = [_AFTER if campaign_id is None else _OF_CAMPAIGN]
    if campaign_id is not None:
        if campaign_id < after_campaign:
            return Page(items=())
        after_position = after_position if campaign_id == after_campaign else -1
    if state is not None:
        conditions.append(_IN_STATE)
    return await _RUNS.page(
        connection,
        text(_SELECT_RUNS + _LIST.format(conditions=" AND ".join(conditions))),
        limit,
        campaign_id=campaign_id,
        after_campaign=after_campaign,
        after_position=after_position,
        state=state,
    )


# The runs' primary key.
_GET = text(_SELECT_RUNS + " WHERE r.id = :id")


async def get_run(connection: AsyncConnection, run_id: UUID) -> RunView:
    """Return one run.

    Raises:
        ProblemError: `not_found`.
    """
    return required(await read_one(connection, _GET, RunView, id=run_id), IdKind.RUN, run_id)


class RunListing(NamedTuple, Generic[M]):
    """A list of what belongs to a run, by a number from 1, and the statement that reads a page of it."""

    listing: Listing[M]
    statement: TextClause

    async def page(self, connection: AsyncConnection, run_id: UUID, *, cursor: str | None, limit: int) -> Page[M]:
        """Return a page.

        Raises:
            ProblemError: `not_found`.
        """
        (after,) = self.listing.after(cursor, 0)
        await get_run(connection, run_id)
        return await self.listing.page(connection, self.statement, limit, run_id=run_id, after=after)


# Index ix_lease_events_run_id.
LEASE_EVENTS = RunListing(
    Listing("lease_events", LeaseEventView, id=Int8),
    text("""
        SELECT id, attempt_id, kind, at, silent_s FROM lease_events
         WHERE run_id = :run_id AND id > :after ORDER BY id LIMIT :limit
    """),
)
# Index ix_run_transitions_run_id. Entries are written under the lock of the run's row: their ids are in order of time.
TRANSITIONS = RunListing(
    Listing("transitions", TransitionView, id=Int8),
    text("""
        SELECT id, source, target, at, actor, actor_name, reason, message, attempt_id FROM run_transitions
         WHERE run_id = :run_id AND id > :after ORDER BY id LIMIT :limit
    """),
)


# Index uq_attempts_run_id_number, then the logs' primary key.
_LOGS = Listing("logs", LogChunk, number=Int4, process=ProcessName, seq=Int4)
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
    connection: AsyncConnection, run_id: UUID, *, process: str | None, cursor: str | None, limit: int
) -> Page[LogChunk]:
    """Return a page of the output of the processes of a run, in the order of attempts and processes.

    Raises:
        ProblemError: `not_found`.
    """
    number, after_process, seq = _LOGS.after(cursor, 0, "", -1)
    await get_run(connection, run_id)
    after = {"number": number, "after_process": after_process, "seq": seq}
    return await _LOGS.page(connection, _LIST_LOGS, limit, run_id=run_id, process=process, **after)
