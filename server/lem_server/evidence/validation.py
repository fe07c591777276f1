"""Whether a chunk's rows make sense on their own: pure, run in a thread, before anything is stored."""

from __future__ import annotations

from typing import NamedTuple

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
"""Written by one loop each, so their times never go back; requests and tokens interleave."""


class ChunkFacts(NamedTuple):
    """What is stored beside a chunk's body."""

    rows: int
    t_min_ns: int | None
    t_max_ns: int | None


def check_chunk(stream: StreamName, body: bytes) -> ChunkFacts:
    """Decode a chunk and check its values.

    Raises:
        ChunkTooLarge: see `decode_chunk`.
        ChunkError: the body or its values are wrong; says which.
    """
    table = decode_chunk(stream, body)
    if table.num_rows == 0:
        raise ChunkError("the chunk has no rows; send none instead.")
    times = table.column(_TIME_COLUMN[stream])
    bounds = pc.min_max(times).as_py()
    if bounds["min"] < 0:
        raise ChunkError(f"column {_TIME_COLUMN[stream]} holds a negative time.")
    if stream in _ORDERED and not _never_falls(times):
        raise ChunkError(f"the times of stream {stream.value} go back; send its rows in order.")
    if stream is StreamName.REQUESTS:
        _check_requests(table)
    return ChunkFacts(table.num_rows, bounds["min"], bounds["max"])


def _never_falls(times: pa.ChunkedArray) -> bool:
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
            raise ChunkError(f"a request has its {later} before its {earlier}.")
    for name in ("prompt_tokens", "generated_tokens"):
        if pc.min(table.column(name)).as_py() < 0:
            raise ChunkError(f"column {name} holds a negative count.")
