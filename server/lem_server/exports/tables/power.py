"""Samples of the leased devices: power, energy counter and state."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from lem_domain.evidence.streams import STREAMS, StreamName
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

_CONVERTED = ("device_index", "time_ns", "power_mw", "energy_mj")
_NAMES = tuple(one.name for one in STREAMS[StreamName.POWER] if one.name not in _CONVERTED)


def _convert(run: EvidenceRun, rows: pa.Table) -> Values:
    index = rows.column("device_index")
    # An index outside the attempt's devices stays, without a UUID.
    known = pc.if_else(pc.and_(pc.greater_equal(index, 0), pc.less(index, len(run.devices))), index, None)
    uuids, names = (pa.array([one[part] for one in run.devices], pa.string()) for part in (0, 1))
    return {
        "device_index": index,
        "device_uuid": pc.take(uuids, known),
        "device_name": pc.take(names, known),
        **times(run, rows.column("time_ns")),
        "power_w": scaled(rows.column("power_mw"), 1e3),
        "energy_counter_j": scaled(rows.column("energy_mj"), 1e3),
        **recorded(rows, *_NAMES),
    }


TABLE = EvidenceTable(
    "a sample of a leased device",
    StreamName.POWER,
    (
        *recorded_columns(StreamName.POWER, "device_index"),
        Column("device_uuid", "string", None, "UUID of the device."),
        Column("device_name", "string", None, "Name of the device."),
        *TIME_COLUMNS,
        Column("power_w", "float64", "W", "Instant power."),
        Column("energy_counter_j", "float64", "J", "Cumulative energy counter; only differences have a meaning."),
        *recorded_columns(StreamName.POWER, *_NAMES),
    ),
    _convert,
)
