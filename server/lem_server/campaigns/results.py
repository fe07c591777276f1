"""The results of a campaign: each experiment over its cycles, and why a cycle has none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.ids import IdKind, format_id
from lem_domain.results import RunResult
from lem_domain.states import RunState
from lem_domain.wire.campaigns import CampaignResults, ExperimentResults, RunOutcome
from lem_server.aggregation.summaries import summarise_experiment
from lem_server.campaigns import result_queries, service
from lem_server.campaigns.result_queries import OutcomePlace, OutcomeRow

ROWS_AT_ONCE = 200
"""Runs per statement, each with an aggregate of some kB; only one experiment's aggregates are kept at a time."""

_ENDED_WITHOUT = (RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED)
"""A run that was queued again still carries the reason and message of its last attempt."""


async def campaign_results(engine: AsyncEngine, campaign_id: UUID) -> CampaignResults:
    """Results of the runs aggregated so far.

    Raises:
        ProblemError: `not_found`.
    """
    campaign = await service.get_campaign(engine, campaign_id)
    experiments: list[ExperimentResults] = []
    outcomes: list[tuple[RunOutcome, RunResult | None]] = []
    current: OutcomeRow | None = None
    async for row in _rows(engine, campaign_id):
        if current is not None and current.experiment_id != row.experiment_id:
            experiments.append(_experiment(current, outcomes))
            outcomes = []
        current = row
        outcomes.append(_outcome(row))
    if current is not None:
        experiments.append(_experiment(current, outcomes))
    return CampaignResults(
        campaign_id=campaign.id,
        name=campaign.name,
        state=campaign.state,
        runs=campaign.runs,
        experiments=tuple(experiments),
    )


async def _rows(engine: AsyncEngine, campaign_id: UUID) -> AsyncIterator[OutcomeRow]:
    """Every run in order; no statement or snapshot lasts longer than one page."""
    after: OutcomePlace | None = None
    while True:
        async with engine.connect() as connection:
            page = await result_queries.list_outcomes(connection, campaign_id, after=after, limit=ROWS_AT_ONCE)
        for row in page:
            yield row
        if len(page) < ROWS_AT_ONCE:
            return
        after = OutcomePlace(page[-1].ordinal, page[-1].cycle)


def _outcome(row: OutcomeRow) -> tuple[RunOutcome, RunResult | None]:
    result = None if row.result is None else RunResult.model_validate_json(row.result)
    outcome = RunOutcome(
        run_id=format_id(IdKind.RUN, row.run_id),
        cycle=row.cycle,
        state=RunState(row.state),
        verdict=None if result is None else result.verdict,
        reason=None if result is not None else _reason(row),
        message=row.message if result is None and row.state in _ENDED_WITHOUT else None,
    )
    return outcome, result


def _reason(row: OutcomeRow) -> str:
    return row.reason if row.reason is not None and row.state in _ENDED_WITHOUT else row.state


def _experiment(row: OutcomeRow, outcomes: list[tuple[RunOutcome, RunResult | None]]) -> ExperimentResults:
    summary = summarise_experiment([result for _, result in outcomes if result is not None])
    return ExperimentResults(
        experiment_id=format_id(IdKind.EXPERIMENT, row.experiment_id),
        display_name=row.display_name,
        varied=row.varied,
        outcomes=tuple(outcome for outcome, _ in outcomes),
        verdict=summary.verdict,
        energy_method=summary.energy_method,
        energy_includes=summary.energy_includes,
        findings=summary.findings,
        metrics=summary.metrics,
    )
