"""Columns of the exported tables: names with units, types, and the columns that every row of a run has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import pyarrow as pa

ColumnType = Literal["int64", "float64", "string", "bool", "utc"]

ARROW_TYPES: Final[Mapping[ColumnType, pa.DataType]] = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "utc": pa.timestamp("ns", tz="UTC"),
}


class Column(NamedTuple):
    """One column of a table. Every column may be null. Times of type `utc` have nanoseconds."""

    name: str
    type: ColumnType
    unit: str | None
    description: str


SWEEP: Final = "sweep."
"""Prefix of the columns of swept keys."""

EXPERIMENT_COLUMNS: Final = (
    Column("campaign_id", "string", None, "The campaign."),
    Column("experiment_id", "string", None, "The experiment."),
    Column("experiment", "string", None, "Its name, distinct within the campaign."),
)
RUN_COLUMNS: Final = (
    *EXPERIMENT_COLUMNS,
    Column("run_id", "string", None, "The run."),
    Column("attempt_id", "string", None, "Its current attempt, whose evidence and result are shown; null if queued."),
    Column("cycle", "int64", None, "The repetition that the run belongs to, from 1."),
    Column("run_state", "string", None, "State of the run."),
    Column("verdict", "string", None, "Verdict of its result: valid, questionable or invalid; null without a result."),
)
EVIDENCE_COLUMNS: Final = (
    *RUN_COLUMNS,
    Column("process", "string", None, "The process that recorded the row: rank-0, rank-1, … or sampler."),
)
METADATA: Final = "lem."
"""Prefix of the keys in the metadata of a schema."""


def arrow_schema(columns: Iterable[Column], metadata: Mapping[str, str]) -> pa.Schema:
    """Return a schema with unit and description in the metadata of each field, and `metadata` under `lem.…` keys."""
    fields = [
        pa.field(one.name, ARROW_TYPES[one.type], metadata={"unit": one.unit or "", "description": one.description})
        for one in columns
    ]
    return pa.schema(fields, metadata={METADATA + key: value for key, value in metadata.items()})


def with_sweep(columns: Sequence[Column], swept: Sequence[Column]) -> tuple[Column, ...]:
    """Return a table's columns with those of the swept keys after the experiment's name."""
    after = len(EXPERIMENT_COLUMNS)
    return (*columns[:after], *swept, *columns[after:])


def record_batch(schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Return rows as a batch; a column that a row lacks is null in it."""
    arrays = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
