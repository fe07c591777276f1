"""SQL that reads a campaign as rows of named fields, page by page; no statement holds a snapshot over another.

Rows come as the JSON text that PostgreSQL makes of them, so that a column which is added later is in them by itself.
What belongs to this database alone (numbers of log entries, what it says of imports) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

EXPERIMENTS_AT_ONCE = 32
RUNS_AT_ONCE = 100
LOGS_AT_ONCE = 16
"""A piece of log is up to 65,536 characters."""
EVENTS_AT_ONCE = 500


class Extent(NamedTuple):
    """How much of a campaign there is, and whether it is at rest."""

    name: str
    open_runs: int
    experiments: int
    runs: int
    attempts: int
    chunks: int
    evidence_bytes: int


class Keyed(NamedTuple):
    """A row's text and what the next page begins after."""

    place: int
    row: str


class RunRow(NamedTuple):
    """A run's place, id and text."""

    place: int
    id: UUID
    row: str


class AttemptRow(NamedTuple):
    """An attempt's place (its run's position, its number), ids and text."""

    position: int
    number: int
    id: UUID
    run_id: UUID
    row: str


class AggregateRow(NamedTuple):
    """An aggregate's key, its row without the result, and the result byte for byte."""

    key: str
    row: str
    result: str


# Index ix_runs_campaign_id_state, the attempts' run and number, the chunks' primary key; bodies are out of line.
_EXTENT = text("""
    SELECT c.name, work.open, (SELECT count(*) FROM experiments e WHERE e.campaign_id = c.id), work.runs,
           tries.attempts, coalesce(held.chunks, 0), coalesce(held.bytes, 0)
      FROM campaigns c
     CROSS JOIN LATERAL (
           SELECT count(*) AS runs, count(*) FILTER (WHERE r.state IN ('queued', 'initialised', 'running')) AS open
             FROM runs r WHERE r.campaign_id = c.id) work
     CROSS JOIN LATERAL (
           SELECT count(*) AS attempts FROM attempts a JOIN runs r ON r.id = a.run_id WHERE r.campaign_id = c.id) tries
     CROSS JOIN LATERAL (
           SELECT count(*) AS chunks, sum(k.bytes) AS bytes
             FROM chunks k JOIN attempts a ON a.id = k.attempt_id JOIN runs r ON r.id = a.run_id
            WHERE r.campaign_id = c.id) held
     WHERE c.id = :id
""")


async def extent(connection: AsyncConnection, campaign_id: UUID) -> Extent | None:
    """How much there is; None when there is no such campaign."""
    row = (await connection.execute(_EXTENT, {"id": campaign_id})).one_or_none()
    return None if row is None else Extent(row[0], *map(int, row[1:]))


# Every change of a run's state adds an entry to the log. Index ix_run_transitions_campaign_id.
_STANDING = text("""
    SELECT c.state, (SELECT count(*) FROM run_transitions t WHERE t.campaign_id = c.id),
           (SELECT count(*) FROM aggregates g JOIN runs r ON r.id = g.run_id WHERE r.campaign_id = c.id)
      FROM campaigns c WHERE c.id = :id
""")


async def standing(connection: AsyncConnection, campaign_id: UUID) -> tuple[str, int, int] | None:
    """What is another as soon as anything happened to the campaign; None when there is none."""
    row = (await connection.execute(_STANDING, {"id": campaign_id})).one_or_none()
    return None if row is None else (row[0], row[1], row[2])


async def campaign_row(connection: AsyncConnection, campaign_id: UUID) -> str:
    """The campaign itself."""
    found: str = (
        await connection.execute(
            text("SELECT CAST(to_jsonb(c) - 'imported' AS text) FROM campaigns c WHERE id = :id"), {"id": campaign_id}
        )
    ).scalar_one()
    return found


class Needed(NamedTuple):
    """What some experiment names of what the server holds: an uploaded set or a built-in one, a trace of arrivals."""

    dataset: str | None
    builtin: str | None
    trace: str | None


_NEEDED = text("""
    SELECT DISTINCT config -> 'prompts' ->> 'dataset', config -> 'prompts' ->> 'builtin',
           config -> 'traffic' ->> 'trace'
      FROM experiments WHERE campaign_id = :id ORDER BY 1, 2, 3
""")


async def needed(connection: AsyncConnection, campaign_id: UUID) -> list[Needed]:
    """The sets of prompts and the traces that the campaign's experiments name."""
    return [Needed(*row) for row in await connection.execute(_NEEDED, {"id": campaign_id})]


# Host and boot of a worker are nobody's business elsewhere.
_WORKERS = text("""
    SELECT CAST(jsonb_build_object('id', w.id, 'name', w.name, 'backend', w.backend, 'devices', w.devices,
                                   'versions', w.versions, 'labels', w.labels) AS text)
      FROM workers w
     WHERE w.id IN (SELECT a.worker_id FROM attempts a JOIN runs r ON r.id = a.run_id WHERE r.campaign_id = :id)
     ORDER BY w.id
""")


async def worker_rows(connection: AsyncConnection, campaign_id: UUID) -> list[str]:
    """The workers that tried any of its runs."""
    return list((await connection.execute(_WORKERS, {"id": campaign_id})).scalars())


