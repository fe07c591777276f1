"""Aggregates the completed runs of a campaign one after another, with progress for the campaign's event stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID
from weakref import WeakValueDictionary

from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_domain.wire.campaigns import AggregatedCampaign, AggregationProblem
from lem_domain.wire.events import AggregationEvent
from lem_server.aggregation import queries, service
from lem_server.aggregation.inputs import AggregationParameters
from lem_server.aggregation.process_pool import AggregationPool
from lem_server.database.listener import Hub
from lem_server.http.problems import ProblemError, problem_of, required

LISTED_PROBLEMS = 1000
"""Problems in one answer, which must stay bounded for campaigns of 10,000 runs."""
PAGE = 100


class CampaignAggregations:
    """The aggregations of whole campaigns that are in progress in this server process."""

    def __init__(self, engine: AsyncEngine, hub: Hub, pool: AggregationPool) -> None:
        self.pool = pool
        self._engine = engine
        self._hub = hub
        self._progress: dict[UUID, AggregationEvent] = {}
        self._locks: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    def progress(self, campaign_id: UUID) -> AggregationEvent | None:
        """Return the progress of the campaign's aggregation; None if there is none in this process."""
        return self._progress.get(campaign_id)

    async def aggregate(
        self, campaign_id: UUID, parameters: AggregationParameters, method: MethodVersion = DEFAULT_METHOD
    ) -> AggregatedCampaign:
        """Aggregate every completed run of the campaign that has no aggregate by this method; report the rest per run.

        With calibrations, every run whose newest aggregate by this method was computed with others.

        With `allow_partial` runs that failed with `invalid_evidence` are included. The runs take turns, so that other
        requests find a free subprocess. Each aggregate is stored when it is ready: a request that is repeated after an
        interruption continues where the first one stopped.

        Raises:
            ProblemError: `not_found`; `not_ready` if the server shuts down meanwhile.
            DBAPIError, OSError: the database is away.
        """
        # A second request for the same campaign waits, and then finds nothing left to do. Requests to other server
        # processes may aggregate a run twice, which gives the same bytes.
        lock = self._locks.setdefault(campaign_id, asyncio.Lock())
        async with lock:
            try:
                return await self._aggregate(campaign_id, parameters, method)
            finally:
                self._progress.pop(campaign_id, None)
                self._hub.ring_campaign(campaign_id)  # streams that stayed open for this may end

    async def _aggregate(
        self, campaign_id: UUID, parameters: AggregationParameters, method: MethodVersion
    ) -> AggregatedCampaign:
        pending = queries.Pending.of(campaign_id, parameters, method)
        async with self._engine.connect() as connection:
            total = required(await queries.count_pending(connection, pending), IdKind.CAMPAIGN, campaign_id)
        done = failed = 0
        problems: list[AggregationProblem] = []
        self._progress[campaign_id] = AggregationEvent(total=total, done=0, failed=0)
        async for run in self._pending(pending):
            problem = await self._aggregate_run(run, parameters, method)
            done += 1
            if problem is not None:
                failed += 1
                problems.extend([problem][: LISTED_PROBLEMS - len(problems)])
            # A run may complete after the count was taken.
            self._progress[campaign_id] = AggregationEvent(total=max(total, done), done=done, failed=failed)
            self._hub.ring_campaign(campaign_id)
        return AggregatedCampaign(aggregated=done - failed, failed=failed, problems=tuple(problems))

    async def _pending(self, pending: queries.Pending) -> AsyncIterator[queries.PendingRun]:
        after = -1
        while True:
            async with self._engine.connect() as connection:
                page = await queries.pending_runs(connection, pending, after=after, limit=PAGE)
            for run in page:
                if self._hub.stopping:
                    raise ProblemError(
                        ProblemCode.NOT_READY,
                        "the server is shutting down; send the request again to aggregate the remaining runs.",
                        headers={"Retry-After": "1"},
                    )
                yield run
                after = run.position
            if len(page) < PAGE:
                return

    async def _aggregate_run(
        self, run: queries.PendingRun, parameters: AggregationParameters, method: MethodVersion
    ) -> AggregationProblem | None:
        run_id = format_id(IdKind.RUN, run.run_id)
        try:
            await service.aggregate_run(self._engine, self.pool, run.run_id, parameters, method)
        except Exception as error:
            problem = problem_of(error, run_id)  # logs unexpected errors under the run's id
            if problem.code is ProblemCode.NOT_READY:
                raise  # the database is away: every other run would fail in the same way
        else:
            return None
        unexpected = f"the server failed; its log has the details under {run_id}."
        return AggregationProblem(
            run_id=run_id,
            display_name=run.display_name,
            cycle=run.cycle,
            code=problem.code,
            message=unexpected if problem.code is ProblemCode.INTERNAL else str(problem),
        )
