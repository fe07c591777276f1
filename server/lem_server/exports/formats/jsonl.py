"""JSON lines: one object per row, with null for what is missing."""

from __future__ import annotations

import json
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from lem_server.exports.formats import Format
from lem_server.exports.text_values import texts_changed, utc_texts

_text = partial(json.dumps, ensure_ascii=False)


def json_lines(batch: pa.RecordBatch) -> bytes:
    """Return the rows as objects, each followed by the end of a line."""
    if not batch.num_rows:
        return b""
    parts: list[object] = []
    begin = "{"
    for field, column in zip(batch.schema, batch.columns, strict=True):
        parts += [f"{begin}{_text(field.name)}:", _values(column)]
        begin = ","
    lines = pc.binary_join_element_wise(*parts, "}\n", "")
    offsets, data = (memoryview(buffer) for buffer in lines.buffers()[1:])
    ends = offsets.cast("i")
    return bytes(data[ends[lines.offset] : ends[lines.offset + len(lines)]])


def _values(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        texts = texts_changed(column, _text)
    elif pa.types.is_timestamp(column.type):
        texts = texts_changed(utc_texts(column), _text)
    elif pa.types.is_floating(column.type):
        # JSON has no number for what is not finite.
        texts = pc.if_else(pc.is_finite(column), column, None).cast(pa.string())
    else:
        texts = column.cast(pa.string())
    return texts.fill_null("null")


class _JsonLinesWriter:
    def __init__(self, _schema: pa.Schema) -> None:
        pass

    def write(self, batch: pa.RecordBatch) -> bytes:
        return json_lines(batch)

    def finish(self) -> bytes:
        return b""


FORMAT = Format("application/jsonl", _JsonLinesWriter)
