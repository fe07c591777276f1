"""Reads what decisions know of experiments from their stored results."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id, parse_id
from lem_domain.results.method import MethodVersion
from lem_domain.results.metrics import Metric
from lem_domain.results.run import RunResult
from lem_server.decisions import queries
from lem_server.decisions.facts import CycleFacts, ExperimentFacts, cycle_facts
from lem_server.http.problems import ProblemError, not_found

MOST_EXPERIMENTS = 1000
"""Of one side of a comparison; its facts are a few kB per cycle."""


async def find_scope(engine: AsyncEngine, reference: str) -> queries.DecisionScope:
    """Return the campaign, or the one of the experiment, with this id.

    Raises:
        ProblemError: `not_found`.
    """
    kind = IdKind.EXPERIMENT if reference.startswith(IdKind.EXPERIMENT.value) else IdKind.CAMPAIGN
    identifier = parse_id(kind, reference)
    find = queries.experiment_scope if kind is IdKind.EXPERIMENT else queries.campaign_scope
    async with engine.connect() as connection:
        found = await find(connection, identifier)
    if found is None:
        raise not_found(kind, identifier)
    return found


async def read_experiments(
    engine: AsyncEngine,
    campaign_id: UUID,
    metrics: Sequence[Metric],
    *,
    experiment: str | None = None,
    method: MethodVersion | None = None,
) -> tuple[ExperimentFacts, ...]:
    """Return a campaign's experiments in the order of its sweep, or one of them, with the cycles that have results.

    Raises:
        ProblemError: `conflict`: more than `MOST_EXPERIMENTS`.
    """
    experiment_id = None if experiment is None else parse_id(IdKind.EXPERIMENT, experiment)
    found: dict[UUID, ExperimentFacts] = {}
    after = (-1, -1)
    while True:
        async with engine.connect() as connection:
            page = await queries.measured_page(connection, campaign_id, experiment_id, method, after)
        # In a thread: parsing a page of aggregates takes a tenth of a second.
        await asyncio.to_thread(_collect, page, metrics, found)
        if len(found) > MOST_EXPERIMENTS:
            raise ProblemError(
                ProblemCode.CONFLICT,
                f"a campaign of more than {MOST_EXPERIMENTS} experiments can't be compared as a whole; name two "
                "experiments.",
            )
        if len(page) < queries.ROWS_PER_PAGE:
            return tuple(found.values())
        after = (page[-1].ordinal, page[-1].cycle)


def _collect(
    page: Sequence[queries.MeasuredRow], metrics: Sequence[Metric], found: dict[UUID, ExperimentFacts]
) -> None:
    for row in page:
        known = found.get(row.experiment_id) or ExperimentFacts(
            experiment_id=format_id(IdKind.EXPERIMENT, row.experiment_id),
            campaign_id=format_id(IdKind.CAMPAIGN, row.campaign_id),
            display_name=row.display_name,
            config_hash=row.config_hash,
            config=row.config,
            varied=row.varied,
            cycles=(),
        )
        cycles = known.cycles
        if row.result is not None:
            # What was in force is compared once per experiment.
            cycles = (*cycles, _cycle(row, row.result, metrics, whole=not known.usable))
        found[row.experiment_id] = known._replace(cycles=cycles)


def _cycle(row: queries.MeasuredRow, result: str, metrics: Sequence[Metric], *, whole: bool) -> CycleFacts:
    effective = row.effective_config or {}
    facts = cycle_facts(
        RunResult.model_validate_json(result),
        row.cycle,
        metrics,
        devices=[str(one) for one in row.devices],
        started_at=row.started_at,
        effective={"engine": effective.get("engine")}
        | {one["name"]: one["effective"] for one in effective.get("parameters", ())},
        environment=row.environment,
    )
    return facts if whole else facts._replace(effective={}, environment={})
