"""The results of a campaign: each experiment over its cycles, and why a cycle has no result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.ids import IdKind, format_id
from lem_domain.results.findings import Finding
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_domain.results.run import RunResult
from lem_domain.states import RunState
from lem_domain.wire.campaigns import CampaignResults, ExperimentResults, RunOutcome
from lem_server.aggregation.summaries import CycleTally
from lem_server.campaigns.reading import get_campaign
from lem_server.database.rows import read_all

RUNS_PER_PAGE = 200
"""Each has an aggregate of some kB; only the aggregates of one page are in memory at a time."""
_END = b"]}"
"""`experiments` is the last field of `CampaignResults`."""

_ENDED_WITHOUT = (RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED)
"""Only these states show a reason and a message: a run that was queued again still has those of its last attempt."""


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


async def campaign_results(
    engine: AsyncEngine, campaign_id: UUID, method: MethodVersion | None = None
) -> AsyncIterator[bytes]:
    """Return the JSON of `CampaignResults` over the runs aggregated so far, one experiment at a time.

    Without a method each run's result is the one that `GET /runs/{id}/aggregate` returns.

    Raises:
        ProblemError: `not_found`, before the first piece.
    """
    async with engine.connect() as connection:
        campaign = await get_campaign(connection, campaign_id)
    whole = CampaignResults(
        campaign_id=campaign.id, name=campaign.name, state=campaign.state, runs=campaign.runs, experiments=()
    )
    return _pieces(whole.model_dump_json().encode(), experiment_results(engine, campaign_id, method))


async def _pieces(whole: bytes, experiments: AsyncIterator[ExperimentResults]) -> AsyncIterator[bytes]:
    yield whole.removesuffix(_END)
    comma = b""
    async for experiment in experiments:
        yield comma + experiment.model_dump_json().encode()
        comma = b","
    yield _END


async def experiment_results(
    engine: AsyncEngine, campaign_id: UUID, method: MethodVersion | None
) -> AsyncIterator[ExperimentResults]:
    """Yield each experiment over its cycles, from the runs aggregated so far."""
    current: _Experiment | None = None
    first: dict[str, _Work] = {}
    async for page in _pages(engine, campaign_id, method):
        # In a thread: parsing a page of aggregates takes a tenth of a second.
        for row, result in await asyncio.to_thread(_read, page):
            if current is None or current.row.experiment_id != row.experiment_id:
                if current is not None:
                    yield current.results(first)
                current = _Experiment(row)
            current.add(row, result)
    if current is not None:
        yield current.results(first)


# Indexes uq_experiments_campaign_id_ordinal, uq_runs_experiment_id_cycle, ix_aggregates_run_id. Every experiment has a
# run, so a page needs at most as many experiments as rows, plus one whose runs were all on the previous page. Without
# the inner limits each page would sort all runs.
_OUTCOMES = text("""
    SELECT e.ordinal, r.cycle, e.id AS experiment_id, e.display_name, e.varied, r.id AS run_id, r.state, r.reason,
           r.message, e.work, latest.result
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
              AND (CAST(:method AS text) IS NULL OR a.method = :method)
            ORDER BY a.method = :default DESC, a.created_at DESC
            LIMIT 1
           ) latest ON true
     ORDER BY e.ordinal, r.cycle
     LIMIT :limit
""")


async def _pages(
    engine: AsyncEngine, campaign_id: UUID, method: MethodVersion | None
) -> AsyncIterator[list[OutcomeRow]]:
    """Yield every run in the order of experiments and cycles; no statement or snapshot lasts longer than one page."""
    after = {"ordinal": 0, "cycle": 0}
    which = {"campaign_id": campaign_id, "method": method, "default": DEFAULT_METHOD, "limit": RUNS_PER_PAGE}
    while True:
        async with engine.connect() as connection:
            page = await read_all(connection, _OUTCOMES, OutcomeRow, **which, **after)
        yield page
        if len(page) < RUNS_PER_PAGE:
            return
        after = {"ordinal": page[-1].ordinal, "cycle": page[-1].cycle}


def _read(page: list[OutcomeRow]) -> list[tuple[OutcomeRow, RunResult | None]]:
    """Parse the aggregates, and drop their texts."""
    return [
        (row._replace(result=None), None if row.result is None else RunResult.model_validate_json(row.result))
        for row in page
    ]


def _reason(row: OutcomeRow) -> str:
    return row.reason if row.reason is not None and row.state in _ENDED_WITHOUT else row.state


class _Work(NamedTuple):
    """The first experiment with a work (see `OutcomeRow.work`), and the digest of its generated tokens."""

    name: str
    output: str


class _Experiment:
    """Collects the cycles of an experiment; of each result only the figures are kept."""

    def __init__(self, row: OutcomeRow) -> None:
        self.row = row
        self._outcomes: list[RunOutcome] = []
        self._tally = CycleTally()

    def add(self, row: OutcomeRow, result: RunResult | None) -> None:
        """Add the next cycle."""
        if result is not None:
            self._tally.add(result)
        self._outcomes.append(
            RunOutcome(
                run_id=format_id(IdKind.RUN, row.run_id),
                cycle=row.cycle,
                state=RunState(row.state),
                verdict=None if result is None else result.verdict,
                reason=None if result is not None else _reason(row),
                message=row.message if result is None and row.state in _ENDED_WITHOUT else None,
            )
        )

    def results(self, first: dict[str, _Work]) -> ExperimentResults:
        """Return the results after the last cycle. `first` has each work's first experiment; this one may be added."""
        others: tuple[Finding, ...] = ()
        if self.row.work is not None and self._tally.output is not None:
            other = first.setdefault(self.row.work, _Work(self.row.display_name, self._tally.output))
            others = self._tally.differs_from(other.name, other.output)
        return ExperimentResults(
            experiment_id=format_id(IdKind.EXPERIMENT, self.row.experiment_id),
            display_name=self.row.display_name,
            varied=self.row.varied,
            outcomes=tuple(self._outcomes),
            **self._tally.summary(others)._asdict(),
        )
