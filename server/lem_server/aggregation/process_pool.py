"""Runs aggregations in subprocesses, so that the event loop keeps answering requests.

A thread would share the interpreter's lock with the event loop; a subprocess reads the evidence over its own
database connection and returns the finished bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import pyarrow as pa
from sqlalchemy.engine import URL

from lem_domain.ids import IdKind, format_id
from lem_domain.results.method import MethodVersion
from lem_domain.results.run import RunResult
from lem_domain.results.window_study import WindowStudy
from lem_domain.wire.calibration import MeterLogOptions
from lem_server.aggregation import subprocess_setup
from lem_server.aggregation.calibration.evidence import fit_to_log
from lem_server.aggregation.identity import aggregate_key, canonical_bytes
from lem_server.aggregation.inputs import AggregationInput, AggregationParameters, ChunkSource
from lem_server.aggregation.queries import RunToAggregate
from lem_server.aggregation.request_table import RequestFormat, request_table, write_table
from lem_server.aggregation.result import aggregate
from lem_server.aggregation.stored_evidence import chunk_source, load_inputs
from lem_server.aggregation.window_study import window_study
from lem_server.database.engine import make_engine

Q = TypeVar("Q")
A = TypeVar("A")

AT_ONCE = 2
"""Aggregations in progress per server process; the others wait. A large one takes 350 MB."""
IDLE_S = 60.0
"""Idle subprocesses end after this time; each holds 110 to 190 MB."""
RUNS_PER_PROCESS = 100
"""A subprocess is replaced after this many runs, so that memory fragmentation stays bounded."""


class AggregationTask(NamedTuple):
    """A run to aggregate and the database that holds its evidence."""

    database: URL
    run: RunToAggregate
    attempt_id: UUID
    parameters: AggregationParameters
    method: MethodVersion


class RequestTableTask(NamedTuple):
    """A run whose table of requests is written to a file."""

    evidence: AggregationTask
    path: Path
    form: RequestFormat


class WindowStudyTask(NamedTuple):
    """A run of which windows of several lengths are studied."""

    evidence: AggregationTask
    lengths_s: tuple[float, ...]
    target: float


class Aggregate(NamedTuple):
    """A result's canonical bytes with the key and evidence digest that they are stored under."""

    key: bytes
    evidence_sha256: bytes
    body: bytes

    @classmethod
    def of(cls, result: RunResult) -> Aggregate:
        """Return what is stored of a result."""
        return cls(bytes.fromhex(aggregate_key(result)), bytes.fromhex(result.evidence_sha256), canonical_bytes(result))


class CalibrationTask(NamedTuple):
    """A meter's log to compare with a run's evidence."""

    evidence: AggregationTask
    log: bytes
    options: MeterLogOptions


