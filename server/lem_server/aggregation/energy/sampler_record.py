"""Reads what the sampler recorded next to power: baselines, clocks, foreign processes, devices and its own load.

The worker writes these records freely. An entry of another shape is ignored: it makes a figure null, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

from pydantic.types import JsonValue

from lem_domain.evidence.streams import SAMPLER, PhaseName, StreamName
from lem_domain.results.energy import BaselineContext
from lem_domain.wire.workers import Device
from lem_server.aggregation.energy.traces import Span
from lem_server.aggregation.evidence_reader import EvidenceReader
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import finite_number, integer, json_object, string


class BaselineSpan(NamedTuple):
    """The time of a baseline, and whether the sampler found power steady."""

    span: Span
    stationary: bool | None


class ReusedBaseline(NamedTuple):
    """An idle baseline of an earlier attempt, by device UUID or host domain."""

    parts_w: dict[str, float]
    age_s: float
    taken_by: str | None


class ClockReading(NamedTuple):
    """Both clocks at one instant; the error of the wall clock is at most `uncertainty_ns`."""

    monotonic_ns: int
    utc_ns: int
    uncertainty_ns: int


class ForeignProcess(NamedTuple):
    """A process on a leased device that the attempt did not start; `gone_ns` is None if it was not seen to end."""

    device_index: int
    pid: int
    seen_ns: int
    gone_ns: int | None
    memory_bytes: int | None
    sm_percent: int | None = None
    """Its use of the compute units when it was found, where the driver shows it."""


class UnidentifiedProcess(NamedTuple):
    """A process on a leased device under a pid that no process can have."""

    device_index: int
    seen_ns: int
    memory_bytes: int | None


class CpuTime(NamedTuple):
    """Processor time of the host and of the worker since the machine started, in seconds over all cores."""

    time_ns: int
    busy_s: float
    own_s: float


class ChangedFact(NamedTuple):
    """A fact of a device that was changed during the attempt."""

    device_index: int
    time_ns: int
    fact: str
    before: JsonValue
    after: JsonValue


class CounterGap(NamedTuple):
    """A step of a host domain's counter of which nothing is known; `time_ns` is that of the sample after it."""

    domain: str
    time_ns: int
    reason: str


class RepeatedCounter(NamedTuple):
    """A host domain that shows the counter of another one."""

    domain: str
    repeats: str


class Settling(NamedTuple):
    """Whether the devices had settled before the window, and if not, the condition that did not hold."""

    settled: bool
    reason: str | None


class DeviceFacts(NamedTuple):
    """Facts about a device that the sampler reported; None where it did not."""

    power_reading: str | None
    mig_parent_uuid: str | None
    own_processes_listed: bool | None = None
    """Whether the driver listed a process of the attempt under its pid, so that pids can be compared."""
    own_pid_namespace: bool | None = None
    sm_clock_max_mhz: float | None = None
    driver: str | None = None
    power_limit_w: float | None = None
    """The enforced limit."""


@dataclass(frozen=True)
class SamplerRecord:
    """The sampler's records; `facts` by device UUID, `summary` as in the sampler's completion marker."""

    baselines: dict[BaselineContext, BaselineSpan] = field(default_factory=dict)
    reused: ReusedBaseline | None = None
    clocks: tuple[ClockReading, ...] = ()
    foreign_processes: tuple[ForeignProcess, ...] = ()
    unidentified_processes: tuple[UnidentifiedProcess, ...] = ()
    cpu_loads: tuple[CpuTime, ...] = ()
    changed_facts: tuple[ChangedFact, ...] = ()
    counter_gaps: tuple[CounterGap, ...] = ()
    repeated_counters: tuple[RepeatedCounter, ...] = ()
    settling: Settling | None = None
    facts: dict[str, DeviceFacts] = field(default_factory=dict)
    summary: Mapping[str, JsonValue] = field(default_factory=dict)

    def round_ms(self, source: str) -> float | None:
        """Return the mean duration of reading all parts of a source once."""
        rounds = self.summary.get("rounds")
        for entry in rounds if isinstance(rounds, list) else []:
            if isinstance(entry, Mapping) and entry.get("source") == source:
                return finite_number(entry.get("mean_ms"))
        return None

    def highest_limit_w(self, uuid: str, devices: Sequence[Device]) -> float | None:
        """Return the highest enforced power limit that a leased device had; None if it reports none."""
        known = self.facts.get(uuid)
        limits = [known.power_limit_w if known is not None else None]
        for changed in self.changed_facts:
            mine = 0 <= changed.device_index < len(devices) and devices[changed.device_index].uuid == uuid
            if mine and changed.fact == "power_limit_w":
                limits += [finite_number(changed.before), finite_number(changed.after)]
        return max((limit for limit in limits if limit is not None), default=None)

    def number(self, name: str) -> float | None:
        """Return a number of the summary."""
        return finite_number(self.summary.get(name))


