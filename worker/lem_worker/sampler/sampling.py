"""Reads all sources of an attempt, and goes on without a source or a device that fails."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence

from pydantic.types import JsonValue

from lem_domain.errors import LemError
from lem_domain.evidence.streams import StreamName
from lem_domain.wire.workers import Device
from lem_worker.process.evidence_rows import EvidenceRows
from lem_worker.process.protocol import SourceReport
from lem_worker.sampler.latest_readings import Latest
from lem_worker.sampler.sources import (
    DeviceFailed,
    DeviceSample,
    EnergySource,
    PlannedSource,
    ReadingFailed,
    Sample,
    SourceEvent,
    SourceUnavailable,
)

INSIDE_OTHERS = ("core", "uncore", "psys")
"""Host domains that are part of a package's power, or contain it."""


class EnergyRequired(LemError):
    """A source failed and the configuration says that energy is required."""


class _Slot:
    """One source and how it fares."""

    def __init__(self, planned: PlannedSource) -> None:
        self.planned = planned
        self.source: EnergySource | None = None
        self.report = SourceReport(name=planned.name, opened=False)
        self.due_ns = 0
        self.told: set[tuple[Latest, str]] = set()
        """What it has told, of which part."""
        self.facts: list[dict[str, JsonValue]] = []


