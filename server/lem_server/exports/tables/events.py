"""The events that processes recorded."""

from __future__ import annotations

import pyarrow as pa

from lem_domain.evidence.streams import StreamName
from lem_server.exports.tables import (
    TIME_COLUMNS,
    EvidenceRun,
    EvidenceTable,
    Values,
    recorded,
    recorded_columns,
    times,
)

_NAMES = ("kind", "detail")


def _convert(run: EvidenceRun, rows: pa.Table) -> Values:
    return {**recorded(rows, *_NAMES), **times(run, rows.column("time_ns"))}


TABLE = EvidenceTable(
    "an event of a process",
    StreamName.EVENTS,
    (*TIME_COLUMNS, *recorded_columns(StreamName.EVENTS, *_NAMES)),
    _convert,
)
