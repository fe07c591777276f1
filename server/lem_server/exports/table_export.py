"""Writes a table of a campaign, chunk by chunk, in memory that does not grow with the campaign.

The event loop only waits: it reads one chunk at a time from the database, a thread verifies and converts it, and the
next one is read when the client has taken the last. No connection is held in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any, Final
from uuid import UUID

import pyarrow as pa
from anyio import to_thread
from pydantic.types import JsonValue
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.config.hashing import canonical_json
from lem_domain.errors import ProblemCode
from lem_domain.evidence.streams import StreamName
from lem_domain.ids import IdKind, format_id, parse_id
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_domain.results.run import RunResult
from lem_domain.tables import TableFormat, TableName
from lem_domain.wire.campaigns import ExperimentResults
from lem_domain.wire.runs import ChunkView
from lem_server.aggregation.errors import AggregationError, EvidenceMissing, MissingPart
from lem_server.aggregation.evidence_reader import verified_rows
from lem_server.aggregation.inputs import process_order
from lem_server.campaigns.results import experiment_results
from lem_server.evidence import reading
from lem_server.exports import table_queries as queries
from lem_server.exports.formats import format_of
from lem_server.exports.table_columns import SWEEP, Column, ColumnType, arrow_schema, record_batch, with_sweep
from lem_server.exports.table_queries import SweptKey, TableRun
from lem_server.exports.tables import EvidenceRun, EvidenceTable, ExperimentTable, RunTable, Table, table_of
from lem_server.http.problems import ProblemError, required

_BLOCK: Final = 2**17
"""Bytes that are sent together at least."""
_BATCH_ROWS: Final = 2048
"""Rows that are converted at once; as JSON they have some 1 MB."""
_MOST_OFFSET_NS: Final = 2**62
"""Far above the year 2100; a sum with a time stays within 64 bits."""


@dataclass(frozen=True)
class PreparedTable:
    """A table of a campaign, before its rows are read."""

    campaign_id: UUID
    campaign_name: str
    open_runs: int
    name: TableName
    table: Table
    method: MethodVersion | None
    swept: tuple[Column, ...]

    @property
    def schema(self) -> pa.Schema:
        """Columns with units, and what the table is of."""
        metadata = {
            "table": self.name.value,
            "campaign_id": format_id(IdKind.CAMPAIGN, self.campaign_id),
            "campaign": self.campaign_name,
            "method": self.method or DEFAULT_METHOD,
            "version": version("llm-energy-measurement"),
            "open_runs": str(self.open_runs),
        }
        return arrow_schema(with_sweep(self.table.columns, self.swept), metadata)


async def prepare(
    engine: AsyncEngine, campaign_id: UUID, name: TableName, method: MethodVersion | None
) -> PreparedTable:
    """Look up the campaign and its swept keys, and whether all evidence that the table needs is stored.

    Raises:
        ProblemError: `not_found`, or `evidence_missing`.
    """
    table = table_of(name)
    async with engine.connect() as connection:
        facts = required(await queries.campaign_facts(connection, campaign_id), IdKind.CAMPAIGN, campaign_id)
        swept = await queries.swept_keys(connection, campaign_id)
        if isinstance(table, EvidenceTable):
            missing = await queries.missing_stream(connection, campaign_id, table.stream)
            if missing is not None:
                raise ProblemError(
                    ProblemCode.EVIDENCE_MISSING,
                    f"{format_id(IdKind.RUN, missing.run_id)}: of {table.stream.value} of {missing.process} "
                    f"{missing.stored} of {missing.promised} chunks are stored; restore the database from a backup, "
                    "or run the experiment again.",
                )
    return PreparedTable(
        campaign_id=campaign_id,
        campaign_name=facts.name,
        open_runs=facts.open_runs,
        name=name,
        table=table,
        method=method,
        swept=tuple(_swept_column(one) for one in swept),
    )


async def pieces(engine: AsyncEngine, prepared: PreparedTable, format_name: TableFormat) -> AsyncIterator[bytes]:
    """Yield the bytes of the table. An error leaves a document without an end.

    Raises:
        ProblemError: `evidence_missing`, `evidence_corrupt` or `evidence_invalid`.
    """
    writer = await to_thread.run_sync(format_of(format_name).writer, prepared.schema)
    pending: list[bytes] = []
    size = 0
    async for batch in _batches(engine, prepared):
        piece = await to_thread.run_sync(writer.write, batch)
        del batch
        pending.append(piece)
        size += len(piece)
        del piece
        if size >= _BLOCK:
            joined = b"".join(pending)
            pending.clear()
            size = 0
            yield joined
    pending.append(await to_thread.run_sync(writer.finish))
    yield b"".join(pending)


def _batches(engine: AsyncEngine, prepared: PreparedTable) -> AsyncIterator[pa.RecordBatch]:
    match prepared.table:
        case EvidenceTable():
            return _evidence(engine, prepared, prepared.table)
        case RunTable():
            return _runs(engine, prepared, prepared.table)
        case ExperimentTable():
            return _experiments(engine, prepared, prepared.table)


async def _evidence(
    engine: AsyncEngine, prepared: PreparedTable, table: EvidenceTable
) -> AsyncIterator[pa.RecordBatch]:
    schema = prepared.schema
    async for page in queries.run_pages(engine, prepared.campaign_id, prepared.method, with_result=False):
        for run in page:
            if run.attempt_id is None:
                continue
            views = [one for one in await reading.streams_of(engine, run.attempt_id) if one.stream is table.stream]
            about = _evidence_run(run)
            for view in sorted(views, key=lambda one: process_order(one.process)):
                shared = _run_values(prepared, run) | {"process": view.process}
                try:
                    async for rows in _verified(engine, run.attempt_id, view.process, table.stream, view.chunks):
                        for start in range(0, rows.num_rows, _BATCH_ROWS):
                            part = rows.slice(start, _BATCH_ROWS)
                            yield await to_thread.run_sync(_evidence_batch, schema, table, about, shared, part)
                except AggregationError as error:
                    raise ProblemError(error.code, f"{format_id(IdKind.RUN, run.run_id)}: {error}") from error


async def _verified(
    engine: AsyncEngine, attempt_id: UUID, process: str, stream: StreamName, chunks: tuple[ChunkView, ...]
) -> AsyncIterator[pa.Table]:
    """Yield the rows of every chunk, whose digest is checked.

    Raises:
        AggregationError: as aggregation does.
    """
    after = -1
    for chunk in chunks:
        found = await reading.next_body(engine, attempt_id, process, stream, after)
        if found is None or found[0] != chunk.seq or chunk.seq != after + 1:
            raise EvidenceMissing([MissingPart("chunks", process, stream.value, (after + 1,))])
        after = chunk.seq
        yield await to_thread.run_sync(verified_rows, process, stream, chunk, found[1])


def _evidence_batch(
    schema: pa.Schema, table: EvidenceTable, about: EvidenceRun, shared: Mapping[str, Any], rows: pa.Table
) -> pa.RecordBatch:
    values = table.convert(about, rows)
    arrays = []
    for field in schema:
        if field.name in values:
            column = values[field.name].cast(field.type)
            arrays.append(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
        else:
            arrays.append(pa.repeat(pa.scalar(shared[field.name], field.type), rows.num_rows))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


async def _runs(engine: AsyncEngine, prepared: PreparedTable, table: RunTable) -> AsyncIterator[pa.RecordBatch]:
    def batch(page: list[TableRun]) -> pa.RecordBatch:
        rows = []
        for run in page:
            result = None if run.result is None else RunResult.model_validate_json(run.result)
            rows.append(_run_values(prepared, run) | table.read(run, result))
        return record_batch(schema, rows)

    schema = prepared.schema
    async for page in queries.run_pages(engine, prepared.campaign_id, prepared.method, with_result=True):
        yield await to_thread.run_sync(batch, page)


async def _experiments(
    engine: AsyncEngine, prepared: PreparedTable, table: ExperimentTable
) -> AsyncIterator[pa.RecordBatch]:
    def batch(one: ExperimentResults, config_hash: str) -> pa.RecordBatch:
        shared = {
            "campaign_id": format_id(IdKind.CAMPAIGN, prepared.campaign_id),
            "experiment_id": one.experiment_id,
            "experiment": one.display_name,
            **_swept_values(prepared.swept, one.varied),
        }
        return record_batch(schema, [shared | row for row in table.read(one, config_hash)])

    schema = prepared.schema
    async for one in experiment_results(engine, prepared.campaign_id, prepared.method):
        async with engine.connect() as connection:
            config_hash = await queries.config_hash(connection, parse_id(IdKind.EXPERIMENT, one.experiment_id))
        yield await to_thread.run_sync(batch, one, config_hash)


def _run_values(prepared: PreparedTable, run: TableRun) -> dict[str, Any]:
    """Return the values of `RUN_COLUMNS` and of the swept keys."""
    return {
        "campaign_id": format_id(IdKind.CAMPAIGN, prepared.campaign_id),
        "experiment_id": format_id(IdKind.EXPERIMENT, run.experiment_id),
        "experiment": run.display_name,
        **_swept_values(prepared.swept, run.varied),
        "run_id": format_id(IdKind.RUN, run.run_id),
        "attempt_id": None if run.attempt_id is None else format_id(IdKind.ATTEMPT, run.attempt_id),
        "cycle": run.cycle,
        "run_state": run.state,
        "verdict": run.verdict,
    }


def _swept_column(one: SweptKey) -> Column:
    """Return the column of a swept key: a number or truth value if all its values are, else their text."""
    kind: ColumnType = "string"
    if one.types == ["boolean"]:
        kind = "bool"
    elif one.types == ["number"]:
        kind = "int64" if one.whole else "float64"
    return Column(SWEEP + one.key, kind, None, f"The experiment's value of `{one.key}`.")


def _swept_values(columns: tuple[Column, ...], varied: Mapping[str, JsonValue]) -> dict[str, Any]:
    return {one.name: _swept_value(one, varied.get(one.name.removeprefix(SWEEP))) for one in columns}


def _swept_value(column: Column, value: JsonValue) -> Any:
    if column.type == "string" and value is not None and not isinstance(value, str):
        return canonical_json(value).decode()
    return float(value) if column.type == "float64" and isinstance(value, int) else value


def _evidence_run(run: TableRun) -> EvidenceRun:
    return EvidenceRun(
        begin_ns=run.begin_ns,
        utc_offset_ns=_utc_offset_ns(run.clock),
        devices=tuple((str(one.get("uuid")), str(one.get("name"))) for one in run.devices),
    )


def _utc_offset_ns(clock: Mapping[str, Any] | None) -> int | None:
    """Return UTC minus the worker's clock in ns; None unless the worker sent both as `clock_pair` makes them."""
    try:
        seconds, fraction = (clock or {})["utc"].removesuffix("Z").split(".")
        moment = datetime.fromisoformat(f"{seconds}+00:00")
        offset = int(moment.timestamp()) * 10**9 + int(fraction.ljust(9, "0")) - int((clock or {})["monotonic_ns"])
        return offset if abs(offset) < _MOST_OFFSET_NS else None
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
