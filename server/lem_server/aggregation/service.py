"""Aggregates a run from its stored evidence and stores the result under the key of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_domain.results.window_study import WindowStudy
from lem_domain.states import ActorKind, FailureReason, RunState
from lem_domain.wire.calibration import MeterLogOptions
from lem_server.aggregation import queries
from lem_server.aggregation.errors import AggregationError
from lem_server.aggregation.inputs import AggregationParameters
from lem_server.aggregation.process_pool import (
    AggregationPool,
    AggregationTask,
    CalibrationTask,
    RequestTableTask,
    WindowStudyTask,
    calibrate_from_stored_run,
    study_stored_window,
    write_stored_requests,
)
from lem_server.aggregation.request_table import RequestFormat
from lem_server.evidence import reading
from lem_server.http.problems import ProblemError, required
from lem_server.runs.transitions import set_actor

LARGE_ROWS = 200_000
"""A run of at least so many rows gets a subprocess that ends with it and returns its memory."""


def require_effect(parameters: AggregationParameters, method: MethodVersion) -> None:
    """Refuse calibrations for a method that does not use them.

    Raises:
        ProblemError: `validation`.
    """
    if parameters.calibration and method is MethodVersion.M1:
        raise ProblemError(
            ProblemCode.VALIDATION, "method m1 corrects no readings; aggregate by m2, or without calibration."
        )


async def aggregate_run(
    engine: AsyncEngine,
    pool: AggregationPool,
    run_id: UUID,
    parameters: AggregationParameters,
    method: MethodVersion = DEFAULT_METHOD,
    *,
    must_correct: bool = False,
) -> bytes:
    """Aggregate a run from its evidence, verify every digest, store the result and return its canonical JSON.

    A completed run becomes `aggregated`, or `failed` with reason `invalid_evidence` if its evidence can't be used.
    Results by different methods are stored side by side. An aggregated run is aggregated again: the same
    version must produce the stored bytes; another version's result is stored next to the older one.
    A run that failed with `invalid_evidence` stays failed and needs `allow_partial`. With `must_correct` one of the
    given calibrations has to name a device of the run.

    Raises:
        ProblemError: `validation`; `not_found`; `conflict` when the run has no finished attempt; `evidence_missing`,
            `evidence_corrupt`, `evidence_invalid`; `aggregate_not_reproducible`.
    """
    async with engine.connect() as connection:
        row = required(await queries.run_row(connection, run_id), IdKind.RUN, run_id)
    attempt_id = _finished_attempt(row, parameters)
    if must_correct:
        _require_its_device(row, parameters)
    large = await reading.rows_of(engine, attempt_id) >= LARGE_ROWS
    try:
        task = AggregationTask(engine.url, row, attempt_id, parameters, method)
        computed = await pool.aggregate(task, large=large)
    except AggregationError as error:
        await _refuse(engine, run_id, row, error, method)
        raise ProblemError(error.code, str(error)) from error
    async with engine.begin() as connection:
        current = await queries.run_row(connection, run_id, lock=True)
        if current is None or current.attempt_id != row.attempt_id:
            raise ProblemError(
                ProblemCode.CONFLICT,
                "the run was queued again while it was aggregated; aggregate it when it is completed.",
            )
        stored = await queries.aggregate_text(connection, attempt_id, computed.key)
        if stored is not None and stored != computed.body:
            raise ProblemError(
                ProblemCode.AGGREGATE_NOT_REPRODUCIBLE,
                "the stored aggregate differs from the one that the same version now computes from the same inputs; "
                "report this as a defect.",
            )
        await queries.insert_aggregate(
            connection,
            key=computed.key,
            run_id=run_id,
            attempt_id=attempt_id,
            method=method,
            parameters=parameters.model_dump(mode="json"),
            evidence_sha256=computed.evidence_sha256,
            result=computed.body.decode(),
        )
        if current.state == RunState.COMPLETED:
            await set_actor(connection, ActorKind.SERVER, f"aggregation {method}")
            await queries.mark_aggregated(connection, run_id)
    return computed.body


async def calibrate(
    engine: AsyncEngine, pool: AggregationPool, run_id: UUID, log: bytes, options: MeterLogOptions
) -> bytes:
    """Compare a meter's log with a run's evidence and return the JSON of the fit; stores nothing.

    Raises:
        ProblemError: `not_found`; `conflict` when the run has no finished attempt; `validation` when the log can't
            calibrate a device of the run; `evidence_corrupt`, `evidence_invalid`.
    """
    async with engine.connect() as connection:
        row = required(await queries.run_row(connection, run_id), IdKind.RUN, run_id)
    parameters = AggregationParameters(allow_partial=True)
    evidence = AggregationTask(engine.url, row, _finished_attempt(row, parameters), parameters, DEFAULT_METHOD)
    try:
        return await pool.call(calibrate_from_stored_run, CalibrationTask(evidence, log, options))
    except AggregationError as error:
        raise ProblemError(error.code, str(error)) from error


async def stored_aggregate(engine: AsyncEngine, run_id: UUID, method: MethodVersion | None = None) -> bytes:
    """Return a run's newest stored result, byte for byte as it was computed.

    Without a method it is the newest by `DEFAULT_METHOD`, or by another one if there is none by that.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        row = required(await queries.run_row(connection, run_id), IdKind.RUN, run_id)
        found = None
        if row.attempt_id is not None:
            found = await queries.latest_text(connection, run_id, row.attempt_id, method)
    if found is None:
        run = format_id(IdKind.RUN, run_id)
        by, query = ("", "") if method is None else (f" by method {method}", f"?method={method}")
        raise ProblemError(
            ProblemCode.NOT_FOUND,
            f"{run} is {row.state} and has no aggregate{by}; POST /api/v1/runs/{run}:aggregate{query} once it is "
            "completed.",
        )
    return found


