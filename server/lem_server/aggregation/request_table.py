"""Computes the table of one run's requests, each with its share of the window's energy, and writes it to a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from lem_domain.results.figures import Figure
from lem_domain.results.method import MethodVersion
from lem_domain.results.requests import RequestEnergySummary, RequestRow
from lem_server.aggregation.checks.completeness import missing_parts
from lem_server.aggregation.energy.request_energy import (
    EVERY_TOKEN,
    DividedWindow,
    Steps,
    divide_window,
    joined_steps,
    request_steps,
)
from lem_server.aggregation.energy.totals import EnergyAccount
from lem_server.aggregation.energy.traces import FloatArray, Interval
from lem_server.aggregation.errors import EvidenceMissing
from lem_server.aggregation.evidence_reader import NULL, BoolArray, EvidenceReader, IntArray
from lem_server.aggregation.inputs import AggregationInput, ChunkSource
from lem_server.aggregation.latency.distributions import distribution
from lem_server.aggregation.latency.inter_token import read_token_times, silent_ranks
from lem_server.aggregation.measured_energy import read_energy
from lem_server.aggregation.work.flops import ModelShape
from lem_server.aggregation.work.requests import RankRequests, read_requests
from lem_server.aggregation.work.windows import process_window, union_window

_ROWS = 1 << 16
"""Rows that are turned into text at once."""


class RequestFormat(StrEnum):
    """Formats of the table: JSON with the summary, CSV, or an Arrow IPC stream with the summary in its metadata."""

    JSON = "json"
    CSV = "csv"
    ARROW = "arrow"


class RequestColumns(NamedTuple):
    """The table: the summary, and a column for each field of `RequestRow`."""

    summary: RequestEnergySummary
    table: pa.Table


def request_table(inputs: AggregationInput, chunks: ChunkSource) -> RequestColumns:
    """Compute the requests of one attempt and the energy of each (docs/measurement.md, Energy per request).

    A pure function, as `lem_server.aggregation.result.aggregate`, whose window and energy it uses and whose errors it
    raises. It holds up to 200 bytes per token.
    """
    missing = missing_parts(inputs)
    if missing and not inputs.parameters.allow_partial:
        raise EvidenceMissing(missing)
    reader = EvidenceReader(inputs.held, chunks, allow_partial=inputs.parameters.allow_partial)
    ranks = [read_requests(reader, process) for process in inputs.ranks]
    window = union_window([found for rank in ranks if (found := process_window(rank)) is not None])
    account = read_energy(reader, inputs, ranks, window).account
    shapes = [ModelShape.of(inputs.summaries.get(rank.process, {}).get("model")) for rank in ranks]
    divided = _divided(reader, ranks, shapes, account, window, inputs.method)
    reader.verify_rest()
    return RequestColumns(_summary(inputs, ranks, shapes, account, divided), _table(ranks, divided))


def write_table(found: RequestColumns, path: Path, form: RequestFormat) -> None:
    """Write the table to a file, some rows at a time."""
    summary = found.summary.model_dump(mode="json")
    if form is RequestFormat.CSV:
        pyarrow.csv.write_csv(found.table, path)
    elif form is RequestFormat.ARROW:
        described = found.table.replace_schema_metadata({"lem.summary": json.dumps(summary)})
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, described.schema, options=options) as writer:
            writer.write_table(described, max_chunksize=_ROWS)
    else:
        with path.open("w", encoding="utf-8") as file:
            file.write(f'{{"summary": {json.dumps(summary)}, "requests": [')
            separator = ""
            for batch in found.table.to_batches(max_chunksize=_ROWS):
                for row in batch.to_pylist():
                    file.write(separator + json.dumps(row))
                    separator = ",\n"
            file.write("]}")


def _divided(
    reader: EvidenceReader,
    ranks: Sequence[RankRequests],
    shapes: Sequence[ModelShape | None],
    account: EnergyAccount,
    window: Interval,
    method: MethodVersion,
) -> DividedWindow | str:
    if method is MethodVersion.M1:
        return "method m1 does not divide energy over requests; use m2"
    silent = silent_ranks(reader, ranks, method)
    if silent is not None:
        return silent
    total = account.result.total
    if total.joules is None:
        return str(total.reason)
    steps: list[Steps] = []
    first_number = 0
    weighted = None not in shapes
    for rank, shape in zip(ranks, shapes, strict=True):
        tokens = read_token_times(reader, rank)
        steps.append(request_steps(rank, tokens, shape if weighted and shape else EVERY_TOKEN, first_number))
        first_number += len(rank)
    return divide_window(joined_steps(steps), first_number, account.meters, account.parts, total, window)


def _summary(
    inputs: AggregationInput,
    ranks: Sequence[RankRequests],
    shapes: Sequence[ModelShape | None],
    account: EnergyAccount,
    divided: DividedWindow | str,
) -> RequestEnergySummary:
    finished = _joined([rank.finished for rank in ranks])
    number = len(finished)
    reason = divided if isinstance(divided, str) else None
    energy_j = np.full(number, np.nan) if isinstance(divided, str) else divided.energy_j
    known = ~np.isnan(energy_j)

    def figure(value: float, unit: str = "J") -> Figure:
        return Figure(value=None if reason else value, unit=unit, reason=reason)

    return RequestEnergySummary(
        run_id=inputs.run_id,
        attempt_id=inputs.attempt_id,
        method=inputs.method,
        weights="tokens" if None in shapes else "flops",
        total=account.result.total,
        requests=number,
        failed_requests=int((~finished).sum()),
        without_energy=int((~known).sum()),
        finished_energy_j=figure(float(energy_j[known & finished].sum())),
        failed_energy_j=figure(float(energy_j[known & ~finished].sum())),
        idle_energy_j=figure(0.0 if isinstance(divided, str) else divided.idle_j),
        per_request_j=distribution(
            energy_j[known & finished], "J", 1.0, reason or "no finished request has token times in the window"
        ),
        resolution_ms=figure(0.0 if isinstance(divided, str) else divided.resolution_s * 1e3, "ms"),
    )


def _table(ranks: Sequence[RankRequests], divided: DividedWindow | str) -> pa.Table:
    number = sum(map(len, ranks))
    columns: dict[str, pa.Array] = {
        "process": pa.array(np.repeat([rank.process for rank in ranks], [len(rank) for rank in ranks]), pa.string()),
        "failed": pa.array(_joined([~rank.finished for rank in ranks])),
        "energy_j": _floats(None if isinstance(divided, str) else divided.energy_j, number),
        "bound_j": _floats(None if isinstance(divided, str) else divided.bound_j, number),
    }
    for name in RequestRow.model_fields:
        if name not in columns:
            columns[name] = _integers([getattr(rank, name) for rank in ranks])
    return pa.table({name: columns[name] for name in RequestRow.model_fields})


def _joined(parts: Sequence[BoolArray]) -> BoolArray:
    return np.concatenate(parts) if parts else np.empty(0, dtype=bool)


def _integers(parts: Sequence[IntArray]) -> pa.Array:
    values = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
    return pa.array(values, pa.int64(), mask=values == NULL)


def _floats(values: FloatArray | None, number: int) -> pa.Array:
    if values is None:
        return pa.nulls(number, pa.float64())
    return pa.array(values, pa.float64(), mask=np.isnan(values))
