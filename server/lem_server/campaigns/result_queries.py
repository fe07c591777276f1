"""SQL of a campaign's results: every run in order, with its latest aggregate."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class OutcomePlace(NamedTuple):
    """A run's place among the results of its campaign."""

    ordinal: int
    cycle: int


class OutcomeRow(NamedTuple):
    """A run, the experiment it belongs to, and the text of its aggregate where there is one.

    `work` is the same for experiments that must generate the same tokens whatever their backend: greedy, in float32,
    with one model, prompts and lengths. None for others.
    """

    ordinal: int
    cycle: int
    experiment_id: UUID
    display_name: str
    varied: dict[str, Any]
    run_id: UUID
    state: str
    reason: str | None
    message: str | None
    work: str | None
    result: str | None


# Indexes uq_experiments_campaign_id_ordinal, uq_runs_experiment_id_cycle, ix_aggregates_run_id. Every experiment has a
# run, so a page needs no more experiments than it has rows, and one whose runs were all on the page before: without the
# inner limits each page would sort all runs.
_OUTCOMES = text("""
    SELECT e.ordinal, r.cycle, e.id, e.display_name, e.varied, r.id, r.state, r.reason, r.message, e.work, latest.result
      FROM (SELECT id, ordinal, display_name, varied,
                   CASE WHEN config ->> 'precision' = 'float32' AND (config #>> '{decoding,temperature}')::float8 = 0
                        THEN md5(jsonb_build_array(config -> 'model', config -> 'prompts', config -> 'input',
                                                   config -> 'output', config -> 'decoding')::text)
                   END AS work
              FROM experiments
             WHERE campaign_id = :campaign_id AND ordinal >= :ordinal
             ORDER BY ordinal
             LIMIT :limit + 1
           ) e
     CROSS JOIN LATERAL (
           SELECT id, cycle, state, reason, message, current_attempt
             FROM runs
            WHERE experiment_id = e.id AND cycle > CASE WHEN e.ordinal = :ordinal THEN :cycle ELSE 0 END
            ORDER BY cycle
            LIMIT :limit
           ) r
      LEFT JOIN LATERAL (
           SELECT a.result::text AS result
             FROM aggregates a
            WHERE a.run_id = r.id AND a.attempt_id = r.current_attempt AND r.state = 'aggregated'
            ORDER BY a.created_at DESC
            LIMIT 1
           ) latest ON true
     ORDER BY e.ordinal, r.cycle
     LIMIT :limit
""")


async def list_outcomes(
    connection: AsyncConnection, campaign_id: UUID, *, after: OutcomePlace | None, limit: int
) -> list[OutcomeRow]:
    """One page of a campaign's runs: experiment by experiment, cycle by cycle."""
    after = after or OutcomePlace(0, 0)
    rows = await connection.execute(
        _OUTCOMES, {"campaign_id": campaign_id, "ordinal": after.ordinal, "cycle": after.cycle, "limit": limit}
    )
    return [OutcomeRow(*row) for row in rows]
