"""Aggregates a run from its stored evidence, on request, and keeps the result under its content's key."""

from __future__ import annotations

from functools import partial
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.results.run import METHOD_VERSION
from lem_domain.states import ActorKind, FailureReason, RunState
from lem_server.aggregation import queries
from lem_server.aggregation.canonical_result import Computed
from lem_server.aggregation.errors import AggregationError, EvidenceCorrupt, EvidenceMissing
from lem_server.aggregation.inputs import AggregationParameters
from lem_server.aggregation.subprocesses import Task, compute_elsewhere
from lem_server.evidence import reading
from lem_server.http.problems import ProblemError, not_there
from lem_server.runs.transitions import set_actor

AT_ONCE = 2
"""So many aggregations are computed at a time by one server process, the others wait: a large one takes 350 MB."""
LARGE_ROWS = 200_000
"""The process that computed so many ends, and its memory with it; one of fewer waits for the next run."""
_limiter: RunVar[CapacityLimiter] = RunVar("lem_aggregations")


async def aggregate_run(engine: AsyncEngine, run_id: UUID, parameters: AggregationParameters) -> bytes:
    """Compute a run's result from its evidence, every digest checked, and return its canonical JSON.

    A completed run becomes `aggregated`, or `failed` with reason `invalid_evidence` when its evidence can't be used.
    An aggregated run is computed again: what the same version stored must be the same bytes, and beside what an older
    one stored comes a newer result. One that failed so stays failed and is computed where partial evidence is allowed.

    Raises:
        ProblemError: `not_found`; `conflict` when the run has no finished attempt; `evidence_missing`,
            `evidence_corrupt`, `evidence_invalid`; `aggregate_not_reproducible`.
    """
    async with engine.connect() as connection:
        row = await queries.run_row(connection, run_id)
    row = _finished(row, run_id, parameters)
    try:
        computed = await _computed(engine, row, parameters)
    except AggregationError as error:
        await _refuse(engine, run_id, row, error)
        raise _problem(error) from error
    async with engine.begin() as connection:
        current = await queries.run_row(connection, run_id, lock=True)
        if current is None or current.attempt_id != row.attempt_id:
            raise ProblemError(
                ProblemCode.CONFLICT, "the run was queued again while it was aggregated; aggregate it when it is done."
            )
        stored = await queries.aggregate_text(connection, _attempt(row), computed.key)
        if stored is not None and stored != computed.body:
            raise ProblemError(
                ProblemCode.AGGREGATE_NOT_REPRODUCIBLE,
                "the stored aggregate differs from what the same version computes now of the same evidence and inputs; "
                "report this as a defect.",
            )
        await queries.insert_aggregate(
            connection,
            key=computed.key,
            run_id=run_id,
            attempt_id=_attempt(row),
            method=METHOD_VERSION,
            parameters=parameters.model_dump(mode="json"),
            evidence_sha256=computed.evidence_sha256,
            result=computed.body,
        )
        if current.state == RunState.COMPLETED:
            await set_actor(connection, ActorKind.SERVER, f"aggregation {METHOD_VERSION}")
            await queries.mark_aggregated(connection, run_id)
    return computed.body


async def stored_aggregate(engine: AsyncEngine, run_id: UUID) -> bytes:
    """The newest stored result of a run, byte for byte as it was computed.

    Raises:
        ProblemError: `not_found`, saying how to make one.
    """
    async with engine.connect() as connection:
        row = await queries.run_row(connection, run_id)
        if row is None:
            raise not_there(IdKind.RUN, run_id)
        found = None
        if row.attempt_id is not None:
            found = await queries.latest_text(connection, run_id, row.attempt_id)
    if found is None:
        run = format_id(IdKind.RUN, run_id)
        raise ProblemError(
            ProblemCode.NOT_FOUND,
            f"{run} is {row.state} and has no aggregate; POST /api/v1/runs/{run}:aggregate once it is completed.",
        )
    return found


def _places() -> CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        _limiter.set(made := CapacityLimiter(AT_ONCE))
        return made


async def _computed(engine: AsyncEngine, row: queries.RunRow, parameters: AggregationParameters) -> Computed:
    attempt_id = _attempt(row)
    async with _places():
        small = await reading.rows_of(engine, attempt_id) < LARGE_ROWS
        task = Task(engine.url, row, attempt_id, parameters)
        return await to_thread.run_sync(partial(compute_elsewhere, task, keep=small))


async def _refuse(engine: AsyncEngine, run_id: UUID, row: queries.RunRow, error: AggregationError) -> None:
    """A completed run whose evidence can't be used has failed; an aggregated one keeps its result."""
    if row.state != RunState.COMPLETED:
        return
    async with engine.begin() as connection:
        current = await queries.run_row(connection, run_id, lock=True)
        if current is None or current.state != RunState.COMPLETED or current.attempt_id != row.attempt_id:
            return
        await set_actor(connection, ActorKind.SERVER, f"aggregation {METHOD_VERSION}")
        await queries.fail_run(
            connection, run_id, reason=FailureReason.INVALID_EVIDENCE.value, message=str(error)[:4000]
        )


def _problem(error: AggregationError) -> ProblemError:
    if isinstance(error, EvidenceMissing):
        return ProblemError(ProblemCode.EVIDENCE_MISSING, str(error))
    if isinstance(error, EvidenceCorrupt):
        return ProblemError(ProblemCode.EVIDENCE_CORRUPT, str(error))
    return ProblemError(ProblemCode.EVIDENCE_INVALID, str(error))


def _finished(row: queries.RunRow | None, run_id: UUID, parameters: AggregationParameters) -> queries.RunRow:
    if row is None:
        raise not_there(IdKind.RUN, run_id)
    if row.state in (RunState.COMPLETED, RunState.AGGREGATED):
        return row
    run = format_id(IdKind.RUN, run_id)
    # What a run that failed for its evidence still shows may be looked at, whether the worker could not complete it or
    # the aggregation refused it; it stays failed.
    if row.state == RunState.FAILED and row.reason == FailureReason.INVALID_EVIDENCE and row.attempt_id is not None:
        if parameters.allow_partial:
            return row
        raise ProblemError(
            ProblemCode.CONFLICT,
            f"{run} failed for its evidence; aggregate it with allow_partial to see what is left of it.",
        )
    raise ProblemError(
        ProblemCode.CONFLICT, f"{run} is {row.state}, so there is nothing to aggregate; wait until it is completed."
    )


def _attempt(row: queries.RunRow) -> UUID:
    if row.attempt_id is None:
        raise not_there(IdKind.RUN, row.run_id)
    return row.attempt_id
