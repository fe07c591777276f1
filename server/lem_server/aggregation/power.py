"""Reads the power streams into one trace per device UUID and per host domain, whoever wrote them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lem_domain.evidence import StreamName
from lem_domain.results import EnergyMethod
from lem_domain.wire.workers import Device
from lem_server.aggregation.energy import HostKey
from lem_server.aggregation.errors import EvidenceInvalid
from lem_server.aggregation.reading import EvidenceReader, IntArray, integers
from lem_server.aggregation.traces import Trace, make_trace

_Columns = tuple[IntArray, IntArray, IntArray]


def read_device_traces(reader: EvidenceReader, devices: Sequence[Device]) -> dict[str, Trace]:
    """One trace per device UUID; a device that is leased or sampled twice still has one.

    Raises:
        EvidenceInvalid: a sample names a device that the attempt didn't lease.
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    columns = ("device_index", "time_ns", "energy_mj", "power_mw")
    found: dict[str, list[_Columns]] = {}
    for process in reader.processes_with(StreamName.POWER):
        table = reader.read(process, StreamName.POWER, columns)
        device_index = integers(table, "device_index")
        values = tuple(integers(table, name) for name in columns[1:])
        for index in np.unique(device_index).tolist():
            if not 0 <= index < len(devices):
                raise EvidenceInvalid(
                    f"{process} sampled the power of device {index}, but the attempt leased {len(devices)}; "
                    "correct the device index that it records."
                )
            mine = device_index == index
            found.setdefault(devices[index].uuid, []).append((values[0][mine], values[1][mine], values[2][mine]))
    return {uuid: _joined(parts) for uuid, parts in found.items()}


def read_host_traces(reader: EvidenceReader) -> dict[HostKey, Trace]:
    """One trace per host domain and method.

    Raises:
        EvidenceInvalid: a sample names an unknown method.
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    columns = ("domain", "time_ns", "energy_uj", "power_mw", "method")
    found: dict[HostKey, list[_Columns]] = {}
    for process in reader.processes_with(StreamName.HOST_POWER):
        table = reader.read(process, StreamName.HOST_POWER, columns)
        keys = table.select(["domain", "method"]).group_by(["domain", "method"]).aggregate([]).to_pylist()
        for key in sorted((row["domain"], row["method"]) for row in keys):
            domain, method = key
            mine = table.filter((pc.field("domain") == domain) & (pc.field("method") == method))
            found.setdefault(HostKey(domain, _method(process, method)), []).append(_columns(mine))
    return {key: _joined(parts) for key, parts in found.items()}


def _columns(table: pa.Table) -> _Columns:
    return integers(table, "time_ns"), integers(table, "energy_uj"), integers(table, "power_mw")


def _method(process: str, method: str) -> EnergyMethod:
    try:
        return EnergyMethod(method)
    except ValueError as error:
        raise EvidenceInvalid(
            f"{process} recorded the energy method {method!r}; it must be counter, integrated or modelled."
        ) from error


def _joined(parts: Sequence[_Columns]) -> Trace:
    times, counts, power = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return make_trace(times, counts, power)
