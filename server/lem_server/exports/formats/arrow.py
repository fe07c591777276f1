"""An Arrow IPC file with zstd, not a stream: readers take a stream without its end for a whole one, but refuse a file
without its footer."""

from __future__ import annotations

import pyarrow as pa

from lem_server.exports.formats import Format, Sink


class _ArrowWriter:
    def __init__(self, schema: pa.Schema) -> None:
        self._sink = Sink()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, "w"), schema, options=options)

    def write(self, batch: pa.RecordBatch) -> bytes:
        self._writer.write_batch(batch)
        return self._sink.take()

    def finish(self) -> bytes:
        self._writer.close()
        return self._sink.take()


FORMAT = Format("application/vnd.apache.arrow.file", _ArrowWriter)
