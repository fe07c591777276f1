"""A single chunk: its key, and the check of its rows before it is stored. Pure; runs in a thread."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from lem_domain.evidence.codec import ChunkError, decode_chunk
from lem_domain.evidence.streams import StreamName

_TIME_COLUMN = {
    StreamName.REQUESTS: "arrival_ns",
    StreamName.TOKENS: "time_ns",
    StreamName.POWER: "time_ns",
    StreamName.HOST_POWER: "time_ns",
    StreamName.PHASES: "time_ns",
    StreamName.EVENTS: "time_ns",
}

_ORDERED = frozenset({StreamName.POWER, StreamName.HOST_POWER, StreamName.PHASES, StreamName.EVENTS})
"""Streams that a single loop writes, so that their times never decrease; requests and tokens interleave."""


class ChunkKey(NamedTuple):
    """The primary key of a chunk."""

    attempt_id: UUID
    process: str
    stream: StreamName
    seq: int

    def __str__(self) -> str:
        """Name the chunk within its attempt."""
        return f"chunk {self.seq} of {self.process}/{self.stream.value}"


class ChunkFacts(NamedTuple):
    """The values that are stored with a chunk's body."""

    rows: int
    t_min_ns: int | None
    t_max_ns: int | None


def check_chunk(stream: StreamName, body: bytes) -> ChunkFacts:
    """Decode a chunk and check its values.

    Raises:
        ChunkTooLarge: see `decode_chunk`.
        ChunkError: the body or one of its values is invalid.
    """
    table = decode_chunk(stream, body)
    if table.num_rows == 0:
        raise ChunkError("the chunk has no rows; do not send empty chunks.")
    times = table.column(_TIME_COLUMN[stream])
    bounds = pc.min_max(times).as_py()
    if bounds["min"] < 0:
        raise ChunkError(f"column {_TIME_COLUMN[stream]} has a negative time.")
    if stream in _ORDERED and not _is_ascending(times):
        raise ChunkError(f"the times of stream {stream.value} decrease; send its rows in order.")
    if stream is StreamName.REQUESTS:
        _check_requests(table)
    return ChunkFacts(table.num_rows, bounds["min"], bounds["max"])


def _is_ascending(times: pa.ChunkedArray) -> bool:
    flat = times.combine_chunks()
    if len(flat) < 2:
        return True
    return bool(pc.all(pc.less_equal(flat.slice(0, len(flat) - 1), flat.slice(1))).as_py())


def _check_requests(table: pa.Table) -> None:
    for earlier, later in (
        ("arrival_ns", "scheduled_ns"),
        ("arrival_ns", "first_token_ns"),
        ("first_token_ns", "last_token_ns"),
    ):
        ordered = pc.all(pc.less_equal(table.column(earlier), table.column(later))).as_py()
        if ordered is False:
            raise ChunkError(f"the {later} of a request is before its {earlier}.")
    for name in ("prompt_tokens", "generated_tokens"):
        if pc.min(table.column(name)).as_py() < 0:
            raise ChunkError(f"column {name} has a negative count.")
