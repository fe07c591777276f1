"""Aggregates in a process of its own, so that it does not hold up the server's answers, as a thread of the same
interpreter would.

The process is `python -m lem_server.aggregation`. It is handed a task on its standard input, reads facts and chunks
over a connection of its own, and says the result or the error on its standard output; what is said is pickled, between
a process and its own child. After a small run it waits for another task, as beginning takes longer than such a run. It
ends with its parent, and everybody else comes first (see `priority`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import pickle
import select
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
from lem_server.aggregation.canonical_result import Computed, compute
from lem_server.aggregation.database_input import stored_chunks, stored_inputs
from lem_server.aggregation.inputs import AggregationParameters
from lem_server.aggregation.priority import let_others_go_first
from lem_server.database.engine import make_engine

IDLE_S = 60.0
"""So long a process waits for another task; it holds 110 to 190 MB meanwhile."""

_idle: list[subprocess.Popen[bytes]] = []
_lock = threading.Lock()


class Task(NamedTuple):
    """What is to be aggregated, and where it is stored."""

    database: URL
    run: queries.RunRow
    attempt_id: UUID
    parameters: AggregationParameters


def compute_elsewhere(task: Task, *, keep: bool) -> Computed:
    """What `compute` gives of what the database holds, byte for byte. Blocks.

    With `keep` it is one that waits for a task, and waits for another one then; else it is a new one that ends, and the
    memory of a large run with it.

    Raises:
        AggregationError: the evidence can't be used.
        DBAPIError, OSError: the database is away.
        RuntimeError: the process died, for example because memory ran out.
    """
    process = _waiting() if keep else None
    outcome = None if process is None else _asked(process, task)
    if process is None or outcome is None:  # one that had waited too long ends by itself
        process = _started()
        outcome = _asked(process, task)
    if outcome is None:
        raise RuntimeError(
            f"the process that aggregated {format_id(IdKind.RUN, task.run.run_id)} ended with {process.wait()}; "
            "give the server more memory, and aggregate again."
        )
    if keep:
        with _lock:
            _idle.append(process)
    else:
        _end(process)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def end_waiting() -> None:
    """End the processes that wait for a task."""
    while (process := _waiting()) is not None:
        _end(process)


atexit.register(end_waiting)


def _waiting() -> subprocess.Popen[bytes] | None:
    with _lock:
        return _idle.pop() if _idle else None


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lem_server.aggregation"]
    # A session of its own: a Ctrl-C that is meant for the server lets what it answers end first.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    let_others_go_first(process.pid)
    return process


def _asked(process: subprocess.Popen[bytes], task: Task) -> Computed | Exception | None:
    """What it answers; None where it has ended instead."""
    try:
        to, back = _pipe(process.stdin), _pipe(process.stdout)
        pickle.dump(task, to)
        to.flush()
        outcome: Computed | Exception = pickle.load(back)  # noqa: S301 - from a process and its own child only
    except (BrokenPipeError, EOFError, pickle.UnpicklingError):
        _end(process)
        return None
    except BaseException:
        process.kill()
        _end(process)
        raise
    return outcome


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError), process:  # closes its pipes and waits for it
        pass


def answer() -> None:
    """The other end: compute what standard input says, and say the result on standard output, until nothing comes."""
    pa.set_cpu_count(len(os.sched_getaffinity(0)))
    said = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not be taken for an answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while select.select([sys.stdin], [], [], IDLE_S)[0]:
        try:
            task: Task = pickle.load(sys.stdin.buffer)  # noqa: S301 - from a process to its own child only
        except EOFError:
            return  # the parent is gone, or needs no more
        said.write(_answered(task))
        said.flush()


def _answered(task: Task) -> bytes:
    try:
        outcome: Computed | Exception = _compute(task)
    except Exception as error:
        outcome = error
    return pickle.dumps(outcome)


def _end_with_parent() -> None:
    """The other end of standard input is closed, also while a task is computed."""
    hung_up = select.poll()
    hung_up.register(sys.stdin, 0)
    hung_up.poll()
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
