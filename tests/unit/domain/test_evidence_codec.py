"""Chunks: what goes in comes out, and nothing else gets through."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_domain.evidence.arrow_size import declared_bytes
from lem_domain.evidence.codec import ChunkError, ChunkTooLarge, arrow_schema, decode_chunk, encode_chunk
from lem_domain.evidence.streams import ADDED_COLUMNS, STREAM_VERSION, STREAMS, StreamName, digest_of_digests

TOKENS = {"request_id": [1, 2], "index": [0, 1], "time_ns": [5, 6]}


@given(st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**31 - 1), st.integers(0, 2**62)), min_size=1))
def test_tokens_come_back_as_they_went_in(rows: list[tuple[int, int, int]]) -> None:
    columns = dict(zip(("request_id", "index", "time_ns"), map(list, zip(*rows, strict=True)), strict=True))
    assert decode_chunk(StreamName.TOKENS, encode_chunk(StreamName.TOKENS, columns)).to_pydict() == columns


def test_the_same_rows_make_the_same_bytes() -> None:
    assert encode_chunk(StreamName.TOKENS, TOKENS) == encode_chunk(StreamName.TOKENS, TOKENS)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"request_id": [1]}, "has the columns"),
        ({**TOKENS, "extra": [1, 2]}, "has the columns"),
        ({**TOKENS, "index": [0]}, "can't hold"),
        ({**TOKENS, "index": [0, 2**40]}, "can't hold"),
        ({**TOKENS, "time_ns": [None, 1]}, "must not hold nulls"),
    ],
)
def test_wrong_columns_are_refused(columns: dict[str, list[int]], says: str) -> None:
    with pytest.raises(ChunkError, match=says):
        encode_chunk(StreamName.TOKENS, columns)


def test_another_streams_chunk_is_refused() -> None:
    with pytest.raises(ChunkError, match="not those of stream power"):
        decode_chunk(StreamName.POWER, encode_chunk(StreamName.TOKENS, TOKENS))


@pytest.mark.parametrize("stream", ADDED_COLUMNS)
def test_a_chunk_from_before_a_column_was_added_has_nulls_in_it(stream: StreamName) -> None:
    added = ADDED_COLUMNS[stream]
    columns: dict[str, list[Any]] = {
        column.name: [None if column.nullable else 1 if column.type != "string" else "a"] for column in STREAMS[stream]
    }
    whole = decode_chunk(stream, encode_chunk(stream, columns))
    with pa.ipc.open_stream(encode_chunk(stream, columns)) as reader:
        batch = reader.read_all().drop_columns(sorted(added)).to_batches()[0]
    older = batch.replace_schema_metadata({"lem.stream": stream.value, "lem.version": str(STREAM_VERSION)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, older.schema) as writer:
        writer.write_batch(older)
    assert decode_chunk(stream, bytes(sink.getvalue())) == whole
    assert all(column.nullable for column in STREAMS[stream] if column.name in added)
    # One of them alone is no older schema.
    partly = pa.table(columns, schema=arrow_schema(stream)).drop_columns([min(added)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, partly.schema) as writer:
        writer.write_table(partly)
    with pytest.raises(ChunkError, match="columns"):
        decode_chunk(stream, bytes(sink.getvalue()))


def test_another_version_is_refused() -> None:
    schema = arrow_schema(StreamName.TOKENS).with_metadata({"lem.version": "2"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pydict(TOKENS, schema=schema))
    with pytest.raises(ChunkError, match="version '2'"):
        decode_chunk(StreamName.TOKENS, bytes(sink.getvalue()))


def test_a_compression_bomb_is_refused_before_it_is_decoded() -> None:
    n = 2_000_000
    zeros = np.zeros(n, dtype=np.int64)
    bomb = encode_chunk(StreamName.TOKENS, {"request_id": zeros, "index": zeros.astype(np.int32), "time_ns": zeros})
    assert declared_bytes(bomb) >= 20 * n
    allocated = pa.total_allocated_bytes()
    with pytest.raises(ChunkTooLarge):
        decode_chunk(StreamName.TOKENS, bomb)
    assert pa.total_allocated_bytes() - allocated < 2**20


def test_declared_size_is_what_decoding_takes() -> None:
    rng = np.random.default_rng(0)
    n = 10_000
    body = encode_chunk(
        StreamName.TOKENS,
        {
            "request_id": np.arange(n) // 100,
            "index": (np.arange(n) % 100).astype(np.int32),
            "time_ns": np.cumsum(rng.integers(1, 10**7, n)),
        },
    )
    assert declared_bytes(body) == decode_chunk(StreamName.TOKENS, body).nbytes


def test_broken_bodies_are_refused_and_never_crash() -> None:
    body = encode_chunk(StreamName.EVENTS, {"time_ns": [5, 6], "kind": ["a", "b"], "detail": [None, "{}"]})
    for end in range(len(body)):
        with pytest.raises(ChunkError):
            decode_chunk(StreamName.EVENTS, body[:end])
    rng = random.Random(1)
    for _ in range(2000):
        mutated = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        try:
            decode_chunk(StreamName.EVENTS, bytes(mutated))
        except ChunkError:
            continue


def test_every_stream_has_a_time_and_unique_columns() -> None:
    for columns in STREAMS.values():
        names = [column.name for column in columns]
        assert len(set(names)) == len(names)
        assert {"time_ns", "arrival_ns"} & set(names)


def test_the_digest_of_digests_depends_on_order() -> None:
    assert digest_of_digests(["00" * 32, "11" * 32]) != digest_of_digests(["11" * 32, "00" * 32])


def test_a_ready_process_imports_nothing_at_the_first_chunk() -> None:
    script = """
import sys
from lem_domain.evidence.streams import StreamName
from lem_domain.evidence.codec import preload, encode_chunk
preload()
before = set(sys.modules)
encode_chunk(StreamName.TOKENS, {"request_id": [1], "index": [0], "time_ns": [5]})
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
