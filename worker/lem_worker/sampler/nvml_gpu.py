"""One leased GPU or MIG instance as NVML shows it: samples, facts and foreign processes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pynvml
from pydantic.types import JsonValue

from lem_worker.devices.gpu_memory import BelongsToAttempt, is_in_own_pid_namespace, is_possible_pid
from lem_worker.devices.nvml_calls import REFUSALS, memory_calls, temperature_calls
from lem_worker.devices.nvml_facts import gpu_facts, watched_facts
from lem_worker.process.evidence_rows import Clock
from lem_worker.sampler.energy_source import (
    DeviceFailed,
    DeviceReturned,
    DeviceSample,
    ReadingFailed,
    ReadingReturned,
    Sample,
    SourceEvent,
    SourceUnavailable,
)
from lem_worker.sampler.nvml_queries import NvmlQueries, number, wait_ns

_SLOW_NS = 200_000_000
"""Temperature, clocks, utilisation and memory change slowly, and reading them takes longer than power does."""
_FOREIGN_PROCESSES_NS = 1_000_000_000
_FACTS_NS = 2_000_000_000
"""Limits, modes and clock settings that an administrator or a scheduler may change during a run."""
_JITTER = 0.5
"""Distances between looks vary by this share, so that nothing periodic hides between them. The generator is seeded with
the device, so that two runs look at the same distances."""
GIVEN_UP_S = 5.0
"""A device without power and energy for so long counts as failed. A driver that restarts a GPU, or is busy, takes a
second or two; counted in time, because ticks are as short as the user wants them. The device is asked further."""
STAND_IN_S = 1.0
"""The average power, which is a mean over one second, replaces the instant power once that has failed for so long."""
_FIRST_QUESTIONS = 3
"""A reading counts as refused at the opening only after so many refusals: drivers refuse one that they have."""

_COUNTER = "energy counter"
_INSTANT = "instant power"
_AVERAGE = "average power"
_MOST_INT64 = 2**63 - 1
_MOST_INT32 = 2**31 - 1
_MOST_MW = 100_000_000
"""No device draws 100 kW."""


class NotOpened(SourceUnavailable):
    """NVML can't open a device at the moment."""


