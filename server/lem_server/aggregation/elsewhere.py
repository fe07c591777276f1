"""Aggregates in a process of its own, so that a large run neither holds up the server's answers, as a thread of the
same interpreter would, nor leaves its memory there.

The process is `python -m lem_server.aggregation`. It is handed the task on its standard input, reads facts and chunks
over a connection of its own, and says the result or the error on its standard output; what is said is pickled, between
a process and its own child. It ends too when its parent is gone. Everybody else comes first (see `priority`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import IO, Any, NamedTuple
from uuid import UUID

import psutil
import pyarrow as pa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.ids import IdKind, format_id
from lem_server.aggregation import queries
from lem_server.aggregation.computing import Computed, compute
from lem_server.aggregation.inputs import AggregationParameters
from lem_server.aggregation.priority import let_others_go_first
from lem_server.aggregation.stored import stored_chunks, stored_inputs
from lem_server.database.engine import make_engine


class Task(NamedTuple):
    """What is to be aggregated, and where it is stored."""

    database: URL
    run: queries.RunRow
    attempt_id: UUID
    parameters: AggregationParameters


def compute_elsewhere(task: Task) -> Computed:
    """What `compute` gives of what the database holds, byte for byte. Blocks.

    Raises:
        AggregationError: the evidence can't be used.
        DBAPIError, OSError: the database is away.
        RuntimeError: the process died, for example because memory ran out.
    """
    command = [sys.executable, "-m", "lem_server.aggregation"]
    # A session of its own: a Ctrl-C that is meant for the server lets what it answers end first.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        let_others_go_first(process.pid)
        to, back = _pipe(process.stdin), _pipe(process.stdout)
        with contextlib.suppress(BrokenPipeError):
            to.write(pickle.dumps(task))
            to.flush()
        said = back.read()
        if not said:
            raise RuntimeError(
                f"the process that aggregated {format_id(IdKind.RUN, task.run.run_id)} ended with {process.wait()}; "
                "give the server more memory, and aggregate again."
            )
    outcome: Computed | Exception = pickle.loads(said)  # noqa: S301 - from a process and its own child only
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def answer() -> None:
    """The other end: compute what standard input says, and say the result on standard output."""
    pa.set_cpu_count(len(os.sched_getaffinity(0)))
    said = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not be taken for an answer
    try:
        task: Task = pickle.load(sys.stdin.buffer)  # noqa: S301 - from a process to its own child only
    except EOFError:
        return  # the parent is gone
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcome: Computed | Exception = _compute(task)
    except Exception as error:
        outcome = error
    said.write(pickle.dumps(outcome))
    said.flush()


def _end_with_parent() -> None:
    """Nothing more is said on standard input, so its end is the parent's."""
    os.read(sys.stdin.fileno(), 1)  # not the buffered reader: Python's end would wait for it
    os._exit(1)


def _compute(task: Task) -> Computed:
    # Only reads, one statement each: begin and end would be two more turns of the database for each chunk.
    engine = make_engine(task.database, pool_size=1).execution_options(isolation_level="AUTOCOMMIT")
    loop = asyncio.new_event_loop()

    def wait(function: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Any:
        return loop.run_until_complete(function(*arguments))

    try:
        wait(_keep_the_database_beside, engine)
        inputs = wait(stored_inputs, engine, task.run, task.attempt_id, task.parameters)
        return compute(inputs, stored_chunks(engine, task.attempt_id, wait))
    finally:
        wait(engine.dispose)
        loop.close()


async def _keep_the_database_beside(engine: AsyncEngine) -> None:
    """Where the database's process that reads for this one is on this machine, it leaves the same processor alone."""
    async with engine.connect() as connection:
        pid = await queries.own_backend(connection)
    with contextlib.suppress(psutil.Error, OSError):
        backend = psutil.Process(pid)
        # On another machine, or in another container, its number is nobody's here, or somebody else's.
        if backend.name() == "postgres" and f" {engine.url.database} " in " ".join(backend.cmdline()):
            os.sched_setaffinity(pid, os.sched_getaffinity(0))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise BrokenPipeError
    return pipe
