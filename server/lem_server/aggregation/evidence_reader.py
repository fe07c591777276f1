"""Reads stored chunks stream by stream, verifies every digest, and decodes rows in chunk order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lem_domain.evidence.codec import ChunkError, arrow_schema, decode_chunk
from lem_domain.evidence.streams import StreamName
from lem_domain.wire.runs import ChunkView, StreamView
from lem_server.aggregation.errors import EvidenceCorrupt, EvidenceInvalid, EvidenceMissing, MissingPart
from lem_server.aggregation.identity import evidence_digest
from lem_server.aggregation.inputs import ChunkSource

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_Use = Callable[[ChunkView, bytes], None]

NULL = np.iinfo(np.int64).min
"""Marks null in integer columns; no clock, counter or count of LEM reaches it."""


class EvidenceReader:
    """Reads the streams of one attempt one at a time, and records what was verified and what was missing."""

    def __init__(self, held: Sequence[StreamView], source: ChunkSource, *, allow_partial: bool) -> None:
        self._held = {(view.process, view.stream): view for view in held if view.chunks}
        self._source = source
        self._allow_partial = allow_partial
        self._verified: dict[tuple[str, StreamName], tuple[ChunkView, ...]] = {}
        self._missing: list[MissingPart] = []

    @property
    def missing(self) -> tuple[MissingPart, ...]:
        """Recorded chunks that the source did not return (only with allow_partial; else reading raised)."""
        return tuple(self._missing)

    def evidence_sha256(self) -> str:
        """Return the digest over the chunks verified so far (see `evidence_digest`)."""
        return evidence_digest(
            (process, stream.value, chunk.seq, chunk.sha256)
            for (process, stream), chunks in self._verified.items()
            for chunk in chunks
        )

    def processes_with(self, stream: StreamName) -> tuple[str, ...]:
        """Return the processes with stored chunks of this stream, sorted as text."""
        return tuple(sorted(process for process, name in self._held if name is stream))

    def rows(self, process: str, stream: StreamName) -> int:
        """Return the number of rows of a stream, as recorded at its arrival; 0 if nothing is stored."""
        view = self._held.get((process, stream))
        return sum(chunk.rows for chunk in view.chunks) if view is not None else 0

    def read(self, process: str, stream: StreamName, columns: Sequence[str]) -> pa.Table:
        """Read columns of one stream, its chunks in the order of their numbers; no rows if nothing is stored.

        Raises:
            EvidenceCorrupt: a body's SHA-256 is not the recorded one.
            EvidenceMissing: a recorded chunk is missing (unless partial evidence is allowed).
            EvidenceInvalid: a body with the right digest can't be decoded or has another number of rows.
        """
        tables: dict[int, pa.Table] = {}

        def decode(chunk: ChunkView, body: bytes) -> None:
            tables[chunk.seq] = _rows(process, stream, chunk, body).select(list(columns))

        self._verify(process, stream, decode)
        schema = pa.schema([arrow_schema(stream).field(name) for name in columns])
        if not tables:
            return schema.empty_table()
        return pa.concat_tables([tables[seq].replace_schema_metadata(None) for seq in sorted(tables)])

    def verify_rest(self) -> None:
        """Verify the digests of every stored stream that was not read.

        Raises:
            EvidenceCorrupt: a body's SHA-256 is not the recorded one.
            EvidenceMissing: a recorded chunk is missing (unless partial evidence is allowed).
        """
        for process, stream in sorted(set(self._held) - set(self._verified)):
            self._verify(process, stream, lambda _chunk, _body: None)

    def _verify(self, process: str, stream: StreamName, use: _Use) -> None:
        view = self._held.get((process, stream))
        if view is None:
            return
        recorded = {chunk.seq: chunk for chunk in view.chunks}
        seen: dict[int, ChunkView] = {}
        for seq, body in self._source(process, stream):
            chunk = recorded.get(seq)
            if chunk is None:
                raise EvidenceCorrupt(process, stream.value, seq)
            _require_digest(process, stream, chunk, body)
            use(chunk, body)
            seen[seq] = chunk
        self._verified[process, stream] = tuple(seen.values())
        absent = tuple(sorted(set(recorded) - set(seen)))
        if absent:
            part = MissingPart("chunks", process, stream.value, absent)
            if not self._allow_partial:
                raise EvidenceMissing([part])
            self._missing.append(part)


def verified_rows(process: str, stream: StreamName, chunk: ChunkView, body: bytes) -> pa.Table:
    """Return the rows of one chunk after the checks of `EvidenceReader.read`.

    Raises:
        EvidenceCorrupt, EvidenceInvalid: see there.
    """
    _require_digest(process, stream, chunk, body)
    return _rows(process, stream, chunk, body)


def _require_digest(process: str, stream: StreamName, chunk: ChunkView, body: bytes) -> None:
    if hashlib.sha256(body).hexdigest() != chunk.sha256:
        raise EvidenceCorrupt(process, stream.value, chunk.seq)


def _rows(process: str, stream: StreamName, chunk: ChunkView, body: bytes) -> pa.Table:
    try:
        table = decode_chunk(stream, body)
    except ChunkError as error:
        raise EvidenceInvalid(f"chunk {chunk.seq} of {stream.value} of {process}: {error}") from error
    if table.num_rows != chunk.rows:
        raise EvidenceInvalid(
            f"chunk {chunk.seq} of {stream.value} of {process} holds {table.num_rows} rows where {chunk.rows} "
            "were recorded; run the experiment again."
        )
    return table


def integers(table: pa.Table, name: str) -> IntArray:
    """Return an integer column as int64, with `NULL` for null."""
    column = table.column(name).cast(pa.int64())
    if column.null_count:
        column = column.fill_null(NULL)
    values: IntArray = column.to_numpy()
    return values
