"""Planning, submitting, reading, pausing, placing, retrying and cancelling campaigns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Literal, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils.compat import uuid7

from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.execution import ExecutionConfig, Placement
from lem_domain.config.expansion import Plan
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import canonical_json
from lem_domain.config.provenance import Origin, resolved_values
from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.states import LIVE_STATES, CampaignState
from lem_domain.wire.campaigns import (
    CampaignView,
    ExperimentView,
    ImportOrigin,
    PlaceView,
    RetriedRuns,
    RunCounts,
    ValueView,
)
from lem_domain.wire.runs import RunView
from lem_server.campaigns import planning, queries
from lem_server.datasets import service as datasets
from lem_server.http.problems import ProblemError, not_found
from lem_server.leases.waiting import why_nothing_runs
from lem_server.runs import service as runs
from lem_server.runs.new_run import NewRun
from lem_server.settings import LeaseTerms

EXPERIMENTS_PER_INSERT = 1000
"""Each has a configuration of about 2 kB."""


async def plan(engine: AsyncEngine, spec: CampaignSpec, *, listed: int | None) -> Iterator[bytes]:
    """Return what a submission would queue: the JSON of `CampaignPlan` with at most `listed` experiments and runs.

    Raises:
        ConfigurationError: the campaign is invalid.
    """
    # In a thread: thousands of combinations take seconds of CPU time, during which other requests are served.
    planned = await asyncio.to_thread(planning.expand_campaign, spec, list_refused=True)
    async with engine.connect() as connection:
        await _refuse_missing_prompts(connection, planned)
        served = await queries.served_backends(connection)
    return planning.plan_json(spec, planned, planning.worker_notes(planned, served), listed=listed)


async def expand(spec: CampaignSpec) -> Plan:
    """Expand a campaign once for `submit`, before the transaction.

    Raises:
        ConfigurationError: the campaign is invalid.
    """
    return await asyncio.to_thread(planning.expand_campaign, spec)


async def submit(connection: AsyncConnection, spec: CampaignSpec, planned: Plan, *, submitted_by: str) -> CampaignView:
    """Store a campaign with its experiments and queue its runs in the caller's transaction.

    Raises:
        ConfigurationError: a prompt set does not exist.
    """
    await _refuse_missing_prompts(connection, planned)
    campaign_id = uuid7()
    await queries.insert(
        connection,
        campaign_id=campaign_id,
        name=spec.name,
        spec=spec.model_dump(mode="json"),
        submitted_by=submitted_by,
        priority=spec.priority,
        labels=spec.labels,
        execution=spec.execution,
    )
    experiment_ids = [uuid7() for _ in planned.experiments]
    for first in range(0, len(experiment_ids), EXPERIMENTS_PER_INSERT):
        last = first + EXPERIMENTS_PER_INSERT
        rows = await asyncio.to_thread(_new_experiments, planned, experiment_ids, first, last)
        await queries.insert_experiments(connection, campaign_id, rows)
    needs = [one.needs for one in planned.experiments]
    # UUIDv7 increase in the order of creation, so runs are ordered by id as by position.
    await runs.queue_runs(
        connection,
        [
            NewRun(
                id=uuid7(),
                experiment_id=experiment_ids[run.experiment],
                cycle=run.cycle,
                position=run.position,
                backend=needs[run.experiment].backend.value,
                device_count=needs[run.experiment].devices.count,
                device_uuids=needs[run.experiment].devices.uuids,
                device_like=needs[run.experiment].devices.like_pattern,
            )
            for run in planned.runs
        ],
        campaign_id=campaign_id,
        priority=spec.priority,
        retries=spec.execution.retries,
        submitted_by=submitted_by,
    )
    return await get_within(connection, campaign_id)


class CampaignFilter(NamedTuple):
    """The filter of a list of campaigns; None matches all."""

    state: CampaignState | None
    name: str | None
    labels: dict[str, str]
    """A campaign must have all of them."""


async def list_campaigns(
    engine: AsyncEngine, wanted: CampaignFilter, *, before: UUID | None, limit: int
) -> tuple[tuple[CampaignView, ...], UUID | None]:
    """Return one page of campaigns, the newest first, and the id before which the next page begins."""
    async with engine.connect() as connection:
        rows = await queries.list_campaigns(connection, **wanted._asdict(), before=before, limit=limit + 1)
    shown = rows[:limit]
    return tuple(_view(row) for row in shown), shown[-1].id if len(rows) > limit else None


async def get_campaign(engine: AsyncEngine, campaign_id: UUID) -> CampaignView:
    """Return one campaign.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        return await get_within(connection, campaign_id)


