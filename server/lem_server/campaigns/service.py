"""Planning, submitting, pausing, placing, retrying and cancelling campaigns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Literal
from uuid import UUID

from sqlalchemy import TextClause
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from uuid_utils.compat import uuid7

from lem_domain.config.campaign import CampaignSpec
from lem_domain.config.execution import Placement
from lem_domain.config.expansion import Plan
from lem_domain.config.hashing import canonical_json
from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind
from lem_domain.states import CampaignState
from lem_domain.wire.campaigns import CampaignView, RetriedRuns
from lem_domain.wire.runs import RunView
from lem_server.campaigns import planning, queries
from lem_server.campaigns.reading import get_campaign
from lem_server.datasets import service as datasets
from lem_server.http.problems import ProblemError, required
from lem_server.runs import changes as runs

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


async def submit(connection: AsyncConnection, spec: CampaignSpec, planned: Plan, *, submitted_by: str) -> CampaignView:
    """Store a campaign with its experiments and queue its runs in the caller's transaction.

    Raises:
        ConfigurationError: a prompt set does not exist.
    """
    await _refuse_missing_prompts(connection, planned)
    campaign_id = uuid7()
    await queries.insert(connection, campaign_id, spec, submitted_by=submitted_by)
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
            runs.NewRun(
                id=uuid7(),
                experiment_id=experiment_ids[run.experiment],
                cycle=run.cycle,
                position=run.position,
                backend=needs[run.experiment].backend.value,
                device_count=needs[run.experiment].devices.count,
                # unnest flattens arrays of arrays, so each list is one text; a UUID contains no comma.
                device_uuids=",".join(needs[run.experiment].devices.uuids) or None,
                device_like=needs[run.experiment].devices.like_pattern,
            )
            for run in planned.runs
        ],
        campaign_id=campaign_id,
        priority=spec.priority,
        retries=spec.execution.retries,
        submitted_by=submitted_by,
    )
    return await get_campaign(connection, campaign_id)


async def cancel(engine: AsyncEngine, campaign_id: UUID, *, cancelled_by: str) -> CampaignView:
    """Cancel the queued runs at once and ask the workers of live runs to stop. A repetition changes nothing.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.begin() as connection:
        required(await queries.change_state(connection, queries.CANCEL, campaign_id), IdKind.CAMPAIGN, campaign_id)
        await runs.cancel_runs_of_campaign(connection, campaign_id, cancelled_by=cancelled_by)
        return await _changed(connection, campaign_id)


async def pause(engine: AsyncEngine, campaign_id: UUID, *, live_runs: Literal["finish", "stop"]) -> CampaignView:
    """Pause a campaign: no more of its runs are claimed. A repetition changes nothing.

    Raises:
        ProblemError: `not_found`, or `conflict` if it was cancelled.
    """
    async with engine.begin() as connection:
        await _change_open(connection, queries.PAUSE, campaign_id)
        if live_runs == "stop":
            await runs.ask_campaign_to_pause(connection, campaign_id, pause=True)
        return await _changed(connection, campaign_id)


async def resume(engine: AsyncEngine, campaign_id: UUID) -> CampaignView:
    """Allow claims again; a live run continues if its worker has not yet received the request to stop.

    Raises:
        ProblemError: `not_found`, or `conflict` if it was cancelled.
    """
    async with engine.begin() as connection:
        await _change_open(connection, queries.RESUME, campaign_id)
        await runs.ask_campaign_to_pause(connection, campaign_id, pause=False)
        await runs.wake_claims(connection, campaign_id)
        return await _changed(connection, campaign_id)


async def place(engine: AsyncEngine, campaign_id: UUID, *, placement: Placement | None, placed_by: str) -> CampaignView:
    """Let the next claimed run choose other devices; live runs stay on theirs.

    Raises:
        ProblemError: `not_found`, or `conflict` if the campaign was cancelled.
    """
    async with engine.begin() as connection:
        await _change_open(connection, queries.LOCK, campaign_id)
        await queries.reset_place(connection, campaign_id, placement=placement, by=placed_by)
        await runs.wake_claims(connection, campaign_id)
        return await _changed(connection, campaign_id)


async def end_after_failures(engine: AsyncEngine) -> int:
    """Cancel the queued runs of every campaign with `fail_fast` and a failed run; return the number of such campaigns.

    Several replicas may run this at the same time. Claims skip such a campaign from the failure on.
    """
    async with engine.connect() as connection:
        found = await queries.failed_fast(connection)
    ended = 0
    for campaign_id in found:
        async with engine.begin() as connection:
            await queries.change_state(connection, queries.LOCK, campaign_id)
            if await runs.cancel_after_failure(connection, campaign_id):
                await queries.notify_followers(connection, campaign_id)
                ended += 1
    return ended


async def retry_failed(connection: AsyncConnection, campaign_id: UUID, *, retried_by: str) -> RetriedRuns:
    """Queue every failed or interrupted run of a campaign again.

    Raises:
        ProblemError: `not_found`, or `conflict` if it was cancelled.
    """
    await _lock_for_retry(connection, campaign_id)
    return RetriedRuns(run_ids=await runs.retry_runs_of_campaign(connection, campaign_id, retried_by=retried_by))


async def retry_run(connection: AsyncConnection, run_id: UUID, *, retried_by: str) -> RunView:
    """Queue one failed or interrupted run again.

    Raises:
        ProblemError: `not_found`, or `conflict` if its state does not allow it.
    """
    campaign_id = await runs.campaign_of(connection, run_id)
    await _lock_for_retry(connection, campaign_id)
    return await runs.retry_run(connection, run_id, retried_by=retried_by)


async def _lock_for_retry(connection: AsyncConnection, campaign_id: UUID) -> None:
    """Lock a campaign, and refuse an imported one with a message; a trigger of the database would refuse it without."""
    await _change_open(connection, queries.LOCK, campaign_id)
    if await queries.is_imported(connection, campaign_id):
        raise ProblemError(
            ProblemCode.CONFLICT,
            "the campaign was imported and cannot run here; submit its configuration again "
            "(`lemctl show RUN --as-config`).",
        )


async def _change_open(connection: AsyncConnection, change: TextClause, campaign_id: UUID) -> None:
    """Lock and change a campaign.

    Raises:
        ProblemError: `not_found`, or `conflict` if it was cancelled.
    """
    state = required(await queries.change_state(connection, change, campaign_id), IdKind.CAMPAIGN, campaign_id)
    if state == CampaignState.CANCELLED:
        raise ProblemError(ProblemCode.CONFLICT, "the campaign was cancelled, which cannot be undone; submit it again.")


async def _changed(connection: AsyncConnection, campaign_id: UUID) -> CampaignView:
    """Wake the followers of a campaign at the commit, and return the campaign."""
    await queries.notify_followers(connection, campaign_id)
    return await get_campaign(connection, campaign_id)


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
