"""SQL of decisions: experiments with their runs, results, and what was in force when they were measured."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_server.database.rows import read_all, read_one

ROWS_PER_PAGE = 100
"""Each has an aggregate of some kB and an environment; only one page is in memory at a time."""


class MeasuredRow(NamedTuple):
    """A run with its experiment and the text of its aggregate; those without one are not listed."""

    ordinal: int
    cycle: int
    experiment_id: UUID
    campaign_id: UUID
    display_name: str
    config: dict[str, Any]
    config_hash: str
    varied: dict[str, Any]
    run_id: UUID
    devices: list[str]
    started_at: datetime | None
    effective_config: dict[str, Any] | None
    environment: dict[str, Any] | None
    result: str | None


# Indexes uq_experiments_campaign_id_ordinal, uq_runs_experiment_id_cycle, ix_aggregates_run_id.
_MEASURED = text("""
    SELECT e.ordinal, coalesce(r.cycle, 0) AS cycle, e.id AS experiment_id, e.campaign_id, e.display_name, e.config,
           e.config_hash, e.varied, r.id AS run_id, coalesce(a.devices, '{}') AS devices, a.started_at,
           a.effective_config, a.environment, latest.result
      FROM experiments e
      JOIN runs r ON r.experiment_id = e.id
      LEFT JOIN attempts a ON a.id = r.current_attempt
      LEFT JOIN LATERAL (
           SELECT g.result::text AS result
             FROM aggregates g
            WHERE g.run_id = r.id AND g.attempt_id = r.current_attempt AND r.state = 'aggregated'
              AND (CAST(:method AS text) IS NULL OR g.method = :method)
            ORDER BY g.method = :default DESC, g.created_at DESC
            LIMIT 1
           ) latest ON true
     WHERE e.campaign_id = :campaign_id AND (CAST(:experiment_id AS uuid) IS NULL OR e.id = :experiment_id)
       AND (e.ordinal, r.cycle) > (:ordinal, :cycle)
     ORDER BY e.ordinal, r.cycle
     LIMIT :limit
""")


async def measured_page(
    connection: AsyncConnection,
    campaign_id: UUID,
    experiment_id: UUID | None,
    method: MethodVersion | None,
    after: tuple[int, int],
) -> list[MeasuredRow]:
    """Return the runs of a campaign, or of one experiment, by experiment and cycle, from the first above `after`."""
    return await read_all(
        connection,
        _MEASURED,
        MeasuredRow,
        campaign_id=campaign_id,
        experiment_id=experiment_id,
        method=method,
        default=DEFAULT_METHOD,
        ordinal=after[0],
        cycle=after[1],
        limit=ROWS_PER_PAGE,
    )


class DecisionScope(NamedTuple):
    """A campaign, or one experiment of it, and how many of its runs may still be measured."""

    campaign_id: UUID
    name: str
    open_runs: int


_OPEN = "state IN ('queued', 'initialised', 'running')"
_CAMPAIGN = text(f"""
    SELECT c.id AS campaign_id, c.name,
           (SELECT count(*) FROM runs r WHERE r.campaign_id = c.id AND r.{_OPEN}) AS open_runs
      FROM campaigns c WHERE c.id = :id
""")  # noqa: S608 - only a constant is inserted
_EXPERIMENT = text(f"""
    SELECT c.id AS campaign_id, c.name,
           (SELECT count(*) FROM runs r WHERE r.experiment_id = e.id AND r.{_OPEN}) AS open_runs
      FROM experiments e JOIN campaigns c ON c.id = e.campaign_id WHERE e.id = :id
""")  # noqa: S608


async def campaign_scope(connection: AsyncConnection, campaign_id: UUID) -> DecisionScope | None:
    """Return a campaign; None if there is none."""
    return await read_one(connection, _CAMPAIGN, DecisionScope, id=campaign_id)


async def experiment_scope(connection: AsyncConnection, experiment_id: UUID) -> DecisionScope | None:
    """Return the campaign of an experiment, with the open runs of the experiment; None if there is none."""
    return await read_one(connection, _EXPERIMENT, DecisionScope, id=experiment_id)
