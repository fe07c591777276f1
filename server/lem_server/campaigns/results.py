"""The results of a campaign: each experiment over its cycles, and why a cycle has no result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.ids import IdKind, format_id
from lem_domain.results.findings import Finding
from lem_domain.results.run import RunResult
from lem_domain.states import RunState
from lem_domain.wire.campaigns import CampaignResults, ExperimentResults, RunOutcome
from lem_server.aggregation.summaries import CycleTally
from lem_server.campaigns import result_queries
from lem_server.campaigns.reading import get_campaign
from lem_server.campaigns.result_queries import OutcomePosition, OutcomeRow

RUNS_PER_PAGE = 200
"""Each has an aggregate of some kB; only the aggregates of one page are in memory at a time."""
_END = b"]}"
"""`experiments` is the last field of `CampaignResults`."""

_ENDED_WITHOUT = (RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED)
"""Only these states show a reason and a message: a run that was queued again still has those of its last attempt."""


async def campaign_results(engine: AsyncEngine, campaign_id: UUID) -> AsyncIterator[bytes]:
    """Return the JSON of `CampaignResults` over the runs aggregated so far, one experiment at a time.

    Raises:
        ProblemError: `not_found`, before the first piece.
    """
    async with engine.connect() as connection:
        campaign = await get_campaign(connection, campaign_id)
    whole = CampaignResults(
        campaign_id=campaign.id, name=campaign.name, state=campaign.state, runs=campaign.runs, experiments=()
    )
    return _pieces(whole.model_dump_json().encode(), _experiments(engine, campaign_id))


async def _pieces(whole: bytes, experiments: AsyncIterator[ExperimentResults]) -> AsyncIterator[bytes]:
    yield whole.removesuffix(_END)
    comma = b""
    async for experiment in experiments:
        yield comma + experiment.model_dump_json().encode()
        comma = b","
    yield _END


async def _experiments(engine: AsyncEngine, campaign_id: UUID) -> AsyncIterator[ExperimentResults]:
    current: _Experiment | None = None
    first: dict[str, _Work] = {}
    async for page in _pages(engine, campaign_id):
        # In a thread: parsing a page of aggregates takes a tenth of a second.
        for row, result in await asyncio.to_thread(_read, page):
            if current is None or current.row.experiment_id != row.experiment_id:
                if current is not None:
                    yield current.results(first)
                current = _Experiment(row)
            current.add(row, result)
    if current is not None:
        yield current.results(first)


async def _pages(engine: AsyncEngine, campaign_id: UUID) -> AsyncIterator[list[OutcomeRow]]:
    """Yield every run in order; no statement or snapshot lasts longer than one page."""
    after: OutcomePosition | None = None
    while True:
        async with engine.connect() as connection:
            page = await result_queries.list_outcomes(connection, campaign_id, after=after, limit=RUNS_PER_PAGE)
        yield page
        if len(page) < RUNS_PER_PAGE:
            return
        after = OutcomePosition(page[-1].ordinal, page[-1].cycle)


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
        summary = self._tally.summary(others)
        return ExperimentResults(
            experiment_id=format_id(IdKind.EXPERIMENT, self.row.experiment_id),
            display_name=self.row.display_name,
            varied=self.row.varied,
            outcomes=tuple(self._outcomes),
            verdict=summary.verdict,
            energy_method=summary.energy_method,
            energy_includes=summary.energy_includes,
            findings=summary.findings,
            metrics=summary.metrics,
        )
