"""Aggregates in a process of its own, so that a large run neither holds up the server's answers, as a thread of the
same interpreter would, nor leaves its memory there.

The process is `python -m lem_server.aggregation`. It is handed the facts on its standard input, asks on its standard
output for one chunk after the other, and ends with the result or the error; what is said is pickled, between a process
and its own child. It ends too when its parent is gone. Everybody else comes first: it has a low priority, and leaves a
processor alone where there are several.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa

from lem_domain.evidence import StreamName
from lem_server.aggregation.computing import Computed, compute
from lem_server.aggregation.inputs import AggregationInput, ChunkSource

LARGE_ROWS = 200_000
"""Fewer rows are computed sooner than a process has imported what it needs."""


def is_large(inputs: AggregationInput) -> bool:
    """Whether a process of its own is worth its start."""
    return sum(chunk.rows for view in inputs.held for chunk in view.chunks) >= LARGE_ROWS


def compute_elsewhere(inputs: AggregationInput, source: ChunkSource) -> Computed:
    """What `compute` gives, byte for byte. Blocks; the source is asked in the caller's thread.

    Raises:
        AggregationError: the evidence can't be used.
        RuntimeError: the process died, for example because memory ran out.
    """
    command = [sys.executable, "-m", "lem_server.aggregation"]
    # A session of its own: a Ctrl-C that is meant for the server lets what it answers end first.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            return _converse(process, inputs, source)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            process.kill()
            raise RuntimeError(
                f"the process that aggregated {inputs.run_id} ended with {process.wait()}; "
                "give the server more memory, and aggregate again."
            ) from error
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                _pipe(process.stdin).close()


def answer() -> None:
    """The other end: compute what standard input says, and say the result on standard output."""
    pa.set_cpu_count(max(1, len(os.sched_getaffinity(0)) - 1))
    said = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever prints must not be taken for an answer
    heard = sys.stdin.buffer

    def source(process: str, stream: StreamName) -> Iterator[tuple[int, bytes]]:
        while True:
            _tell(said, ("next", process, stream))
            found = _hear(heard)
            if found is None:
                return
            yield found

    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent is gone
        inputs = _hear(heard)
        try:
            computed = compute(inputs, source)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:
            _tell(said, ("failed", error))
        else:
            _tell(said, ("computed", computed))


def _converse(process: subprocess.Popen[bytes], inputs: AggregationInput, source: ChunkSource) -> Computed:
    to, back = _pipe(process.stdin), _pipe(process.stdout)
    _tell(to, inputs)
    asked: tuple[str, StreamName] | None = None
    chunks: Iterator[tuple[int, bytes]] = iter(())
    while True:
        match _hear(back):
            case ("next", process_name, stream):
                if asked != (process_name, stream):
                    asked, chunks = (process_name, stream), iter(source(process_name, stream))
                _tell(to, next(chunks, None))
            case ("computed", computed):
                return Computed(*computed)
            case ("failed", Exception() as error):
                raise error
            case other:
                raise pickle.UnpicklingError(f"{other!r} is no answer")


def _tell(pipe: IO[bytes], what: object) -> None:
    pickle.dump(what, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _hear(pipe: IO[bytes]) -> Any:
    return pickle.load(pipe)  # noqa: S301 - from a process and its own child only


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise BrokenPipeError
    return pipe