async def write_request_table(
    engine: AsyncEngine, pool: AggregationPool, run_id: UUID, method: MethodVersion, path: Path, form: RequestFormat
) -> None:
    """Compute the table of a run's requests and write it to a file.

    It has the parameters of the newest stored result by the method, so that it divides the energy of that result.

    Raises:
        ProblemError: `not_found`; `conflict` when the run has no finished attempt; `evidence_missing`,
            `evidence_corrupt`, `evidence_invalid`.
    """
    evidence, large = await _evidence(engine, run_id, method)
    try:
        await pool.of_run(write_stored_requests, RequestTableTask(evidence, path, form), run_id, large=large)
    except AggregationError as error:
        raise ProblemError(error.code, str(error)) from error


async def study_window(
    engine: AsyncEngine,
    pool: AggregationPool,
    run_id: UUID,
    method: MethodVersion,
    lengths_s: Sequence[float],
    target: float,
) -> WindowStudy:
    """Compute how the energy per token of a run would spread in shorter windows. Errors as `write_request_table`."""
    evidence, large = await _evidence(engine, run_id, method)
    try:
        task = WindowStudyTask(evidence, tuple(lengths_s), target)
        return await pool.of_run(study_stored_window, task, run_id, large=large)
    except AggregationError as error:
        raise ProblemError(error.code, str(error)) from error


async def _evidence(engine: AsyncEngine, run_id: UUID, method: MethodVersion) -> tuple[AggregationTask, bool]:
    """Return the evidence of a run with the parameters of its newest result by the method, and whether it is large."""
    async with engine.connect() as connection:
        row = required(await queries.run_row(connection, run_id), IdKind.RUN, run_id)
        stored = None
        if row.attempt_id is not None:
            stored = await queries.latest_parameters(connection, run_id, row.attempt_id, method)
    parameters = AggregationParameters() if stored is None else AggregationParameters.model_validate(stored)
    attempt_id = _finished_attempt(row, parameters)
    large = await reading.rows_of(engine, attempt_id) >= LARGE_ROWS
    return AggregationTask(engine.url, row, attempt_id, parameters, method), large


async def _refuse(
    engine: AsyncEngine, run_id: UUID, row: queries.RunToAggregate, error: AggregationError, method: MethodVersion
) -> None:
    """Fail a completed run whose evidence can't be used; an aggregated run keeps its result."""
    if row.state != RunState.COMPLETED:
        return
    async with engine.begin() as connection:
        current = await queries.run_row(connection, run_id, lock=True)
        if current is None or current.state != RunState.COMPLETED or current.attempt_id != row.attempt_id:
            return
        await set_actor(connection, ActorKind.SERVER, f"aggregation {method}")
        await queries.fail_run(
            connection, run_id, reason=FailureReason.INVALID_EVIDENCE.value, message=str(error)[:4000]
        )


def _finished_attempt(row: queries.RunToAggregate, parameters: AggregationParameters) -> UUID:
    """Return the run's attempt with the evidence to aggregate."""
    if row.state in (RunState.COMPLETED, RunState.AGGREGATED) and row.attempt_id is not None:
        return row.attempt_id
    run = format_id(IdKind.RUN, row.run_id)
    # A run that failed for its evidence, in the worker or in aggregation, may be aggregated partially; it stays failed.
    if row.state == RunState.FAILED and row.reason == FailureReason.INVALID_EVIDENCE and row.attempt_id is not None:
        if parameters.allow_partial:
            return row.attempt_id
        raise ProblemError(
            ProblemCode.CONFLICT,
            f"{run} failed for its evidence; aggregate it with allow_partial to see the figures that remain.",
        )
    raise ProblemError(ProblemCode.CONFLICT, f"{run} is {row.state} and not completed; aggregate it when it is.")


def _require_its_device(row: queries.RunToAggregate, parameters: AggregationParameters) -> None:
    """Refuse calibrations of other devices than the run's, unless it used MIG instances: their GPU is unknown here."""
    leased = [(str(one["uuid"]), str(one["name"])) for one in row.devices or ()]
    wanted = [one.device for one in parameters.calibration or ()]
    named = {name for device in leased for name in device}
    if not wanted or named & set(wanted) or any(uuid.startswith("MIG-") for uuid, _ in leased):
        return
    listed = ", ".join(f"{uuid} ({name})" for uuid, name in leased)
    raise ProblemError(
        ProblemCode.VALIDATION,
        f"{format_id(IdKind.RUN, row.run_id)} used {listed}, and the calibration is of {', '.join(wanted)}; name a "
        "device of the run by its UUID or its whole model name.",
    )
