"""Reads all energy sources of an attempt, and continues without a source or a device that fails."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.errors import LemError
from lem_domain.evidence.streams import StreamName
from lem_domain.wire.workers import Device
from lem_worker.process.evidence_rows import Clock, EvidenceRows
from lem_worker.process.protocol import SourceReport
from lem_worker.sampler.energy_source import (
    DeviceFailed,
    DeviceReturned,
    DeviceSample,
    DomainFailed,
    DomainSilent,
    EnergySource,
    HostSample,
    ReadingFailed,
    ReadingReturned,
    Sample,
    SourceEvent,
    SourceSpec,
    SourceUnavailable,
)


class LatestReadings:
    """Readings by part. A part that stops reporting makes the whole incomplete until it reports again."""

    def __init__(self) -> None:
        self._values: dict[str, int] = {}
        self._missing: set[str] = set()

    @property
    def was_reported(self) -> bool:
        """Whether any part reports the quantity or reported it earlier."""
        return bool(self._values or self._missing)

    def update(self, part: str, value: int) -> None:
        """Store a new reading."""
        self._values[part] = value
        self._missing.discard(part)

    def invalidate(self, part: str) -> None:
        """Forget the part's reading, because it no longer describes the present."""
        self._values.pop(part, None)
        self._missing.add(part)

    def complete(self) -> dict[str, int] | None:
        """The readings by part; None while one is missing."""
        return None if self._missing else self._values


OVERLAPPING_DOMAINS = ("core", "uncore", "psys", "repeated")
"""RAPL domains that are part of a package, contain it, or repeat another: adding them would count power twice."""


NOTED_FAILURES = 10
"""Of one reading, as events; later ones are counted in the sampler's summary."""


class EnergyRequired(LemError):
    """A source failed and the configuration requires energy."""


class _SourceState:
    """A planned source and its state."""

    def __init__(self, spec: SourceSpec, *, has_substitute: bool) -> None:
        self.spec = spec
        self.has_substitute = has_substitute
        self.source: EnergySource | None = None
        self.report = SourceReport(name=spec.name, opened=False)
        self.due_ns = 0
        self.reported: set[tuple[LatestReadings, str]] = set()
        """The quantities and parts that it has reported; they are invalid once it fails."""
        self.facts: list[dict[str, JsonValue]] = []
        self.rounds = 0
        self.rounds_ns = 0
        """Number and total duration of its readings of all parts."""


