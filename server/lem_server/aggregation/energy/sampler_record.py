"""What the sampler recorded beside power: baselines, clock readings, strangers on devices, and how it fared itself.

Everything here is the worker's own free account: an entry of another shape is left out, so that it can never be an
error, only a figure that is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

from pydantic.types import JsonValue

from lem_domain.evidence.streams import SAMPLER, PhaseName, StreamName
from lem_domain.results.run import BaselineContext
from lem_server.aggregation.energy.traces import Span
from lem_server.aggregation.evidence_reader import EvidenceReader
from lem_server.aggregation.inputs import Summaries


class BaselineSpan(NamedTuple):
    """When a baseline was measured, and whether the sampler found power steady."""

    span: Span
    stationary: bool | None


class ReusedBaseline(NamedTuple):
    """An idle baseline of an earlier attempt, by device UUID or host domain."""

    parts_w: dict[str, float]
    age_s: float
    taken_by: str | None


class ClockReading(NamedTuple):
    """Both clocks at one instant; the wall clock's is off by at most `uncertainty_ns`."""

    monotonic_ns: int
    utc_ns: int
    uncertainty_ns: int


class Stranger(NamedTuple):
    """A process that is not the attempt's, on a leased device; `gone_ns` is None where it was never seen to go."""

    device_index: int
    pid: int
    seen_ns: int
    gone_ns: int | None
    memory_bytes: int | None


class DeviceFacts(NamedTuple):
    """What the sampler knows of a device."""

    power_reading: str | None
    mig_parent_uuid: str | None


@dataclass(frozen=True)
class SamplerRecord:
    """All of it; `facts` by device UUID, `summary` as the sampler's completion marker has it."""

    baselines: dict[BaselineContext, BaselineSpan] = field(default_factory=dict)
    reused: ReusedBaseline | None = None
    clocks: tuple[ClockReading, ...] = ()
    strangers: tuple[Stranger, ...] = ()
    facts: dict[str, DeviceFacts] = field(default_factory=dict)
    summary: Mapping[str, JsonValue] = field(default_factory=dict)

    def number(self, name: str) -> float | None:
        """A number of the summary."""
        return number_of(self.summary.get(name))


def read_sampler(reader: EvidenceReader, summaries: Summaries) -> SamplerRecord:
    """From the streams `phases` and `events` of the sampler and its completion marker.

    Raises:
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    phases = reader.read(SAMPLER, StreamName.PHASES, ("phase", "edge", "time_ns", "detail")).to_pylist()
    events = reader.read(SAMPLER, StreamName.EVENTS, ("time_ns", "kind", "detail")).to_pylist()
    details: dict[str, list[tuple[int, Mapping[str, JsonValue]]]] = {}
    for event in sorted(events, key=lambda row: (row["time_ns"], row["kind"], row["detail"] or "")):
        details.setdefault(event["kind"], []).append((event["time_ns"], parsed(event["detail"])))
    summary = summaries.get(SAMPLER, {})
    reused = [kept for _, detail in details.get("baseline_reused", ()) if (kept := _reused(detail)) is not None]
    return SamplerRecord(
        baselines=_baselines(phases),
        reused=reused[-1] if reused else None,
        clocks=tuple(found for _, detail in details.get("clock", ()) if (found := _clock(detail)) is not None),
        strangers=_strangers(details.get("foreign_process", []), details.get("foreign_process_gone", [])),
        facts=_facts(summary.get("devices")),
        summary=summary,
    )


def parsed(detail: str | None) -> Mapping[str, JsonValue]:
    """A detail's JSON object; empty where it is none."""
    try:
        value: JsonValue = json.loads(detail or "null")
    except ValueError:
        return {}
    return value if isinstance(value, Mapping) else {}


def number_of(value: JsonValue) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _baselines(rows: list[dict[str, JsonValue]]) -> dict[BaselineContext, BaselineSpan]:
    """The last of each context."""
    found: dict[BaselineContext, BaselineSpan] = {}
    begun: int | None = None
    for row in sorted(rows, key=lambda row: (_whole(row["time_ns"]) or 0, row["edge"] == "begin")):
        time_ns = _whole(row["time_ns"])
        if row["phase"] != PhaseName.BASELINE or time_ns is None:
            continue
        if row["edge"] == "begin":
            begun = time_ns
            continue
        detail = parsed(_text(row["detail"]))
        stationary = detail.get("stationary")
        for context in get_args(BaselineContext):
            if begun is not None and begun < time_ns and detail.get("context") == context:
                told = stationary if isinstance(stationary, bool) else None
                found[context] = BaselineSpan(Span(begun, time_ns), told)
        begun = None
    return found


def _reused(detail: Mapping[str, JsonValue]) -> ReusedBaseline | None:
    parts, age_s = detail.get("parts"), number_of(detail.get("age_s"))
    if not isinstance(parts, Mapping) or age_s is None:
        return None
    watts = {part: power for part, value in parts.items() if (power := number_of(value)) is not None}
    return ReusedBaseline(watts, age_s, _text(detail.get("taken_by")))


def _clock(detail: Mapping[str, JsonValue]) -> ClockReading | None:
    values = [_whole(detail.get(name)) for name in ("monotonic_ns", "utc_ns", "uncertainty_ns")]
    monotonic_ns, utc_ns, uncertainty_ns = values
    if monotonic_ns is None or utc_ns is None:
        return None
    return ClockReading(monotonic_ns, utc_ns, uncertainty_ns or 0)


def _strangers(
    seen: list[tuple[int, Mapping[str, JsonValue]]], gone: list[tuple[int, Mapping[str, JsonValue]]]
) -> tuple[Stranger, ...]:
    ends = [(time_ns, _whole(detail.get("device_index")), _whole(detail.get("pid"))) for time_ns, detail in gone]
    found: list[Stranger] = []
    for time_ns, detail in seen:
        device, pid = _whole(detail.get("device_index")), _whole(detail.get("pid"))
        if device is None or pid is None:
            continue
        end = min((end_ns for end_ns, *who in ends if who == [device, pid] and end_ns >= time_ns), default=None)
        found.append(Stranger(device, pid, time_ns, end, _whole(detail.get("memory_bytes"))))
    return tuple(found)


def _facts(listed: JsonValue) -> dict[str, DeviceFacts]:
    found: dict[str, DeviceFacts] = {}
    for entry in listed if isinstance(listed, list) else []:
        uuid = entry.get("uuid") if isinstance(entry, Mapping) else None
        if isinstance(entry, Mapping) and isinstance(uuid, str):
            found[uuid] = DeviceFacts(_text(entry.get("power_reading")), _text(entry.get("mig_parent_uuid")))
    return found


def _whole(value: JsonValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: JsonValue) -> str | None:
    return value if isinstance(value, str) else None
