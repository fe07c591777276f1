"""Encodes and decodes evidence chunks as Arrow IPC. Needs pyarrow, which the client does not install."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import pyarrow as pa

from lem_domain.errors import LemError
from lem_domain.evidence.arrow_size import MalformedStream, declared_bytes
from lem_domain.evidence.streams import (
    ADDED_COLUMNS,
    MAX_CHUNK_DECODED_BYTES,
    MAX_CHUNK_RATIO,
    STREAM_VERSION,
    STREAMS,
    StreamName,
)

_TYPES: dict[str, pa.DataType] = {
    "int64": pa.int64(),
    "int32": pa.int32(),
    "float64": pa.float64(),
    "string": pa.string(),
}


class ChunkError(LemError):
    """A body is not a valid chunk of its stream."""


class ChunkTooLarge(ChunkError):
    """A chunk decodes to more bytes than allowed."""


@cache
def arrow_schema(stream: StreamName) -> pa.Schema:
    """Return the Arrow schema of a stream, with its version in the metadata."""
    return pa.schema(
        [pa.field(column.name, _TYPES[column.type], nullable=column.nullable) for column in STREAMS[stream]],
        metadata={"lem.stream": stream.value, "lem.version": str(STREAM_VERSION)},
    )


@cache
def _older_schema(stream: StreamName) -> pa.Schema:
    """The schema without the columns that were added later; that of a stream without any is unchanged."""
    added = ADDED_COLUMNS.get(stream, frozenset())
    return pa.schema([field for field in arrow_schema(stream) if field.name not in added])


def encode_chunk(stream: StreamName, columns: Mapping[str, Sequence[object]]) -> bytes:
    """Encode columns of equal length (lists, tuples or NumPy arrays) as one chunk.

    Raises:
        ChunkError: a column is missing, unknown, or has values of a wrong type.
    """
    schema = arrow_schema(stream)
    if set(columns) != set(schema.names):
        raise ChunkError(f"stream {stream.value} has the columns {', '.join(schema.names)}, not {', '.join(columns)}.")
    try:
        arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        batch.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, OverflowError) as error:
        raise ChunkError(f"stream {stream.value} can't hold these values: {error}.") from error
    for field, array in zip(schema, arrays, strict=True):
        if array.null_count and not field.nullable:
            raise ChunkError(f"column {field.name} of stream {stream.value} must not hold nulls.")
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def preload() -> None:
    """Encode a chunk once, so that Arrow's first-use imports don't fall into a measurement.

    Arrow looks for pandas at its first chunk, whose import takes 0.25 s.
    """
    encode_chunk(StreamName.EVENTS, {"time_ns": [0], "kind": ["ready"], "detail": [None]})


def decode_chunk(stream: StreamName, body: bytes) -> pa.Table:
    """Decode a chunk and check its size, schema, version and nulls.

    Raises:
        ChunkTooLarge: it decodes to more than 32 MiB or to more than 1,000 times its size.
        ChunkError: it is not an Arrow stream, has another schema, or a null in a column without nulls.
    """
    limit = min(MAX_CHUNK_DECODED_BYTES, MAX_CHUNK_RATIO * max(len(body), 1024))
    expected = arrow_schema(stream)
    batches: list[pa.RecordBatch] = []
    try:
        if declared_bytes(body) > limit:
            raise ChunkTooLarge(f"the chunk decodes to more than {limit} bytes; send smaller chunks.")
        with pa.ipc.open_stream(pa.BufferReader(body)) as reader:
            if not reader.schema.equals(expected, check_metadata=False) and not reader.schema.equals(
                _older_schema(stream), check_metadata=False
            ):
                raise ChunkError(
                    f"the chunk's columns are not those of stream {stream.value} version {STREAM_VERSION}: "
                    f"{', '.join(expected.names)}."
                )
            version = (reader.schema.metadata or {}).get(b"lem.version", b"").decode(errors="replace")
            if version != str(STREAM_VERSION):
                raise ChunkError(f"the chunk has version {version!r}, but this server reads version {STREAM_VERSION}.")
            for batch in reader:
                batch.validate(full=True)
                batches.append(batch)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OSError, MalformedStream) as error:
        raise ChunkError(f"the body is not a readable Arrow IPC stream: {error}.") from error
    table = pa.Table.from_batches(batches) if batches else expected.empty_table()
    for position, field in enumerate(expected):
        if field.name not in table.column_names:
            table = table.add_column(position, field, pa.nulls(table.num_rows, field.type))
    table = table.cast(expected)
    for field in expected:
        if not field.nullable and table.column(field.name).null_count:
            raise ChunkError(f"column {field.name} of stream {stream.value} must not hold nulls.")
    return table
