"""Reads the power streams of all processes into one trace per device UUID and per host domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lem_domain.evidence.streams import StreamName
from lem_domain.results.figures import EnergyMethod
from lem_domain.wire.workers import Device
from lem_server.aggregation.energy.traces import Trace, make_trace
from lem_server.aggregation.errors import EvidenceInvalid
from lem_server.aggregation.evidence_reader import NULL, BoolArray, EvidenceReader, IntArray, integers

VIOLATIONS = ("power_violation_ns", "thermal_violation_ns", "board_violation_ns", "reliability_violation_ns")
SLOW_READINGS = (
    "memory_used_bytes",
    "gpu_percent",
    "memory_percent",
    "temperature_c",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "throttle_reasons",
    *VIOLATIONS,
)
"""Columns that are sampled less often than power, and null in between."""

_Columns = tuple[IntArray, IntArray, IntArray]


class HostKey(NamedTuple):
    """A host domain and the method of its readings."""

    domain: str
    method: EnergyMethod


class SparseReadings(NamedTuple):
    """Readings that each apply until the next: times in order, in ns, and values."""

    times_ns: IntArray
    values: IntArray


class DeviceSamples(NamedTuple):
    """The samples of one device: power and energy, and those of `SLOW_READINGS` that it has."""

    trace: Trace
    readings: dict[str, SparseReadings]


def read_devices(reader: EvidenceReader, devices: Sequence[Device]) -> dict[str, DeviceSamples]:
    """Read the device samples by UUID; a device that is leased or sampled twice is in the answer once.

    Raises:
        EvidenceInvalid: a sample names a device that the attempt didn't lease.
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    traces: dict[str, list[_Columns]] = {}
    slow: dict[str, dict[str, list[SparseReadings]]] = {}
    for process in reader.processes_with(StreamName.POWER):
        table = reader.read(
            process, StreamName.POWER, ("device_index", "time_ns", "energy_mj", "power_mw", *SLOW_READINGS)
        )
        device_index = integers(table, "device_index")
        values = tuple(integers(table, name) for name in ("time_ns", "energy_mj", "power_mw"))
        present = {name: table.column(name).is_valid().to_numpy() for name in SLOW_READINGS}
        for index in np.unique(device_index).tolist():
            if not 0 <= index < len(devices):
                raise EvidenceInvalid(
                    f"{process} sampled the power of device {index}, but the attempt leased {len(devices)}; "
                    "correct the device index that it records."
                )
            mine = device_index == index
            uuid = devices[index].uuid
            # A row with neither has the temperature, say, of a device that is away: it must not cover a gap.
            measured = mine & ((values[1] != NULL) | (values[2] != NULL))
            traces.setdefault(uuid, []).append((values[0][measured], values[1][measured], values[2][measured]))
            held = slow.setdefault(uuid, {name: [] for name in SLOW_READINGS})
            for name, there in present.items():
                held[name].append(_held(table, name, values[0], mine & there))
    return {uuid: DeviceSamples(_joined(parts), _in_order(slow[uuid])) for uuid, parts in traces.items()}


def read_host_traces(reader: EvidenceReader) -> dict[HostKey, Trace]:
    """Read one trace per host domain and method.

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


def _held(table: pa.Table, name: str, times: IntArray, use: BoolArray) -> SparseReadings:
    if not use.any():
        return SparseReadings(times[:0], times[:0])
    return SparseReadings(times[use], integers(table, name)[use])


def _in_order(columns: dict[str, list[SparseReadings]]) -> dict[str, SparseReadings]:
    found: dict[str, SparseReadings] = {}
    for name, parts in columns.items():
        times, first = np.unique(np.concatenate([part.times_ns for part in parts]), return_index=True)
        if len(times):
            found[name] = SparseReadings(times, np.concatenate([part.values for part in parts])[first])
    return found


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
