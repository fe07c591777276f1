"""CSV (RFC 4180, line feeds): texts in quotes, null as an empty field, and nothing that a spreadsheet would run."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.csv as arrow_csv

from lem_domain.spreadsheets import guarded
from lem_server.exports.formats import Format
from lem_server.exports.text_values import texts_changed, utc_texts


class _CsvWriter:
    def __init__(self, schema: pa.Schema) -> None:
        self._pending = _csv(_guarded(pa.RecordBatch.from_pylist([], schema)), with_header=True)

    def write(self, batch: pa.RecordBatch) -> bytes:
        taken, self._pending = self._pending, b""
        return taken + _csv(_guarded(batch), with_header=False)

    def finish(self) -> bytes:
        return self._pending


def _csv(batch: pa.RecordBatch, *, with_header: bool) -> bytes:
    sink = pa.BufferOutputStream()
    arrow_csv.write_csv(batch, sink, arrow_csv.WriteOptions(include_header=with_header))
    return bytes(sink.getvalue())


def _guarded(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = []
    for column in batch.columns:
        if pa.types.is_string(column.type):
            columns.append(texts_changed(column, guarded))
        elif pa.types.is_timestamp(column.type):
            columns.append(utc_texts(column))
        else:
            columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


FORMAT = Format("text/csv; charset=utf-8", _CsvWriter)
