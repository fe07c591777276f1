"""One JSON document: metadata, the columns with their units, and the rows as objects."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pyarrow as pa

from lem_server.exports.formats import Format
from lem_server.exports.formats.jsonl import json_lines
from lem_server.exports.table_columns import METADATA


class _JsonWriter:
    def __init__(self, schema: pa.Schema) -> None:
        metadata = {name.removeprefix(METADATA): value for name, value in _texts(schema.metadata).items()}
        columns = [{"name": field.name, "type": str(field.type), **_texts(field.metadata)} for field in schema]
        head = json.dumps({**metadata, "columns": columns}, ensure_ascii=False)
        self._pending = f'{head[:-1]}, "rows": ['.encode()
        self._separator = b"\n"

    def write(self, batch: pa.RecordBatch) -> bytes:
        taken, self._pending = self._pending, b""
        if not batch.num_rows:
            return taken
        # No text has a line feed in it: JSON escapes them.
        rows = json_lines(batch)[:-1].replace(b"\n", b",\n")
        taken += self._separator + rows
        self._separator = b",\n"
        return taken

    def finish(self) -> bytes:
        return self._pending + b"\n]}\n"


def _texts(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in metadata.items()}


FORMAT = Format("application/json", _JsonWriter)
