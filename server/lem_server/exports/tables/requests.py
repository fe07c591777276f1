"""The requests of the windows, with their latencies.

Energy per request is no column: it needs a whole window's power, not a chunk of requests. It belongs into `added` and
`_convert`, from figures per request that the aggregation computes.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from lem_domain.evidence.streams import StreamName
from lem_server.exports.table_columns import Column
from lem_server.exports.tables import EvidenceRun, EvidenceTable, Values, recorded, recorded_columns

_NAMES = ("request_id", "prompt_index", "batch_id")
_COUNTS = ("prompt_tokens", "cached_prompt_tokens", "generated_tokens")
_AFTER_ARRIVAL = ("released_ns", "scheduled_ns", "first_token_ns", "last_token_ns")
_NS_PER_S = 1e9


def _convert(run: EvidenceRun, rows: pa.Table) -> Values:
    arrival, first, last = (rows.column(name) for name in ("arrival_ns", "first_token_ns", "last_token_ns"))
    finished = pc.is_null(rows.column("error"))
    steps = pc.subtract(rows.column("generated_tokens").cast(pa.int64()), 1)
    decoding = _seconds(pc.subtract(last, first))
    return {
        **recorded(rows, *_NAMES),
        "status": pc.if_else(finished, "finished", "failed"),
        **recorded(rows, "finish_reason", "error"),
        "arrival_ns": run.since_begin(arrival),
        "arrival_utc": run.utc(arrival),
        "arrival_clock_ns": arrival,
        **{name: run.since_begin(rows.column(name)) for name in _AFTER_ARRIVAL},
        **recorded(rows, *_COUNTS),
        "queue_s": _of(finished, _seconds(pc.subtract(rows.column("scheduled_ns"), arrival))),
        "ttft_s": _of(finished, _seconds(pc.subtract(first, arrival))),
        # The mean of successive differences is the whole distance over their number.
        "itl_mean_s": _of(pc.and_(finished, pc.greater(steps, 0)), pc.divide(decoding, steps.cast(pa.float64()))),
        "e2e_s": _of(finished, _seconds(pc.subtract(last, arrival))),
    }


def _seconds(differences_ns: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.divide(differences_ns.cast(pa.float64(), safe=False), _NS_PER_S)


def _of(wanted: pa.ChunkedArray, values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(wanted, values, None)


_BEGIN = "from the begin of the run's window; null until the run has a result."

TABLE = EvidenceTable(
    "a request of the window",
    StreamName.REQUESTS,
    (
        *recorded_columns(StreamName.REQUESTS, *_NAMES),
        Column("status", "string", None, "finished, or failed if it has an error."),
        *recorded_columns(StreamName.REQUESTS, "finish_reason", "error"),
        Column("arrival_ns", "int64", "ns", f"When it was released to the backend, {_BEGIN}"),
        Column("arrival_utc", "utc", None, "The same in UTC by the worker's clock; null if it did not send that."),
        Column("arrival_clock_ns", "int64", "ns", "The same as recorded: CLOCK_MONOTONIC of the worker's host."),
        Column("released_ns", "int64", "ns", f"When the engine received it, if that is not its arrival, {_BEGIN}"),
        Column("scheduled_ns", "int64", "ns", f"When the engine began to work on it, if it reports that, {_BEGIN}"),
        Column("first_token_ns", "int64", "ns", f"When its first token was available, {_BEGIN}"),
        Column("last_token_ns", "int64", "ns", f"When its last token was available, {_BEGIN}"),
        *recorded_columns(StreamName.REQUESTS, *_COUNTS),
        Column("queue_s", "float64", "s", "Scheduled minus arrival, of a finished request."),
        Column("ttft_s", "float64", "s", "First token minus arrival, of a finished request."),
        Column("itl_mean_s", "float64", "s", "(Last minus first token) / (generated - 1), of a finished request."),
        Column("e2e_s", "float64", "s", "Last token minus arrival, of a finished request."),
    ),
    _convert,
)
