"""The times of all tokens."""

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

_NAMES = ("request_id", "index")


def _convert(run: EvidenceRun, rows: pa.Table) -> Values:
    return {**recorded(rows, *_NAMES), **times(run, rows.column("time_ns"))}


TABLE = EvidenceTable(
    "a token of a request",
    StreamName.TOKENS,
    (*recorded_columns(StreamName.TOKENS, *_NAMES), *TIME_COLUMNS),
    _convert,
)
