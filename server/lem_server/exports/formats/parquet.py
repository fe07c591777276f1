"""Apache Parquet with zstd. The footer comes last: a file without it can't be opened."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from lem_server.exports.formats import Format, Sink

_ROWS = 16_384
"""Rows in a group, which is in memory until it is complete: some 10 MB."""


class _ParquetWriter:
    def __init__(self, schema: pa.Schema) -> None:
        self._sink = Sink()
        self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, "w"), schema, compression="zstd")
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> bytes:
        self._batches.append(batch)
        self._rows += batch.num_rows
        if self._rows >= _ROWS:
            self._write_group()
        return self._sink.take()

    def finish(self) -> bytes:
        if self._rows:
            self._write_group()
        self._writer.close()
        return self._sink.take()

    def _write_group(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._batches, self._schema), row_group_size=self._rows)
        self._batches.clear()
        self._rows = 0


FORMAT = Format("application/vnd.apache.parquet", _ParquetWriter)