class Sampling:
    """The open sources; their rows go to the streams that `rows` gives."""

    def __init__(
        self,
        plan: Sequence[PlannedSource],
        create: Callable[[str], EnergySource],
        rows: Callable[[StreamName], EvidenceRows],
        clock: Callable[[], int],
        *,
        required: bool,
    ) -> None:
        self._create = create
        self._rows = rows
        self._clock = clock
        self._required = required
        self._slots = [_Slot(planned) for planned in plan]
        self._device_mw, self._host_mw, self._temperature_c = Latest(), Latest(), Latest()
        self._sums: dict[str, tuple[int, int]] = {}
        self._uuids: tuple[str, ...] = ()
        self._noted: set[tuple[int, str]] = set()

    def open(self, devices: Sequence[Device]) -> tuple[SourceReport, ...]:
        """Open every planned source and take its first samples; a source that can't be opened says why.

        Raises:
            EnergyRequired: one can't, and energy is required.
        """
        self._uuids = tuple(device.uuid for device in devices)
        there: set[str] = set()
        for slot in self._slots:
            name, stands_in_for = slot.planned.name, slot.planned.instead_of
            if stands_in_for in there:
                reason = f"not needed beside {stands_in_for}"
                slot.report = slot.report.model_copy(update={"reason": reason})
                continue
            try:
                source = self._create(name)
                domains = source.open(devices)
                slot.facts = source.facts()
            except Exception as error:
                self._failed(slot, error)
                continue
            there.add(name)
            slot.source = source
            slot.report = SourceReport(name=name, opened=True, method=source.method.value, domains=domains)
            self._read(slot, self._clock())
        return self.reports()

    def reports(self) -> tuple[SourceReport, ...]:
        """Every source, with the reason where it failed."""
        return tuple(slot.report for slot in self._slots)

    def facts(self) -> list[dict[str, JsonValue]]:
        """What the sources know of the devices."""
        return [fact for slot in self._slots for fact in slot.facts]

    def tick(self, now_ns: int) -> None:
        """Read the sources that have something new.

        Raises:
            EnergyRequired: one fails, and energy is required.
        """
        for slot in self._slots:
            if now_ns >= slot.due_ns:
                self._read(slot, now_ns)

    def close(self) -> None:
        """Read every source a last time, however short ago, and close it.

        Raises:
            EnergyRequired: one fails, and energy is required.
        """
        for slot in self._slots:
            self._read(slot, self._clock())
            source, slot.source = slot.source, None
            if source is not None:
                with contextlib.suppress(Exception):  # those from the beginning stand
                    slot.facts = source.facts()
                try:
                    source.close()
                except Exception as error:
                    self._failed(slot, error)

    def power_w(self) -> float | None:
        """The latest power of all devices, or of the host's parts where no device ever told; None while one of them
        does not tell."""
        if self._device_mw.is_told:
            devices = self._device_mw.whole()
            return None if devices is None else sum(devices.values()) / 1000
        parts = [
            power for domain, power in (self._host_mw.whole() or {}).items() if not domain.startswith(INSIDE_OTHERS)
        ]
        return sum(parts) / 1000 if parts else None

    def begin_means(self) -> None:
        """Begin anew to add up the power of each part."""
        self._sums.clear()

    def means_w(self) -> dict[str, float]:
        """Mean power since `begin_means`, by device UUID or host domain, of those that still tell it."""
        return {part: total / count / 1000 for part, (total, count) in self._sums.items()}

    def hottest_c(self) -> int | None:
        """The latest temperature of the hottest device; None where none tells, or one does not any more."""
        return max((self._temperature_c.whole() or {}).values(), default=None)

    def _read(self, slot: _Slot, now_ns: int) -> None:
        if slot.source is None:
            return
        slot.due_ns = now_ns + round(slot.source.min_interval_s * 1e9)
        try:
            samples = slot.source.sample(now_ns)
        except Exception as error:
            slot.source = None
            self._failed(slot, error)
            return
        for sample in samples:
            self._write(slot, sample)

    def _write(self, slot: _Slot, sample: Sample) -> None:
        match sample:
            case DeviceSample():
                self._rows(StreamName.POWER).append(**sample._asdict())
                uuid = self._uuids[sample.device_index]
                if sample.power_mw is not None:
                    self._tell_power(slot, self._device_mw, uuid, sample.power_mw)
                if sample.temperature_c is not None:
                    self._tell(slot, self._temperature_c, uuid, sample.temperature_c)
            case SourceEvent():
                self._rows(StreamName.EVENTS).append(
                    time_ns=sample.time_ns, kind=sample.kind, detail=json.dumps(sample.detail)
                )
            case ReadingFailed():
                self._lose_reading(sample)
            case DeviceFailed():
                self._lose_device(slot, sample)
            case _:
                self._rows(StreamName.HOST_POWER).append(**sample._asdict())
                if sample.power_mw is not None:
                    self._tell_power(slot, self._host_mw, sample.domain, sample.power_mw)

    def _tell_power(self, slot: _Slot, latest: Latest, part: str, power_mw: int) -> None:
        self._tell(slot, latest, part, power_mw)
        total, count = self._sums.get(part, (0, 0))
        self._sums[part] = (total + power_mw, count + 1)

    def _tell(self, slot: _Slot, latest: Latest, part: str, value: int) -> None:
        latest.tell(part, value)
        slot.told.add((latest, part))

    def _lose(self, latest: Latest, part: str) -> None:
        latest.lose(part)
        if latest is not self._temperature_c:
            self._sums.pop(part, None)

    def _lose_reading(self, failed: ReadingFailed) -> None:
        uuid = self._uuids[failed.device_index]
        if failed.column == "power_mw":
            self._device_mw.lose(uuid)
        elif failed.column == "temperature_c":
            self._temperature_c.lose(uuid)
        # A reading that comes and goes is told once.
        if (failed.device_index, failed.reason) not in self._noted:
            self._noted.add((failed.device_index, failed.reason))
            self.event(
                "reading_failed",
                {"device_index": failed.device_index, "reading": failed.reading, "reason": failed.reason},
            )

    def _lose_device(self, slot: _Slot, failed: DeviceFailed) -> None:
        uuid = self._uuids[failed.device_index]
        self._lose(self._device_mw, uuid)
        self._lose(self._temperature_c, uuid)
        reason = f"{slot.report.reason} {failed.reason}" if slot.report.reason else failed.reason
        slot.report = slot.report.model_copy(update={"reason": reason})
        self._note_failure(slot.report.name, failed.reason, uuid)

    def _failed(self, slot: _Slot, error: Exception) -> None:
        for latest, part in slot.told:
            self._lose(latest, part)
        reason = str(error) if isinstance(error, SourceUnavailable) else f"{type(error).__name__}: {error}"
        slot.report = slot.report.model_copy(update={"reason": reason})
        if slot.planned.optional and slot.source is None and not slot.report.opened:
            return
        self._note_failure(slot.report.name, reason, None)

    def _note_failure(self, name: str, reason: str, uuid: str | None) -> None:
        """`uuid` is None where the whole source failed."""
        self.event("source_failed", {"source": name, "device": uuid, "reason": reason})
        if self._required:
            raise EnergyRequired(
                f"the energy source {name} failed and energy.required is set: {reason} "
                "Mend the source, choose others in energy.sources, or set energy.required to false."
            )

    def event(self, kind: str, detail: dict[str, JsonValue]) -> None:
        """A row of the stream `events`."""
        self._rows(StreamName.EVENTS).append(time_ns=self._clock(), kind=kind, detail=json.dumps(detail))