# Index uq_experiments_campaign_id_ordinal.
_EXPERIMENTS = text("""
    SELECT ordinal, CAST(to_jsonb(e) AS text) FROM experiments e
     WHERE campaign_id = :id AND ordinal > :after ORDER BY ordinal LIMIT :limit
""")


async def experiment_rows(connection: AsyncConnection, campaign_id: UUID, *, after: int) -> list[Keyed]:
    """One page of experiments."""
    place = {"id": campaign_id, "after": after, "limit": EXPERIMENTS_AT_ONCE}
    return [Keyed(*row) for row in await connection.execute(_EXPERIMENTS, place)]


# Index uq_runs_campaign_id_position.
_RUNS = text("""
    SELECT position, id, CAST(to_jsonb(r) - 'imported' AS text) FROM runs r
     WHERE campaign_id = :id AND position > :after ORDER BY position LIMIT :limit
""")


async def run_rows(connection: AsyncConnection, campaign_id: UUID, *, after: int) -> list[RunRow]:
    """One page of runs."""
    place = {"id": campaign_id, "after": after, "limit": RUNS_AT_ONCE}
    return [RunRow(*row) for row in await connection.execute(_RUNS, place)]


# Index ix_run_transitions_run_id.
_TRANSITIONS = text("""
    SELECT CAST(to_jsonb(t) - 'id' - 'xact' - 'imported' AS text)
      FROM run_transitions t WHERE run_id = ANY(:ids) ORDER BY run_id, id
""").bindparams(bindparam("ids", type_=ARRAY(Uuid)))


async def transition_rows(connection: AsyncConnection, run_ids: Sequence[UUID]) -> list[str]:
    """The whole log of some runs, run by run."""
    return list((await connection.execute(_TRANSITIONS, {"ids": list(run_ids)})).scalars())


# Indexes uq_runs_campaign_id_position and uq_attempts_run_id_number. One at a time: an environment may be a megabyte.
_ATTEMPT = text("""
    SELECT r.position, a.number, a.id, a.run_id, CAST(to_jsonb(a) AS text)
      FROM runs r JOIN attempts a ON a.run_id = r.id
     WHERE r.campaign_id = :id AND r.position >= :position AND (r.position, a.number) > (:position, :number)
     ORDER BY r.position, a.number LIMIT 1
""")


async def next_attempt(
    connection: AsyncConnection, campaign_id: UUID, *, position: int, number: int
) -> AttemptRow | None:
    """The attempt that comes after another in the order of the campaign."""
    place = {"id": campaign_id, "position": position, "number": number}
    row = (await connection.execute(_ATTEMPT, place)).one_or_none()
    return None if row is None else AttemptRow(*row)


_PROCESS = text("""
    SELECT process, CAST(to_jsonb(p) AS text) FROM process_results p
     WHERE attempt_id = :id AND process > :after ORDER BY process LIMIT 1
""")


async def next_process(connection: AsyncConnection, attempt_id: UUID, *, after: str) -> tuple[str, str] | None:
    """The completion marker of the process that comes after another."""
    row = (await connection.execute(_PROCESS, {"id": attempt_id, "after": after})).one_or_none()
    return None if row is None else (row[0], row[1])


# Index ix_lease_events_run_id.
_LEASE_EVENTS = text("""
    SELECT id, CAST(to_jsonb(l) - 'id' AS text) FROM lease_events l
     WHERE run_id = :run_id AND id > :after AND attempt_id = :id ORDER BY id LIMIT :limit
""")


async def lease_event_rows(connection: AsyncConnection, run_id: UUID, attempt_id: UUID, *, after: int) -> list[Keyed]:
    """One page of what happened to an attempt's lease."""
    place = {"run_id": run_id, "id": attempt_id, "after": after, "limit": EVENTS_AT_ONCE}
    return [Keyed(*row) for row in await connection.execute(_LEASE_EVENTS, place)]


class LogRow(NamedTuple):
    """A piece of log."""

    process: str
    seq: int
    row: str


_LOGS = text("""
    SELECT process, seq, CAST(to_jsonb(l) AS text) FROM logs l
     WHERE attempt_id = :id AND (process, seq) > (:process, :seq) ORDER BY process, seq LIMIT :limit
""")


async def log_rows(connection: AsyncConnection, attempt_id: UUID, *, process: str, seq: int) -> list[LogRow]:
    """One page of what an attempt's processes wrote."""
    place = {"id": attempt_id, "process": process, "seq": seq, "limit": LOGS_AT_ONCE}
    return [LogRow(*row) for row in await connection.execute(_LOGS, place)]


_AGGREGATE = text("""
    SELECT encode(key, 'hex'), CAST(to_jsonb(g) - 'result' AS text), CAST(result AS text)
      FROM aggregates g WHERE attempt_id = :id AND key > :after ORDER BY key LIMIT 1
""")


async def next_aggregate(connection: AsyncConnection, attempt_id: UUID, *, after: bytes) -> AggregateRow | None:
    """The aggregate of an attempt whose key comes after another."""
    row = (await connection.execute(_AGGREGATE, {"id": attempt_id, "after": after})).one_or_none()
    return None if row is None else AggregateRow(*row)
