"""Samples of the host's power and energy counters."""

from __future__ import annotations

import pyarrow as pa

from lem_domain.evidence.streams import StreamName
from lem_server.exports.table_columns import Column
from lem_server.exports.tables import (
    TIME_COLUMNS,
    EvidenceRun,
    EvidenceTable,
    Values,
    recorded,
    recorded_columns,
    scaled,
    times,
)

_NAMES = ("domain", "method")


def _convert(run: EvidenceRun, rows: pa.Table) -> Values:
    return {
        **recorded(rows, *_NAMES),
        **times(run, rows.column("time_ns")),
        "power_w": scaled(rows.column("power_mw"), 1e3),
        "energy_counter_j": scaled(rows.column("energy_uj"), 1e6),
    }


TABLE = EvidenceTable(
    "a sample of a part of the host",
    StreamName.HOST_POWER,
    (
        *TIME_COLUMNS,
        *recorded_columns(StreamName.HOST_POWER, *_NAMES),
        Column("power_w", "float64", "W", "Mean power since the last sample, or instant power."),
        Column("energy_counter_j", "float64", "J", "Cumulative energy counter; only differences have a meaning."),
    ),
    _convert,
)