async def watch_campaign(engine: AsyncEngine, terms: LeaseTerms, campaign_id: UUID) -> CampaignView:
    """Return one campaign, with the reason if none of its runs is live.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        view = await get_within(connection, campaign_id)
        if view.state is not CampaignState.ACTIVE or view.runs.in_states(*LIVE_STATES):
            return view
        ttl = timedelta(seconds=terms.ttl_s)
        return view.model_copy(update={"waiting": await why_nothing_runs(connection, campaign_id, ttl=ttl)})


async def list_experiments(
    engine: AsyncEngine, campaign_id: UUID, *, after: int, limit: int
) -> tuple[tuple[ExperimentView, ...], int | None]:
    """Return one page of a campaign's experiments, and the ordinal after which the next page begins.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        if not await queries.exists(connection, campaign_id):
            raise not_found(IdKind.CAMPAIGN, campaign_id)
        rows = await queries.list_experiments(connection, campaign_id, after=after, limit=limit + 1)
    shown = rows[:limit]
    views = tuple(_experiment(campaign_id, row) for row in shown)
    return views, shown[-1].ordinal if len(rows) > limit else None


async def get_experiment(engine: AsyncEngine, experiment_id: UUID) -> ExperimentView:
    """Return one experiment with the source of every value.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        found = await queries.get_experiment(connection, experiment_id)
    if found is None:
        raise not_found(IdKind.EXPERIMENT, experiment_id)
    view = _experiment(found.campaign_id, found.experiment)
    origins = {path: Origin.model_validate(origin) for path, origin in found.provenance.items()}
    values = resolved_values(view.config, varied=view.varied, origins=origins)
    return view.model_copy(update={"provenance": tuple(ValueView(**value._asdict()) for value in values)})


async def cancel(engine: AsyncEngine, campaign_id: UUID, *, cancelled_by: str) -> CampaignView:
    """Cancel the queued runs at once and ask the workers of live runs to stop. A repetition changes nothing.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.begin() as connection:
        if not await queries.cancel(connection, campaign_id):
            raise not_found(IdKind.CAMPAIGN, campaign_id)
        await runs.cancel_runs_of_campaign(connection, campaign_id, cancelled_by=cancelled_by)
        await queries.notify_followers(connection, campaign_id)
        return await get_within(connection, campaign_id)


async def pause(engine: AsyncEngine, campaign_id: UUID, *, live_runs: Literal["finish", "stop"]) -> CampaignView:
    """Pause a campaign: no more of its runs are claimed. A repetition changes nothing.

    Raises:
        ProblemError: `not_found`, or `conflict` if it was cancelled.
    """
    async with engine.begin() as connection:
        _require_not_cancelled(campaign_id, await queries.pause(connection, campaign_id))
        if live_runs == "stop":
            await runs.ask_campaign_to_pause(connection, campaign_id, pause=True)
        await queries.notify_followers(connection, campaign_id)
        return await get_within(connection, campaign_id)


async def resume(engine: AsyncEngine, campaign_id: UUID) -> CampaignView:
    """Allow claims again; a live run continues if its worker has not yet received the request to stop.

    Raises:
        ProblemError: `not_found`, or `conflict` if it was cancelled.
    """
    async with engine.begin() as connection:
        _require_not_cancelled(campaign_id, await queries.resume(connection, campaign_id))
        await runs.ask_campaign_to_pause(connection, campaign_id, pause=False)
        await runs.wake_claims(connection, campaign_id)
        await queries.notify_followers(connection, campaign_id)
        return await get_within(connection, campaign_id)


async def place(engine: AsyncEngine, campaign_id: UUID, *, placement: Placement | None, placed_by: str) -> CampaignView:
    """Let the next claimed run choose other devices; live runs stay on theirs.

    Raises:
        ProblemError: `not_found`, or `conflict` if the campaign was cancelled.
    """
    async with engine.begin() as connection:
        _require_not_cancelled(campaign_id, await queries.lock(connection, campaign_id))
        await queries.reset_place(connection, campaign_id, placement=placement, by=placed_by)
        await runs.wake_claims(connection, campaign_id)
        await queries.notify_followers(connection, campaign_id)
        return await get_within(connection, campaign_id)


