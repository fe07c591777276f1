"""SQL of a campaign's results: every run in order, with its latest aggregate."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection


class OutcomePosition(NamedTuple):
    """The sort key of the results of a campaign."""

    ordinal: int
    cycle: int


class OutcomeRow(NamedTuple):
    """A run, its experiment, and the text of its aggregate or None.

    `work` is equal for experiments that must generate the same tokens on every backend: greedy decoding in float32 with
    the same model, prompts and lengths. It is None for other experiments.
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
# run, so a page needs at most as many experiments as rows, plus one whose runs were all on the previous page. Without
# the inner limits each page would sort all runs.
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
    connection: AsyncConnection, campaign_id: UUID, *, after: OutcomePosition | None, limit: int
) -> list[OutcomeRow]:
    """Return one page of a campaign's runs, in the order of experiments and cycles."""
    after = after or OutcomePosition(0, 0)
    rows = await connection.execute(
        _OUTCOMES, {"campaign_id": campaign_id, "ordinal": after.ordinal, "cycle": after.cycle, "limit": limit}
    )
    return [OutcomeRow(*row) for row in rows]
