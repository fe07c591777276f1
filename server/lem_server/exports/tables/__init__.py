"""Tables that a campaign is exported as. A module in this folder is a table of its name, with a constant `TABLE`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from lem_domain.evidence.streams import STREAMS, StreamName
from lem_domain.results.run import RunResult
from lem_domain.tables import TableName
from lem_domain.wire.campaigns import ExperimentResults
from lem_server.exports.table_columns import EVIDENCE_COLUMNS, EXPERIMENT_COLUMNS, RUN_COLUMNS, Column, ColumnType
from lem_server.exports.table_queries import TableRun


@dataclass(frozen=True)
class EvidenceRun:
    """What converts the evidence of one attempt: its window's begin, its clock and its devices."""

    begin_ns: int | None
    """On the worker's clock."""
    utc_offset_ns: int | None
    """UTC minus the worker's clock."""
    devices: tuple[tuple[str, str], ...]
    """UUID and name, in the order of `device_index`."""

    def since_begin(self, times: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return times of the worker's clock as ns after the window's begin; negative before it, null without one."""
        return pc.subtract(times, pa.scalar(self.begin_ns, pa.int64()))

    def utc(self, times: pa.ChunkedArray) -> pa.ChunkedArray:
        """Return times of the worker's clock as UTC; null if the worker did not send its clock."""
        return pc.add(times, pa.scalar(self.utc_offset_ns, pa.int64())).cast(pa.timestamp("ns", tz="UTC"))


Values: TypeAlias = Mapping[str, pa.ChunkedArray]

TIME_COLUMNS: Final = (
    Column("time_ns", "int64", "ns", "When, from the begin of the run's window; null until the run has a result."),
    Column("time_utc", "utc", None, "When, in UTC by the worker's clock; null if it did not send that."),
    Column("clock_ns", "int64", "ns", "When, as recorded: CLOCK_MONOTONIC of the worker's host."),
)


def times(run: EvidenceRun, recorded: pa.ChunkedArray) -> Values:
    """Return the values of `TIME_COLUMNS`."""
    return {"time_ns": run.since_begin(recorded), "time_utc": run.utc(recorded), "clock_ns": recorded}


def recorded_columns(stream: StreamName, *names: str) -> tuple[Column, ...]:
    """Return columns of a stream that a table has as they are."""
    found = {one.name: one for one in STREAMS[stream]}
    wider: Mapping[str, ColumnType] = {"int32": "int64", "int64": "int64", "float64": "float64", "string": "string"}
    return tuple(Column(name, wider[found[name].type], found[name].unit, found[name].description) for name in names)


def recorded(rows: pa.Table, *names: str) -> Values:
    """Return their values."""
    return {name: rows.column(name) for name in names}


def scaled(values: pa.ChunkedArray, divisor: float) -> pa.ChunkedArray:
    """Return values in a larger unit."""
    return pc.divide(values.cast(pa.float64()), divisor)


@dataclass(frozen=True)
class EvidenceTable:
    """A table with one row per row of a stream."""

    row: str
    """What a row is, for the reference."""
    stream: StreamName
    added: tuple[Column, ...]
    convert: Callable[[EvidenceRun, pa.Table], Values]
    """Returns every column of `added`. Runs in a thread."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns but those of swept keys."""
        return (*EVIDENCE_COLUMNS, *self.added)


@dataclass(frozen=True)
class RunTable:
    """A table with one row per run."""

    row: str
    added: tuple[Column, ...]
    read: Callable[[TableRun, RunResult | None], dict[str, Any]]

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns but those of swept keys."""
        return (*RUN_COLUMNS, *self.added)


@dataclass(frozen=True)
class ExperimentTable:
    """A table with rows per experiment."""

    row: str
    added: tuple[Column, ...]
    read: Callable[[ExperimentResults, str], Sequence[dict[str, Any]]]
    """Gets the digest of the configuration too."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns but those of swept keys."""
        return (*EXPERIMENT_COLUMNS, *self.added)


Table: TypeAlias = EvidenceTable | RunTable | ExperimentTable


def table_of(name: TableName) -> Table:
    """Return a table."""
    table: Table = import_module(f"{__name__}.{name.value}").TABLE
    return table