async def end_after_failures(engine: AsyncEngine) -> int:
    """Cancel the queued runs of every campaign with `fail_fast` and a failed run; return the number of such campaigns.

    Several replicas may run this at the same time. Claims skip such a campaign from the failure on.
    """
    async with engine.connect() as connection:
        found = await queries.failed_fast(connection)
    ended = 0
    for campaign_id in found:
        async with engine.begin() as connection:
            await queries.lock(connection, campaign_id)
            if await runs.cancel_after_failure(connection, campaign_id):
                await queries.notify_followers(connection, campaign_id)
                ended += 1
    return ended


async def retry_failed(connection: AsyncConnection, campaign_id: UUID, *, retried_by: str) -> RetriedRuns:
    """Queue every failed or interrupted run of a campaign again.

    Raises:
        ProblemError: `not_found`, or `conflict` if it was cancelled.
    """
    _require_not_cancelled(campaign_id, await queries.lock(connection, campaign_id))
    await _refuse_imported(connection, campaign_id)
    return RetriedRuns(run_ids=await runs.retry_runs_of_campaign(connection, campaign_id, retried_by=retried_by))


async def retry_run(connection: AsyncConnection, run_id: UUID, *, retried_by: str) -> RunView:
    """Queue one failed or interrupted run again.

    Raises:
        ProblemError: `not_found`, or `conflict` if its state does not allow it.
    """
    campaign_id = await runs.campaign_of(connection, run_id)
    _require_not_cancelled(campaign_id, await queries.lock(connection, campaign_id))
    await _refuse_imported(connection, campaign_id)
    return await runs.retry_run(connection, run_id, retried_by=retried_by)


async def _refuse_imported(connection: AsyncConnection, campaign_id: UUID) -> None:
    """Refuse an imported campaign with a message; a trigger of the database would refuse it without one."""
    if await queries.is_imported(connection, campaign_id):
        raise ProblemError(
            ProblemCode.CONFLICT,
            "the campaign was imported and cannot run here; submit its configuration again "
            "(`lemctl show RUN --as-config`).",
        )


def _require_not_cancelled(campaign_id: UUID, state: str | None) -> None:
    if state is None:
        raise not_found(IdKind.CAMPAIGN, campaign_id)
    if state == CampaignState.CANCELLED:
        raise ProblemError(ProblemCode.CONFLICT, "the campaign was cancelled, which cannot be undone; submit it again.")


async def get_within(connection: AsyncConnection, campaign_id: UUID) -> CampaignView:
    """Return one campaign as the caller's transaction sees it.

    Raises:
        ProblemError: `not_found`.
    """
    row = await queries.get_campaign(connection, campaign_id)
    if row is None:
        raise not_found(IdKind.CAMPAIGN, campaign_id)
    return _view(row)


async def _refuse_missing_prompts(connection: AsyncConnection, planned: Plan) -> None:
    existing = await datasets.existing(connection, planning.datasets_of(planned))
    planning.refuse_missing_prompts(planned, existing=existing)


def _new_experiments(planned: Plan, ids: Sequence[UUID], first: int, last: int) -> list[queries.NewExperiment]:
    return [
        queries.NewExperiment(
            id=ids[ordinal],
            ordinal=ordinal,
            display_name=one.display_name,
            varied=canonical_json(one.varied).decode(),
            config=one.config.model_dump_json(),
            config_hash=one.config_hash,
        )
        for ordinal, one in enumerate(planned.experiments[first:last], start=first)
    ]


def _view(row: queries.CampaignRow) -> CampaignView:
    return CampaignView(
        id=format_id(IdKind.CAMPAIGN, row.id),
        name=row.name,
        state=CampaignState(row.state),
        created_at=row.created_at,
        submitted_by=row.submitted_by,
        execution=ExecutionConfig.model_validate(row.execution),
        priority=row.priority,
        labels=row.labels,
        metadata=row.metadata or {},
        experiments=row.experiments,
        runs=RunCounts.model_validate(row.runs),
        imported=None if row.imported is None else ImportOrigin.model_validate(row.imported),
        placement=row.placement,
        places=tuple(PlaceView.model_validate(place) for place in row.places),
    )


def _experiment(campaign_id: UUID, row: queries.ExperimentRow) -> ExperimentView:
    return ExperimentView(
        id=format_id(IdKind.EXPERIMENT, row.id),
        campaign_id=format_id(IdKind.CAMPAIGN, campaign_id),
        display_name=row.display_name,
        varied=row.varied,
        config=ExperimentConfig.model_validate(row.config),
        config_hash=row.config_hash,
    )
