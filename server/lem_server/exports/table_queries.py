"""SQL of the exported tables: the runs of a campaign page by page, each page in a separate transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.evidence.streams import StreamName
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_server.database.rows import read_all, read_one

RUNS_PER_PAGE = 100
"""Each may have a result of some kB."""


class CampaignFacts(NamedTuple):
    """A campaign's name, and how many of its runs are queued or live."""

    name: str
    open_runs: int


# Index ix_runs_campaign_id_state.
_CAMPAIGN = text("""
    SELECT name, (SELECT count(*) FROM runs r
                   WHERE r.campaign_id = c.id AND r.state IN ('queued', 'initialised', 'running')) AS open_runs
      FROM campaigns c WHERE id = :id
""")


async def campaign_facts(connection: AsyncConnection, campaign_id: UUID) -> CampaignFacts | None:
    """Return the facts of a campaign; None when there is no such campaign."""
    return await read_one(connection, _CAMPAIGN, CampaignFacts, id=campaign_id)


class SweptKey(NamedTuple):
    """A key that the campaign's experiments vary, with the JSON types of its values without null."""

    key: str
    types: list[str]
    whole: bool
    """Whether all its numbers are integers of at most 18 digits."""


# Index uq_experiments_campaign_id_ordinal.
_SWEPT = text("""
    SELECT v.key, coalesce(array_agg(DISTINCT jsonb_typeof(v.value))
                           FILTER (WHERE jsonb_typeof(v.value) <> 'null'), '{}') AS types,
           bool_and(jsonb_typeof(v.value) <> 'number' OR v.value::text ~ '^-?[0-9]{1,18}$') AS whole
      FROM experiments e CROSS JOIN LATERAL jsonb_each(e.varied) v
     WHERE e.campaign_id = :id
     GROUP BY v.key ORDER BY v.key
""")


async def swept_keys(connection: AsyncConnection, campaign_id: UUID) -> list[SweptKey]:
    """Return the keys that the campaign varies, in alphabetical order."""
    return await read_all(connection, _SWEPT, SweptKey, id=campaign_id)


class MissingStream(NamedTuple):
    """A stream of a run of which fewer chunks are stored than its manifest lists."""

    run_id: UUID
    process: str
    promised: int
    stored: int


# Indexes uq_runs_campaign_id_position and pk_chunks.
_MISSING = text("""
    SELECT r.id AS run_id, m ->> 'process' AS process, (m ->> 'chunks')::int AS promised, held.chunks AS stored
      FROM runs r
      JOIN attempts a ON a.id = r.current_attempt AND r.state <> 'queued'
     CROSS JOIN LATERAL jsonb_array_elements(a.manifest) m
     CROSS JOIN LATERAL (
           SELECT count(*) AS chunks FROM chunks k
            WHERE k.attempt_id = a.id AND k.process = m ->> 'process' AND k.stream = :stream) held
     WHERE r.campaign_id = :id AND m ->> 'stream' = :stream AND held.chunks < (m ->> 'chunks')::int
     ORDER BY r.position, process LIMIT 1
""")


async def missing_stream(connection: AsyncConnection, campaign_id: UUID, stream: StreamName) -> MissingStream | None:
    """Return the first stream of which chunks are missing; None if none is."""
    return await read_one(connection, _MISSING, MissingStream, id=campaign_id, stream=stream.value)


class TableRun(NamedTuple):
    """A run with its experiment, its current attempt, and what its result states."""

    ordinal: int
    cycle: int
    experiment_id: UUID
    display_name: str
    varied: dict[str, Any]
    config_hash: str
    backend: str
    model: str
    run_id: UUID
    state: str
    reason: str | None
    message: str | None
    attempt_id: UUID | None
    attempts: int
    started_at: datetime | None
    ended_at: datetime | None
    devices: list[dict[str, Any]]
    clock: dict[str, Any] | None
    """The worker's reading of both clocks, as it sent it."""
    verdict: str | None
    begin_ns: int | None
    """The window's begin on the worker's clock."""
    result: str | None
    """The whole result as JSON, where it was asked for."""


# Indexes uq_experiments_campaign_id_ordinal, uq_runs_experiment_id_cycle, pk_attempts, ix_aggregates_run_id. The inner
# limits keep a page from sorting all runs. A run that was queued again keeps its last attempt until it is claimed; that
# attempt's evidence is not the run's.
_RUNS = text("""
    SELECT e.ordinal, r.cycle, e.id AS experiment_id, e.display_name, e.varied, e.config_hash, e.backend, e.model,
           r.id AS run_id, r.state, r.reason, r.message, a.id AS attempt_id, r.attempts,
           a.started_at, a.ended_at, coalesce(a.device_details, '[]') AS devices, a.environment -> 'clock' AS clock,
           latest.verdict, latest.begin_ns, latest.result
      FROM (SELECT id, ordinal, display_name, varied, config_hash, config ->> 'backend' AS backend,
                   config #>> '{model,id}' AS model
              FROM experiments
             WHERE campaign_id = :campaign_id AND ordinal >= :ordinal
             ORDER BY ordinal
             LIMIT :limit + 1
           ) e
     CROSS JOIN LATERAL (
           SELECT id, cycle, state, reason, message, current_attempt, attempts
             FROM runs
            WHERE experiment_id = e.id AND cycle > CASE WHEN e.ordinal = :ordinal THEN :cycle ELSE 0 END
            ORDER BY cycle
            LIMIT :limit
           ) r
      LEFT JOIN attempts a ON a.id = r.current_attempt AND r.state <> 'queued'
      LEFT JOIN LATERAL (
           SELECT g.result ->> 'verdict' AS verdict, (g.result #>> '{window,begin_ns}')::bigint AS begin_ns,
                  CASE WHEN :whole THEN g.result::text END AS result
             FROM aggregates g
            WHERE g.run_id = r.id AND g.attempt_id = r.current_attempt AND r.state = 'aggregated'
              AND (CAST(:method AS text) IS NULL OR g.method = :method)
            ORDER BY g.method = :default DESC, g.created_at DESC
            LIMIT 1
           ) latest ON true
     ORDER BY e.ordinal, r.cycle
     LIMIT :limit
""")


async def run_pages(
    engine: AsyncEngine, campaign_id: UUID, method: MethodVersion | None, *, with_result: bool
) -> AsyncIterator[list[TableRun]]:
    """Yield every run in the order of experiments and cycles."""
    which = {"campaign_id": campaign_id, "method": method, "default": DEFAULT_METHOD, "whole": with_result}
    after = {"ordinal": 0, "cycle": 0}
    while True:
        async with engine.connect() as connection:
            page = await read_all(connection, _RUNS, TableRun, limit=RUNS_PER_PAGE, **which, **after)
        if page:
            yield page
        if len(page) < RUNS_PER_PAGE:
            return
        after = {"ordinal": page[-1].ordinal, "cycle": page[-1].cycle}


async def config_hash(connection: AsyncConnection, experiment_id: UUID) -> str:
    """Return the digest of an experiment's configuration."""
    found = await connection.execute(text("SELECT config_hash FROM experiments WHERE id = :id"), {"id": experiment_id})
    config: str = found.scalar_one()
    return config