class AggregationPool:
    """A bounded pool of low-priority subprocesses that aggregate runs.

    Small runs share subprocesses, because starting one takes longer than a small run. A large run gets a pool of one
    subprocess that ends with it and returns its memory.
    """

    def __init__(self) -> None:
        # Submissions never exceed the workers. A backlog would reach a defect of ProcessPoolExecutor: with
        # max_tasks_per_child it can hang (https://github.com/python/cpython/issues/115634, 3.11 to 3.15.0b3).
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._shared: ProcessPoolExecutor | None = None
        self._in_use = 0
        self._retirement: asyncio.TimerHandle | None = None

    async def aggregate(self, task: AggregationTask, *, large: bool) -> Aggregate:
        """Aggregate one run in a subprocess, as soon as one is free (see `of_run`)."""
        return await self.of_run(aggregate_stored_run, task, task.run.run_id, large=large)

    async def of_run(self, function: Callable[[Q], A], question: Q, run_id: UUID, *, large: bool) -> A:
        """Compute something of one run in a subprocess, as soon as one is free.

        Raises:
            AggregationError: the evidence can't be used.
            DBAPIError, OSError: the database is away.
            RuntimeError: the subprocess died, for example because memory ran out.
        """
        async with self._slots:
            if not large:
                # A shared pool breaks as a whole: the death of another run's subprocess, or of an idle one, is no
                # reason to fail this run.
                with contextlib.suppress(BrokenProcessPool):
                    return await self._in_shared_pool(function, question)
            try:
                return await self._alone(function, question)
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"the process that aggregated {format_id(IdKind.RUN, run_id)} died; "
                    "give the server more memory, and aggregate again."
                ) from error

    async def call(self, function: Callable[[Q], A], question: Q) -> A:
        """Compute something else of the same weight in a shared subprocess, as soon as one is free.

        Raises:
            RuntimeError: the subprocess died twice.
        """
        async with self._slots:
            with contextlib.suppress(BrokenProcessPool):
                return await self._in_shared_pool(function, question)
            try:
                return await self._in_shared_pool(function, question)
            except BrokenProcessPool as error:
                raise RuntimeError("the process that computed the answer died; give the server more memory.") from error

    def close(self) -> None:
        """End all subprocesses, also those that are aggregating."""
        self.retire()
        # Only this pool uses multiprocessing. Without the kill the interpreter would wait for running tasks at exit.
        # (Python 3.14 has ProcessPoolExecutor.kill_workers for it.)
        for process in multiprocessing.active_children():
            process.kill()

    def retire(self) -> None:
        """Let the shared subprocesses end once they are idle."""
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None
        if self._shared is not None:
            self._shared.shutdown(wait=False)
            self._shared = None

    async def _in_shared_pool(self, function: Callable[[Q], A], question: Q) -> A:
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None
        self._in_use += 1
        executor = self._shared = self._shared or _executor(AT_ONCE, max_tasks_per_child=RUNS_PER_PROCESS)
        try:
            return await submit(executor, function, question)
        except BrokenProcessPool:
            if self._shared is executor:
                self._shared = None
            raise
        finally:
            self._in_use -= 1
            if self._in_use == 0:
                self._retirement = asyncio.get_running_loop().call_later(IDLE_S, self.retire)

    async def _alone(self, function: Callable[[Q], A], question: Q) -> A:
        executor = _executor(1)
        try:
            return await submit(executor, function, question)
        finally:
            executor.shutdown(wait=False)


async def submit(executor: ProcessPoolExecutor, function: Callable[[Q], A], question: Q) -> A:
    """Start the function and wait for it. Only the event loop's thread may call this.

    `submit` starts subprocesses, and PR_SET_PDEATHSIG sends its signal when the *thread* that started them ends
    (prctl(2)); the event loop's thread lives as long as the server.
    """
    return await asyncio.wrap_future(executor.submit(function, question))


def aggregate_stored_run(task: AggregationTask) -> Aggregate:
    """Read a run's evidence from the database and aggregate it; runs in a subprocess."""
    with _stored(task) as (inputs, chunks):
        return Aggregate.of(aggregate(inputs, chunks))


def write_stored_requests(task: RequestTableTask) -> None:
    """Compute the table of a run's requests and write its file; runs in a subprocess."""
    with _stored(task.evidence) as (inputs, chunks):
        found = request_table(inputs, chunks)
    write_table(found, task.path, task.form)


def calibrate_from_stored_run(task: CalibrationTask) -> bytes:
    """Compare a meter's log with a run's evidence in the database; runs in a subprocess."""
    with _stored(task.evidence) as (inputs, chunks):
        return fit_to_log(inputs, chunks, task.log, task.options).model_dump_json().encode()


def study_stored_window(task: WindowStudyTask) -> WindowStudy:
    """Study windows of several lengths in a run's evidence; runs in a subprocess."""
    with _stored(task.evidence) as (inputs, chunks):
        return window_study(inputs, chunks, task.lengths_s, task.target)


@contextlib.contextmanager
def _stored(task: AggregationTask) -> Iterator[tuple[AggregationInput, ChunkSource]]:
    """Open the evidence of a run in the database."""
    pa.set_cpu_count(len(os.sched_getaffinity(0)))  # Arrow would start a thread for every processor of the machine
    # Reads only, one statement each: BEGIN and COMMIT would be two more round trips per chunk.
    engine = make_engine(task.database, pool_size=1).execution_options(isolation_level="AUTOCOMMIT")
    loop = asyncio.new_event_loop()

    def wait(function: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Any:
        return loop.run_until_complete(function(*arguments))

    try:
        inputs = wait(load_inputs, engine, task.run, task.attempt_id, task.parameters, task.method)
        yield inputs, chunk_source(engine, task.attempt_id, wait)
    finally:
        wait(engine.dispose)
        loop.close()


def _executor(processes: int, *, max_tasks_per_child: int | None = None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),  # a fork would copy the event loop's threads' locks
        initializer=subprocess_setup.begin,
        initargs=(os.getpid(),),
        max_tasks_per_child=max_tasks_per_child,
    )
