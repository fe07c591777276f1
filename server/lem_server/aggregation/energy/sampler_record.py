"""Reads what the sampler recorded next to power: baselines, clocks, foreign processes, devices and its own load.

The worker writes these records freely. An entry of another shape is ignored: it makes a figure null, never an error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import Field
from pydantic.types import JsonValue

from lem_domain.evidence.streams import SAMPLER, PhaseName, StreamName
from lem_domain.results.energy import BaselineContext
from lem_domain.wire.workers import Device
from lem_server.aggregation.energy.traces import Span
from lem_server.aggregation.evidence_reader import EvidenceReader
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import Maybe, Recorded, finite_number, json_object, records


class BaselineSpan(NamedTuple):
    """The time of a baseline, and whether the sampler found power steady."""

    span: Span
    stationary: bool | None


class ReusedBaseline(Recorded):
    """An idle baseline of an earlier attempt, by device UUID or host domain."""

    parts_w: dict[str, float] = Field(alias="parts")
    age_s: float
    taken_by: Maybe[str] = None


class ClockReading(Recorded):
    """Both clocks at one instant; the error of the wall clock is at most `uncertainty_ns`."""

    monotonic_ns: int
    utc_ns: int
    uncertainty_ns: int = 0


class ForeignProcess(Recorded):
    """A process on a leased device that the attempt did not start; `gone_ns` is None if it was not seen to end."""

    device_index: int
    pid: int
    seen_ns: int = Field(alias="time_ns")
    gone_ns: int | None = None
    memory_bytes: Maybe[int] = None
    sm_percent: Maybe[int] = None
    """Its use of the compute units when it was found, where the driver shows it."""


class UnidentifiedProcess(Recorded):
    """A process on a leased device under a pid that no process can have."""

    device_index: int
    seen_ns: int = Field(alias="time_ns")
    memory_bytes: Maybe[int] = None


class CpuTime(Recorded):
    """Processor time of the host and of the worker since the machine started, in seconds over all cores."""

    time_ns: int
    busy_s: float
    own_s: float


class ChangedFact(Recorded):
    """A fact of a device that was changed during the attempt."""

    device_index: int
    time_ns: int
    fact: str
    before: JsonValue = None
    after: JsonValue = None


class CounterGap(Recorded):
    """A step of a host domain's counter of which nothing is known; `time_ns` is that of the sample after it."""

    domain: str
    time_ns: int
    reason: str = "it was reset"


class RepeatedCounter(Recorded):
    """A host domain that shows the counter of another one."""

    domain: str
    repeats: str


class Settling(Recorded):
    """Whether the devices had settled before the window, and if not, the condition that did not hold."""

    settled: bool
    reason: Maybe[str] = None


class PowerAtRest(Recorded):
    """Power of a device without work when its worker started, without and with sampling."""

    unsampled_w: float
    sampled_w: float
    uncertainty_w: float


class DeviceFacts(Recorded):
    """Facts about a device that the sampler reported; None where it did not."""

    uuid: str
    power_reading: Maybe[str] = None
    mig_parent_uuid: Maybe[str] = None
    own_processes_listed: Maybe[bool] = None
    """Whether the driver listed a process of the attempt under its pid, so that pids can be compared."""
    own_pid_namespace: Maybe[bool] = None
    sm_clock_max_mhz: Maybe[float] = None
    driver: Maybe[str] = None
    power_limit_w: Maybe[float] = None
    """The enforced limit."""
    at_rest: Maybe[PowerAtRest] = Field(default=None, alias="idle_power")


class SourceRounds(Recorded):
    """How long it took to read all parts of a source once."""

    source: str
    mean_ms: Maybe[float] = None


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
        rounds = records(SourceRounds, self.summary.get("rounds"))
        return next((one.mean_ms for one in rounds if one.source == source), None)

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
    details: dict[str, list[dict[str, object]]] = defaultdict(list)
    for event in sorted(events, key=lambda row: (row["time_ns"], row["kind"], row["detail"] or "")):
        details[event["kind"]].append({**json_object(event["detail"]), "time_ns": event["time_ns"]})
    summary = summaries.get(SAMPLER, {})
    reused = records(ReusedBaseline, details["baseline_reused"])
    return SamplerRecord(
        baselines=_baselines(phases),
        settling=_settling(phases),
        changed_facts=records(ChangedFact, details["fact_changed"]),
        counter_gaps=records(CounterGap, details["counter_gap"]),
        repeated_counters=records(RepeatedCounter, details["repeated_counter"]),
        reused=reused[-1] if reused else None,
        clocks=records(ClockReading, details["clock"]),
        foreign_processes=_foreign_processes(details["foreign_process"], details["foreign_process_gone"]),
        unidentified_processes=records(UnidentifiedProcess, details["unidentified_process"]),
        cpu_loads=records(CpuTime, details["cpu_load"]),
        facts={one.uuid: one for one in records(DeviceFacts, summary.get("devices"))},
        summary=summary,
    )


class _BaselineEnd(Recorded):
    context: BaselineContext
    stationary: Maybe[bool] = None


def _baselines(rows: list[dict[str, Any]]) -> dict[BaselineContext, BaselineSpan]:
    """Return the last baseline of each context."""
    found: dict[BaselineContext, BaselineSpan] = {}
    begun: int | None = None
    for row in sorted(rows, key=lambda row: (row["time_ns"], row["edge"] == "begin")):
        if row["phase"] != PhaseName.BASELINE:
            continue
        if row["edge"] == "begin":
            begun = row["time_ns"]
            continue
        end = _BaselineEnd.of(json_object(row["detail"]))
        if end is not None and begun is not None and begun < row["time_ns"]:
            found[end.context] = BaselineSpan(Span(begun, row["time_ns"]), end.stationary)
        begun = None
    return found


def _settling(rows: list[dict[str, Any]]) -> Settling | None:
    """Return the outcome of the last time that the devices were to settle."""
    ends = [row for row in rows if row["phase"] == PhaseName.SETTLE and row["edge"] == "end"]
    return Settling.of(json_object(max(ends, key=lambda row: row["time_ns"])["detail"])) if ends else None


class _ProcessGone(Recorded):
    device_index: int
    pid: int
    time_ns: int


def _foreign_processes(seen: list[dict[str, object]], gone: list[dict[str, object]]) -> tuple[ForeignProcess, ...]:
    """Complete each process that was seen with the first time after it at which it was gone."""
    ends = records(_ProcessGone, gone)
    found = []
    for one in records(ForeignProcess, seen):
        own = [end.time_ns for end in ends if (end.device_index, end.pid) == (one.device_index, one.pid)]
        gone_ns = min((time_ns for time_ns in own if time_ns >= one.seen_ns), default=None)
        found.append(one.model_copy(update={"gone_ns": gone_ns}))
    return tuple(found)
