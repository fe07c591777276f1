"""Exported tables read back, each format by a library that knows nothing of LEM."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]


def read_table(form: str, content: bytes, types: Mapping[str, str]) -> Rows:
    """The rows of a document; `types` are the Arrow types of the columns, which CSV and JSON do not have."""
    return _READERS[form](content, types)


def _columns(table: pa.Table) -> Rows:
    times = {field.name for field in table.schema if pa.types.is_timestamp(field.type)}
    columns = {name: table[name].cast(pa.int64()) if name in times else table[name] for name in table.schema.names}
    return pa.table(columns).to_pylist()  # type: ignore[no-any-return]


def _csv(content: bytes, types: Mapping[str, str]) -> Rows:
    # csv.reader does not distinguish an empty text from null; no column of a table has empty texts.
    return [
        {name: _from_text(value, types[name]) for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(content.decode(), newline=""))
    ]


def _from_text(value: str, kind: str) -> Any:
    if value == "":
        return None
    if kind == "string":
        return value[1:] if value.startswith("'") else value
    if kind == "bool":
        return {"true": True, "false": False}[value]
    return _nanoseconds(value) if kind.startswith("timestamp") else float(value) if kind == "double" else int(value)


def _nanoseconds(text: str) -> int:
    seconds, fraction = text.removesuffix("Z").split(".")
    return int(datetime.fromisoformat(seconds).replace(tzinfo=UTC).timestamp()) * 10**9 + int(fraction)


def _objects(rows: Rows, types: Mapping[str, str]) -> Rows:
    return [
        {
            name: _nanoseconds(value) if value is not None and types[name].startswith("timestamp") else value
            for name, value in row.items()
        }
        for row in rows
    ]


_READERS: dict[str, Callable[[bytes, Mapping[str, str]], Rows]] = {
    "csv": _csv,
    "json": lambda content, types: _objects(json.loads(content)["rows"], types),
    "jsonl": lambda content, types: _objects([json.loads(line) for line in content.decode().split("\n")[:-1]], types),
    "parquet": lambda content, _types: _columns(pq.read_table(io.BytesIO(content))),
    "arrow": lambda content, _types: _columns(pa.ipc.open_file(io.BytesIO(content)).read_all()),
}