class LeasedGpu:
    """A device of which unsupported and failing readings are null; it fails only without any power and energy.

    Raises:
        NotOpened: NVML can't open the device.
        SourceUnavailable: NVML offers neither power nor energy of it.
    """

    def __init__(self, index: int, uuid: str, clock: Clock) -> None:
        self.index = index
        self.uuid = uuid
        self._clock = clock
        try:
            self._device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._is_instance = self._is_mig_instance()
            self._chip = self._device
            if self._is_instance:
                self._chip = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self._device)
        except pynvml.NVMLError as error:
            raise NotOpened(f"NVML can't open {uuid} ({error}); see what nvidia-smi says of it.") from error
        self._queries = NvmlQueries(index, uuid, clock)
        self._read = self._queries.read
        self._jitter = random.Random(uuid)
        self._facts: dict[str, JsonValue] = {}
        self._silent_since_ns: int | None = None
        self._failed_since_ns: int | None = None
        self._slow_due_ns = 0
        self._facts_due_ns = 0
        self._watched: dict[str, JsonValue] = {}
        self._foreign_due_ns = 0
        self._foreign_pids: set[int] = set()
        self._unidentified: set[int] = set()
        self._own_listed = False
        self._use_seen_us = 0
        self._served: str | None = None
        self._served_average = False
        for _ in range(_FIRST_QUESTIONS):
            self._energy_mj()
            self._power_mw()
        # A reading that fails at the moment still counts as supported: it may succeed later.
        if not any(self._queries.is_supported(name) for name in (_COUNTER, _INSTANT, _AVERAGE)):
            raise SourceUnavailable(f"NVML has neither power nor energy of {uuid}; name other energy.sources.")

    def sample(self, due_ns: int, belongs: BelongsToAttempt) -> list[Sample]:
        """Read counter and power, about every 200 ms the slow readings, and report failures and foreign processes.

        `due_ns` is the time of the tick; the sample has the clock's time between the readings of counter and power.
        """
        energy_mj = self._energy_mj()
        now_ns = self._clock()
        reading, power_mw = self._power_mw()
        sample = DeviceSample(self.index, now_ns, power_mw=power_mw, energy_mj=energy_mj)
        if now_ns >= self._slow_due_ns:
            self._slow_due_ns = now_ns + self._about(_SLOW_NS)
            sample = self._with_slow_readings(sample)
        changes = [*self._silence(now_ns, is_silent=energy_mj is None and power_mw is None)]
        if reading is not None:
            if self._served not in (None, reading):
                changes.append(self._event(now_ns, "power_reading", reading=reading, before=self._served))
            self._served = reading
            self._served_average |= reading == "average"
        if now_ns >= self._facts_due_ns:
            self._facts_due_ns = now_ns + self._about(_FACTS_NS)
            changes += self._changed_facts(now_ns)
        foreign = self._foreign_process_events(due_ns, belongs)
        # A failure comes before the sample, which may have the reading again.
        news: list[Sample] = [*self._queries.take_news(), *changes]
        return [*news, sample, *foreign] if sample != DeviceSample(self.index, now_ns) else [*news, *foreign]

    def facts(self) -> dict[str, JsonValue]:
        """Facts that don't change during an attempt; those that could not be read are read again."""
        read: dict[str, JsonValue] = {
            "index": self.index,
            "uuid": self.uuid,
            "mig_parent_uuid": self._parent_uuid(),
            **gpu_facts(self._device, self._chip, self._read),
        }
        self._facts = {**read, **{name: value for name, value in self._facts.items() if value is not None}}
        self._facts["power_reading"] = self._power_reading()
        self._facts["own_processes_listed"] = self._own_listed
        self._facts["own_pid_namespace"] = is_in_own_pid_namespace()
        self._facts["unsupported"] = [*self._queries.refused()]
        return self._facts

    def _changed_facts(self, now_ns: int) -> Iterator[Sample]:
        """Report watched facts that have another value than before; the facts of the device keep the first one."""
        for name, value in watched_facts(self._chip, self._read).items():
            before = self._watched.get(name)
            if value is None:  # it could not be read
                continue
            self._watched[name] = value
            if before is not None and before != value:
                yield self._event(now_ns, "fact_changed", fact=name, before=before, after=value)

    def _about(self, distance_ns: int) -> int:
        return round(distance_ns * self._jitter.uniform(1 - _JITTER, 1 + _JITTER))

    def _is_mig_instance(self) -> bool:
        try:
            return bool(pynvml.nvmlDeviceIsMigDeviceHandle(self._device))
        except pynvml.NVMLError as error:
            if error.value in REFUSALS:  # a driver or a chip without MIG
                return False
            raise

    def _silence(self, now_ns: int, *, is_silent: bool) -> Iterator[Sample]:
        """Count the time without power and energy; report the device as failed after `GIVEN_UP_S`, and its return."""
        if not is_silent:
            if self._failed_since_ns is not None:
                yield DeviceReturned(self.index, now_ns, (now_ns - self._failed_since_ns) / 1e9)
            self._silent_since_ns = self._failed_since_ns = None
            return
        if self._silent_since_ns is None:
            self._silent_since_ns = now_ns
        if self._failed_since_ns is None and now_ns - self._silent_since_ns >= GIVEN_UP_S * 1e9:
            self._failed_since_ns = self._silent_since_ns
            reasons = [
                why for name in (_COUNTER, _INSTANT, _AVERAGE) if (why := self._queries.failure(name)) is not None
            ]
            unsupported = f"NVML has neither power nor energy of {self.uuid} any more; see what nvidia-smi says of it."
            yield DeviceFailed(self.index, now_ns, reasons[0] if reasons else unsupported)

    def _energy_mj(self) -> int | None:
        energy_mj: int | None = self._read(
            _COUNTER,
            lambda: number(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._chip), 0, _MOST_INT64),
            column="energy_mj",
        )
        return energy_mj

    def _power_reading(self) -> str | None:
        """The reading that the power samples have; `average` if any has it, because its bound is the wider one."""
        if self._served is not None:
            return "average" if self._served_average else self._served
        if self._queries.is_supported(_INSTANT):
            return "instant"
        return "average" if self._queries.is_supported(_AVERAGE) else None

    def _power_mw(self) -> tuple[str | None, int | None]:
        """The power with the name of its reading; the average replaces an instant power that is not there."""
        power_mw: int | None = self._read(_INSTANT, self._instant_mw, column="power_mw")
        if power_mw is not None:
            return "instant", power_mw
        if self._queries.is_supported(_INSTANT) and self._queries.failing_s(_INSTANT) < STAND_IN_S:
            return None, None
        power_mw = self._read(
            _AVERAGE, lambda: number(pynvml.nvmlDeviceGetPowerUsage(self._chip), 0, _MOST_MW), column="power_mw"
        )
        return ("average", power_mw) if power_mw is not None else (None, None)

    def _instant_mw(self) -> int:
        [field] = pynvml.nvmlDeviceGetFieldValues(self._chip, [pynvml.NVML_FI_DEV_POWER_INSTANT])
        if field.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(field.nvmlReturn)
        return number(field.value.uiVal, 0, _MOST_MW)

    def _with_slow_readings(self, sample: DeviceSample) -> DeviceSample:
        use = self._read("utilisation", self._utilisation)
        return sample._replace(
            memory_used_bytes=self._read("memory", *memory_calls(pynvml, self._device, "used")),
            gpu_percent=None if use is None else use[0],
            memory_percent=None if use is None else use[1],
            temperature_c=self._read("temperature", *temperature_calls(pynvml, self._chip), column="temperature_c"),
            sm_clock_mhz=self._read("sm clock", partial(self._clock_mhz, pynvml.NVML_CLOCK_SM)),
            memory_clock_mhz=self._read("memory clock", partial(self._clock_mhz, pynvml.NVML_CLOCK_MEM)),
            # NVML renamed "throttle reasons" to "event reasons" in driver 535.
            throttle_reasons=self._read(
                "clocks event reasons",
                lambda: number(pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._chip), 0, _MOST_INT64),
                lambda: number(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._chip), 0, _MOST_INT64),
            ),
            power_violation_ns=self._violation_ns("power", pynvml.NVML_PERF_POLICY_POWER),
            thermal_violation_ns=self._violation_ns("thermal", pynvml.NVML_PERF_POLICY_THERMAL),
            board_violation_ns=self._violation_ns("board", pynvml.NVML_PERF_POLICY_BOARD_LIMIT),
            reliability_violation_ns=self._violation_ns("reliability", pynvml.NVML_PERF_POLICY_RELIABILITY),
        )

    def _violation_ns(self, policy: str, kind: int) -> int | None:
        """For how long the policy has kept clocks low since the driver was loaded (nvmlViolationTime_t)."""
        spent_ns: int | None = self._read(
            f"{policy} violation",
            lambda: number(pynvml.nvmlDeviceGetViolationStatus(self._chip, kind).violationTime, 0, _MOST_INT64),
        )
        return spent_ns

    def _utilisation(self) -> tuple[int, int]:
        use = pynvml.nvmlDeviceGetUtilizationRates(self._device)
        return number(use.gpu, 0, 100), number(use.memory, 0, 100)

    def _clock_mhz(self, kind: int) -> int:
        return number(pynvml.nvmlDeviceGetClockInfo(self._chip, kind), 0, _MOST_INT32)

    def _parent_uuid(self) -> str | None:
        if not self._is_instance:
            return None
        uuid: str | bytes | None = self._read("UUID of its GPU", lambda: pynvml.nvmlDeviceGetUUID(self._chip))
        return uuid.decode() if isinstance(uuid, bytes) else uuid

    def _foreign_process_events(self, now_ns: int, belongs: BelongsToAttempt) -> list[SourceEvent]:
        """Foreign processes that appeared on the device or left it; looked for about once a second.

        NVML lists pids of the host's namespace, which a sampler in a container can't inspect. Such a process is known
        to be foreign only if it was there at the first look, before the engine. Whether pids can be compared at all is
        in the facts: a process of the attempt that NVML lists under its pid shows it. A pid that no process can have is
        one that can't be identified.
        """
        if now_ns < self._foreign_due_ns:
            return []
        first = self._foreign_due_ns == 0
        self._foreign_due_ns = now_ns + self._about(_FOREIGN_PROCESSES_NS)
        listed = self._process_memory()
        if listed is None:
            return []
        memory = {pid: held for pid, held in listed.items() if is_possible_pid(pid)}
        owned = {pid: belongs(pid) for pid in memory}
        self._own_listed |= True in owned.values()
        used = {pid: share for pid, share in self._sm_percent().items() if owned.get(pid, belongs(pid)) is False}
        foreign = {pid for pid, ours in owned.items() if ours is False or (first and ours is None)} | used.keys()
        present = memory.keys() | used.keys()
        foreign |= self._foreign_pids & present
        events = []
        for pid in sorted(foreign - self._foreign_pids):
            detail: dict[str, JsonValue] = {"pid": pid, "memory_bytes": memory.get(pid)}
            if pid in used:
                detail["sm_percent"] = used[pid]
            events.append(self._event(now_ns, "foreign_process", **detail))
        events += [self._event(now_ns, "foreign_process_gone", pid=pid) for pid in sorted(self._foreign_pids - present)]
        for pid in sorted(listed.keys() - memory.keys() - self._unidentified):
            self._unidentified.add(pid)
            events.append(self._event(now_ns, "unidentified_process", listed_as=pid, memory_bytes=listed[pid]))
        self._foreign_pids = foreign
        return events

    def _sm_percent(self) -> dict[int, int]:
        """Use of the device's compute units since the previous look, by pid; empty where NVML does not offer it."""

        def read() -> dict[int, int]:
            try:
                samples = pynvml.nvmlDeviceGetProcessUtilization(self._device, self._use_seen_us)
            except pynvml.NVMLError as error:
                if error.value in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND):  # no process used it
                    return {}
                raise
            found: dict[int, int] = {}
            for one in samples:
                self._use_seen_us = max(self._use_seen_us, int(one.timeStamp))
                if is_possible_pid(int(one.pid)) and 0 < one.smUtil <= 100:
                    found[int(one.pid)] = max(found.get(int(one.pid), 0), int(one.smUtil))
            return found

        return self._read("use by processes", read) or {}

    def _process_memory(self) -> dict[int, int | None] | None:
        """Memory by pid of the compute, MPS and graphics processes on the device; None while a list fails.

        For a MIG instance the processes of the whole GPU count too, where the rights allow to list them, because the
        power is that of the whole GPU.
        """
        found: dict[int, int | None] = {}
        for handle, suffix in ((self._device, ""), *([(self._chip, " of its GPU")] if self._is_instance else [])):
            for kind in ("Compute", "MPSCompute", "Graphics"):
                listed = self._running(kind, handle, suffix)
                if listed is None:
                    return None
                for process in listed:
                    found.setdefault(int(process.pid), process.usedGpuMemory)
        return found

    def _running(self, kind: str, handle: Any, suffix: str) -> Sequence[Any] | None:
        """The processes of a kind; empty where NVML does not offer the list, None where the call fails."""
        name = f"{kind} processes{suffix}"
        # Drivers before 510 lack the _v3 functions. pynvml's unversioned names raise another exception there.
        calls = [partial(getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses_{v}"), handle) for v in ("v3", "v2")]
        listed: Sequence[Any] | None = self._read(name, *calls)
        return listed if listed is not None or self._queries.is_supported(name) else ()

    def _event(self, now_ns: int, kind: str, **detail: JsonValue) -> SourceEvent:
        return SourceEvent(now_ns, kind, {"device_index": self.index, **detail})


class AbsentGpu:
    """A leased device that can't be read yet, for the reason given; it is tried again, as a failing reading is."""

    def __init__(self, index: int, uuid: str, reason: str, clock: Clock) -> None:
        self.index = index
        self.uuid = uuid
        self._reason = reason
        self._clock = clock
        self._since_ns = self._due_ns = clock()
        self._was_reported = False
        self._has_failed = False

    def look(self) -> tuple[LeasedGpu | None, list[Sample]]:
        """Return the device once it can be read, with what is new: its first failure, that it failed, its return."""
        now_ns = self._clock()
        away_ns = now_ns - self._since_ns
        news: list[Sample] = []
        if not self._was_reported:
            self._was_reported = True
            # Its power is unknown, so the sum over the devices is, too.
            news.append(ReadingFailed(self.index, self._since_ns, "device", self._reason, column="power_mw"))
        if now_ns >= self._due_ns:
            try:
                gpu = LeasedGpu(self.index, self.uuid, self._clock)
            except SourceUnavailable as error:
                self._reason = str(error)
                self._due_ns = now_ns + wait_ns(away_ns)
            else:
                returned = DeviceReturned(self.index, now_ns, away_ns / 1e9)
                brief = ReadingReturned(self.index, now_ns, "device", away_ns / 1e9)
                return gpu, [*news, returned if self._has_failed else brief]
        if not self._has_failed and away_ns >= GIVEN_UP_S * 1e9:
            self._has_failed = True
            news.append(DeviceFailed(self.index, now_ns, self._reason))
        return None, news
