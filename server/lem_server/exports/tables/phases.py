"""The phases of all processes: load, warm-up, baselines, window."""

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

_NAMES = ("phase", "edge", "detail")


def _convert(run: EvidenceRun, rows: pa.Table) -> Values:
    return {**recorded(rows, *_NAMES), **times(run, rows.column("time_ns"))}


TABLE = EvidenceTable(
    "the begin or end of a phase of a process",
    StreamName.PHASES,
    (*TIME_COLUMNS, *recorded_columns(StreamName.PHASES, *_NAMES)),
    _convert,
)