def read_sampler(reader: EvidenceReader, summaries: Summaries) -> SamplerRecord:
    """Read the streams `phases` and `events` of the sampler and its completion marker.

    Raises:
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    phases = reader.read(SAMPLER, StreamName.PHASES, ("phase", "edge", "time_ns", "detail")).to_pylist()
    events = reader.read(SAMPLER, StreamName.EVENTS, ("time_ns", "kind", "detail")).to_pylist()
    details: dict[str, list[tuple[int, Mapping[str, JsonValue]]]] = {}
    for event in sorted(events, key=lambda row: (row["time_ns"], row["kind"], row["detail"] or "")):
        details.setdefault(event["kind"], []).append((event["time_ns"], json_object(event["detail"])))
    summary = summaries.get(SAMPLER, {})
    reused = [kept for _, detail in details.get("baseline_reused", ()) if (kept := _reused(detail)) is not None]
    return SamplerRecord(
        baselines=_baselines(phases),
        settling=_settling(phases),
        changed_facts=tuple(
            ChangedFact(index, time_ns, fact, detail.get("before"), detail.get("after"))
            for time_ns, detail in details.get("fact_changed", ())
            if (index := integer(detail.get("device_index"))) is not None
            and (fact := string(detail.get("fact"))) is not None
        ),
        counter_gaps=tuple(
            CounterGap(domain, time_ns, string(detail.get("reason")) or "it was reset")
            for time_ns, detail in details.get("counter_gap", ())
            if (domain := string(detail.get("domain"))) is not None
        ),
        repeated_counters=tuple(
            RepeatedCounter(domain, repeats)
            for _, detail in details.get("repeated_counter", ())
            if (domain := string(detail.get("domain"))) is not None
            and (repeats := string(detail.get("repeats"))) is not None
        ),
        reused=reused[-1] if reused else None,
        clocks=tuple(found for _, detail in details.get("clock", ()) if (found := _clock(detail)) is not None),
        foreign_processes=_foreign_processes(
            details.get("foreign_process", []), details.get("foreign_process_gone", [])
        ),
        unidentified_processes=tuple(
            UnidentifiedProcess(index, time_ns, integer(detail.get("memory_bytes")))
            for time_ns, detail in details.get("unidentified_process", ())
            if (index := integer(detail.get("device_index"))) is not None
        ),
        cpu_loads=tuple(
            CpuTime(time_ns, busy_s, own_s)
            for time_ns, detail in details.get("cpu_load", ())
            if (busy_s := finite_number(detail.get("busy_s"))) is not None
            and (own_s := finite_number(detail.get("own_s"))) is not None
        ),
        facts=_facts(summary.get("devices")),
        summary=summary,
    )


def _baselines(rows: list[dict[str, JsonValue]]) -> dict[BaselineContext, BaselineSpan]:
    """Return the last baseline of each context."""
    found: dict[BaselineContext, BaselineSpan] = {}
    begun: int | None = None
    for row in sorted(rows, key=lambda row: (integer(row["time_ns"]) or 0, row["edge"] == "begin")):
        time_ns = integer(row["time_ns"])
        if row["phase"] != PhaseName.BASELINE or time_ns is None:
            continue
        if row["edge"] == "begin":
            begun = time_ns
            continue
        detail = json_object(string(row["detail"]))
        stationary = detail.get("stationary")
        for context in get_args(BaselineContext):
            if begun is not None and begun < time_ns and detail.get("context") == context:
                found[context] = BaselineSpan(
                    Span(begun, time_ns), stationary if isinstance(stationary, bool) else None
                )
        begun = None
    return found


def _settling(rows: list[dict[str, JsonValue]]) -> Settling | None:
    """Return the outcome of the last time that the devices were to settle."""
    ends = [row for row in rows if row["phase"] == PhaseName.SETTLE and row["edge"] == "end"]
    if not ends:
        return None
    detail = json_object(string(max(ends, key=lambda row: integer(row["time_ns"]) or 0)["detail"]))
    settled = _flag(detail.get("settled"))
    return None if settled is None else Settling(settled, string(detail.get("reason")))


def _reused(detail: Mapping[str, JsonValue]) -> ReusedBaseline | None:
    parts, age_s = detail.get("parts"), finite_number(detail.get("age_s"))
    if not isinstance(parts, Mapping) or age_s is None:
        return None
    watts = {part: power for part, value in parts.items() if (power := finite_number(value)) is not None}
    return ReusedBaseline(watts, age_s, string(detail.get("taken_by")))


def _clock(detail: Mapping[str, JsonValue]) -> ClockReading | None:
    values = [integer(detail.get(name)) for name in ("monotonic_ns", "utc_ns", "uncertainty_ns")]
    monotonic_ns, utc_ns, uncertainty_ns = values
    if monotonic_ns is None or utc_ns is None:
        return None
    return ClockReading(monotonic_ns, utc_ns, uncertainty_ns or 0)


def _foreign_processes(
    seen: list[tuple[int, Mapping[str, JsonValue]]], gone: list[tuple[int, Mapping[str, JsonValue]]]
) -> tuple[ForeignProcess, ...]:
    ends = [(time_ns, integer(detail.get("device_index")), integer(detail.get("pid"))) for time_ns, detail in gone]
    found: list[ForeignProcess] = []
    for time_ns, detail in seen:
        device, pid = integer(detail.get("device_index")), integer(detail.get("pid"))
        if device is None or pid is None:
            continue
        end = min((end_ns for end_ns, *process in ends if process == [device, pid] and end_ns >= time_ns), default=None)
        memory_bytes, sm_percent = integer(detail.get("memory_bytes")), integer(detail.get("sm_percent"))
        found.append(ForeignProcess(device, pid, time_ns, end, memory_bytes, sm_percent))
    return tuple(found)


def _facts(listed: JsonValue) -> dict[str, DeviceFacts]:
    found: dict[str, DeviceFacts] = {}
    for entry in listed if isinstance(listed, list) else []:
        uuid = entry.get("uuid") if isinstance(entry, Mapping) else None
        if isinstance(entry, Mapping) and isinstance(uuid, str):
            found[uuid] = DeviceFacts(
                string(entry.get("power_reading")),
                string(entry.get("mig_parent_uuid")),
                _flag(entry.get("own_processes_listed")),
                _flag(entry.get("own_pid_namespace")),
                finite_number(entry.get("sm_clock_max_mhz")),
                string(entry.get("driver")),
                finite_number(entry.get("power_limit_w")),
            )
    return found


def _flag(value: JsonValue) -> bool | None:
    return value if isinstance(value, bool) else None