class EnergySampler:
    """Samples the planned sources into evidence rows and keeps the latest readings."""

    def __init__(
        self,
        plan: Sequence[SourceSpec],
        config: ExperimentConfig,
        rows: Callable[[StreamName], EvidenceRows],
        clock: Clock,
    ) -> None:
        self._config = config
        self._rows = rows
        self._clock = clock
        originals = {spec.instead_of for spec in plan}
        self._states = [_SourceState(spec, has_substitute=spec.name in originals) for spec in plan]
        self._device_mw, self._host_mw, self._temperature_c = LatestReadings(), LatestReadings(), LatestReadings()
        self._sums: dict[str, tuple[int, int]] = {}
        self._uuids: tuple[str, ...] = ()
        self._failures: dict[tuple[int, str], int] = {}
        """How often a reading of a device began to fail."""

    def open(self, devices: Sequence[Device]) -> tuple[SourceReport, ...]:
        """Open every planned source and take its first samples; the reports have the reasons of those that can't open.

        Raises:
            EnergyRequired: a source can't be opened, and energy is required.
        """
        self._uuids = tuple(device.uuid for device in devices)
        opened: set[str] = set()
        for state in self._states:
            spec = state.spec
            if spec.instead_of in opened:
                state.report = state.report.model_copy(
                    update={"reason": f"not needed, because {spec.instead_of} is open"}
                )
                continue
            try:
                source = spec.create(self._config, self._clock)
                parts = source.open(devices)
                state.facts = source.facts()
            except Exception as error:
                self._note_source_failure(state, error)
                continue
            opened.add(spec.name)
            state.source = source
            state.report = SourceReport(name=spec.name, opened=True, method=spec.method.value, domains=parts)
            self._read(state, self._clock())
        return self.reports()

    def reports(self) -> tuple[SourceReport, ...]:
        """Every planned source, with the reason where it failed."""
        return tuple(state.report for state in self._states)

    def facts(self) -> list[dict[str, JsonValue]]:
        """Constant facts of the devices, from all sources."""
        return [fact for state in self._states for fact in state.facts]

    def rounds(self) -> list[dict[str, JsonValue]]:
        """Mean duration of reading all parts of a source once, for the sources that were read."""
        return [
            {"source": state.spec.name, "rounds": state.rounds, "mean_ms": state.rounds_ns / state.rounds / 1e6}
            for state in self._states
            if state.rounds
        ]

    def failures(self) -> list[dict[str, JsonValue]]:
        """How often each reading of each device began to fail."""
        return [
            {"device_index": index, "reading": reading, "times": times}
            for (index, reading), times in sorted(self._failures.items())
        ]

    def tick(self, now_ns: int) -> None:
        """Read the sources that are due.

        Raises:
            EnergyRequired: a source fails, and energy is required.
        """
        for state in self._states:
            if now_ns >= state.due_ns:
                self._read(state, now_ns)

    def close(self) -> None:
        """Read every source a last time, due or not, so that samples cover the whole attempt; then close it.

        Raises:
            EnergyRequired: a source fails, and energy is required.
        """
        for state in self._states:
            self._read(state, self._clock())
            source, state.source = state.source, None
            if source is not None:
                with contextlib.suppress(Exception):  # the facts from `open` remain
                    state.facts = source.facts()
                try:
                    source.close()
                except Exception as error:
                    self._note_source_failure(state, error)

    def power_w(self) -> float | None:
        """Latest power of all devices, or of the host where no device ever reported power; None while one is missing.

        The host never substitutes for devices that failed: its power is not theirs.
        """
        if self._device_mw.was_reported:
            devices = self._device_mw.complete()
            return None if devices is None else sum(devices.values()) / 1000
        parts = [
            power
            for domain, power in (self._host_mw.complete() or {}).items()
            if not domain.startswith(OVERLAPPING_DOMAINS)
        ]
        return sum(parts) / 1000 if parts else None

    def begin_means(self) -> None:
        """Start the means of `means_w`."""
        self._sums.clear()

    def means_w(self) -> dict[str, float]:
        """Mean power since `begin_means` by device UUID or host domain, of the parts that still report it."""
        return {part: total / count / 1000 for part, (total, count) in self._sums.items()}

    def hottest_c(self) -> int | None:
        """Latest temperature of the hottest device; None without any, or while one that reported it is missing."""
        return max((self._temperature_c.complete() or {}).values(), default=None)

    def event(self, kind: str, detail: dict[str, JsonValue]) -> None:
        """Write a row of the stream `events`."""
        self._write_event(SourceEvent(self._clock(), kind, detail))

    def _read(self, state: _SourceState, now_ns: int) -> None:
        if state.source is None:
            return
        state.due_ns = now_ns + round(state.spec.min_interval_s * 1e9)
        try:
            began_ns = self._clock()
            samples = state.source.sample(now_ns)
            state.rounds += 1
            state.rounds_ns += self._clock() - began_ns
        except Exception as error:
            state.source = None
            self._note_source_failure(state, error)
            return
        for sample in samples:
            self._write(state, sample)

    def _write(self, state: _SourceState, sample: Sample) -> None:
        match sample:
            case DeviceSample():
                self._rows(StreamName.POWER).append(**sample._asdict())
                uuid = self._uuids[sample.device_index]
                if sample.power_mw is not None:
                    self._update_power(state, self._device_mw, uuid, sample.power_mw)
                if sample.temperature_c is not None:
                    self._update(state, self._temperature_c, uuid, sample.temperature_c)
            case HostSample():
                self._rows(StreamName.HOST_POWER).append(**sample._asdict(), method=state.spec.method.value)
                if sample.power_mw is not None:
                    self._update_power(state, self._host_mw, sample.domain, sample.power_mw)
            case SourceEvent():
                self._write_event(sample)
            case ReadingFailed():
                self._invalidate_reading(sample)
            case ReadingReturned():
                self._note_return(sample)
            case DeviceFailed():
                self._invalidate_device(state, sample)
            case DeviceReturned():
                uuid = self._uuids[sample.device_index]
                detail: dict[str, JsonValue] = {"source": state.report.name, "device": uuid, "away_s": sample.away_s}
                self._write_event(SourceEvent(sample.time_ns, "source_returned", detail))
            case DomainSilent():
                self._invalidate(self._host_mw, sample.domain)
                silent: dict[str, JsonValue] = {"domain": sample.domain, "reading": "counter", "reason": sample.reason}
                self._write_event(SourceEvent(sample.time_ns, "reading_failed", silent))
            case DomainFailed():
                self._invalidate(self._host_mw, sample.domain)
                self._note_part_failure(state, sample.domain, sample.reason)

    def _write_event(self, event: SourceEvent) -> None:
        self._rows(StreamName.EVENTS).append(time_ns=event.time_ns, kind=event.kind, detail=json.dumps(event.detail))

    def _update_power(self, state: _SourceState, latest: LatestReadings, part: str, power_mw: int) -> None:
        self._update(state, latest, part, power_mw)
        total, count = self._sums.get(part, (0, 0))
        self._sums[part] = (total + power_mw, count + 1)

    def _update(self, state: _SourceState, latest: LatestReadings, part: str, value: int) -> None:
        latest.update(part, value)
        state.reported.add((latest, part))

    def _invalidate(self, latest: LatestReadings, part: str) -> None:
        latest.invalidate(part)
        if latest is not self._temperature_c:
            self._sums.pop(part, None)

    def _invalidate_reading(self, failed: ReadingFailed) -> None:
        uuid = self._uuids[failed.device_index]
        if failed.column == "power_mw":
            self._device_mw.invalidate(uuid)
        elif failed.column == "temperature_c":
            self._temperature_c.invalidate(uuid)
        reading = (failed.device_index, failed.reading)
        self._failures[reading] = self._failures.get(reading, 0) + 1
        # A reading that fails again and again is noted a few times, or a busy driver would fill the stream.
        if self._failures[reading] <= NOTED_FAILURES:
            detail: dict[str, JsonValue] = {
                "device_index": failed.device_index,
                "reading": failed.reading,
                "reason": failed.reason,
            }
            self._write_event(SourceEvent(failed.time_ns, "reading_failed", detail))

    def _note_return(self, returned: ReadingReturned) -> None:
        if self._failures.get((returned.device_index, returned.reading), 0) <= NOTED_FAILURES:
            detail: dict[str, JsonValue] = {
                "device_index": returned.device_index,
                "reading": returned.reading,
                "away_s": returned.away_s,
            }
            self._write_event(SourceEvent(returned.time_ns, "reading_returned", detail))

    def _invalidate_device(self, state: _SourceState, failed: DeviceFailed) -> None:
        uuid = self._uuids[failed.device_index]
        self._invalidate(self._device_mw, uuid)
        self._invalidate(self._temperature_c, uuid)
        self._note_part_failure(state, uuid, failed.reason)

    def _note_part_failure(self, state: _SourceState, part: str, reason: str) -> None:
        known = state.report.reason or ""
        if reason not in known:
            state.report = state.report.model_copy(update={"reason": f"{known} {reason}".strip()})
        self._note_failure(state.report.name, reason, part)

    def _note_source_failure(self, state: _SourceState, error: Exception) -> None:
        for latest, part in state.reported:
            self._invalidate(latest, part)
        reason = _reason(error)
        state.report = state.report.model_copy(update={"reason": reason})
        # With a substitute, a source that can't be opened is no failure: the substitute is opened next.
        if not (state.has_substitute and not state.report.opened):
            self._note_failure(state.report.name, reason, None)

    def _note_failure(self, name: str, reason: str, part: str | None) -> None:
        """`part` is a device's UUID or a domain; None where the whole source failed."""
        self.event("source_failed", {"source": name, "device": part, "reason": reason})
        if self._config.energy.required:
            raise EnergyRequired(
                f"the energy source {name} failed and energy.required is set: {reason} "
                "Repair the source, choose others in energy.sources, or set energy.required to false."
            )


def _reason(error: Exception) -> str:
    match error:
        case SourceUnavailable():
            return str(error)
        case ImportError():
            return f"it needs the package {error.name}; install llm-energy-measurement[worker]."
        case _:
            return f"{type(error).__name__}: {error}"
