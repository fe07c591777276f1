"""One leased GPU or MIG instance as NVML shows it: samples, facts and foreign processes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pynvml
from pydantic.types import JsonValue

from lem_worker.devices.gpu_memory import BelongsToAttempt
from lem_worker.devices.nvml_facts import gpu_facts
from lem_worker.process.evidence_rows import Clock
from lem_worker.sampler.energy_source import DeviceFailed, DeviceSample, Sample, SourceEvent, SourceUnavailable
from lem_worker.sampler.nvml_queries import NvmlQueries

_SLOW_NS = 200_000_000
"""Temperature, clocks, utilisation and memory change slowly, and reading them takes longer than power does."""
_FOREIGN_PROCESSES_NS = 1_000_000_000
FAILED_TICKS = 5
"""A device without power and energy in so many successive ticks is given up. A busy driver refuses a call now and then;
five refusals, at 50 ms a quarter of a second, would be a gap that a window of seconds can't tolerate."""

_COUNTER = "energy counter"
_INSTANT = "instant power"
_AVERAGE = "average power"


class LeasedGpu:
    """A device of which unsupported and failing readings are null; it fails only without any power and energy.

    Raises:
        SourceUnavailable: NVML can't open the device, or offers neither power nor energy of it.
    """

    def __init__(self, index: int, uuid: str) -> None:
        self.index = index
        self.uuid = uuid
        try:
            self._device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            self._is_instance = bool(pynvml.nvmlDeviceIsMigDeviceHandle(self._device))
            self._chip = self._device
            if self._is_instance:
                self._chip = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self._device)
        except pynvml.NVMLError as error:
            raise SourceUnavailable(f"NVML can't open {uuid} ({error}); see what nvidia-smi says of it.") from error
        self._queries = NvmlQueries(index, uuid)
        self._read = self._queries.read
        self._facts: dict[str, JsonValue] = {}
        self._failed = False
        self._failed_ticks = 0
        self._slow_due_ns = 0
        self._foreign_due_ns = 0
        self._foreign_pids: set[int] = set()
        self._energy_mj()
        self._power_mw()
        # A reading that fails at the moment still counts as supported: it may succeed later.
        if not any(self._queries.is_supported(name) for name in (_COUNTER, _INSTANT, _AVERAGE)):
            raise SourceUnavailable(f"NVML has neither power nor energy of {uuid}; name other energy.sources.")

    def sample(self, due_ns: int, clock: Clock, belongs: BelongsToAttempt) -> list[Sample]:
        """Read counter and power, every 200 ms the slow readings, and report failures and foreign processes.

        `due_ns` is the time of the tick; the sample has the clock's time between the readings of counter and power.
        """
        if self._failed:
            return []
        energy_mj = self._energy_mj()
        now_ns = clock()
        power_mw = self._power_mw()
        if energy_mj is None and power_mw is None:
            return [*self._queries.take_failures(now_ns), *self._count_failed_tick(now_ns)]
        self._failed_ticks = 0
        sample = DeviceSample(self.index, now_ns, power_mw=power_mw, energy_mj=energy_mj)
        if now_ns >= self._slow_due_ns:
            self._slow_due_ns = now_ns + _SLOW_NS
            sample = self._with_slow_readings(sample)
        foreign = self._foreign_process_events(due_ns, belongs)
        return [sample, *foreign, *self._queries.take_failures(now_ns)]

    def facts(self) -> dict[str, JsonValue]:
        """Facts that don't change during an attempt; those that could not be read are read again."""
        read: dict[str, JsonValue] = {
            "index": self.index,
            "uuid": self.uuid,
            "power_reading": self._power_reading(),
            "mig_parent_uuid": self._parent_uuid(),
            **gpu_facts(self._device, self._chip, self._read),
        }
        self._facts = {**read, **{name: value for name, value in self._facts.items() if value is not None}}
        return self._facts

    def _count_failed_tick(self, now_ns: int) -> list[Sample]:
        self._failed_ticks += 1
        if self._failed_ticks < FAILED_TICKS:
            return []
        self._failed = True
        reasons = [why for name in (_COUNTER, _INSTANT, _AVERAGE) if (why := self._queries.failure(name)) is not None]
        unsupported = f"NVML has neither power nor energy of {self.uuid} any more; see what nvidia-smi says of it."
        return [DeviceFailed(self.index, now_ns, reasons[0] if reasons else unsupported)]

    def _energy_mj(self) -> int | None:
        energy_mj: int | None = self._read(
            _COUNTER, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._chip), "energy_mj"
        )
        return energy_mj

    def _power_reading(self) -> str | None:
        if self._queries.is_supported(_INSTANT):
            return "instant"
        return "average" if self._queries.is_supported(_AVERAGE) else None

    def _power_mw(self) -> int | None:
        power_mw: int | None = self._read(_INSTANT, self._instant_mw, "power_mw")
        if power_mw is None and not self._queries.is_supported(_INSTANT):
            power_mw = self._read(_AVERAGE, lambda: pynvml.nvmlDeviceGetPowerUsage(self._chip), "power_mw")
        return power_mw

    def _instant_mw(self) -> int:
        [field] = pynvml.nvmlDeviceGetFieldValues(self._chip, [pynvml.NVML_FI_DEV_POWER_INSTANT])
        if field.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(field.nvmlReturn)
        return int(field.value.uiVal)

    def _with_slow_readings(self, sample: DeviceSample) -> DeviceSample:
        use = self._read("utilisation", lambda: pynvml.nvmlDeviceGetUtilizationRates(self._device))
        memory = self._read("memory", lambda: pynvml.nvmlDeviceGetMemoryInfo(self._device))
        return sample._replace(
            memory_used_bytes=None if memory is None else memory.used,
            gpu_percent=None if use is None else use.gpu,
            memory_percent=None if use is None else use.memory,
            temperature_c=self._read(
                "temperature",
                lambda: pynvml.nvmlDeviceGetTemperature(self._chip, pynvml.NVML_TEMPERATURE_GPU),
                "temperature_c",
            ),
            sm_clock_mhz=self._read(
                "sm clock", lambda: pynvml.nvmlDeviceGetClockInfo(self._chip, pynvml.NVML_CLOCK_SM)
            ),
            memory_clock_mhz=self._read(
                "memory clock", lambda: pynvml.nvmlDeviceGetClockInfo(self._chip, pynvml.NVML_CLOCK_MEM)
            ),
            throttle_reasons=self._throttle_reasons(),
        )

    def _throttle_reasons(self) -> int | None:
        # NVML renamed "throttle reasons" to "event reasons" in driver 535; older drivers have only the old function.
        new, old = "clocks event reasons", "clocks throttle reasons"
        reasons: int | None = self._read(new, lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._chip))
        if reasons is None and not self._queries.is_supported(new):
            reasons = self._read(old, lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._chip))
        return reasons

    def _parent_uuid(self) -> str | None:
        if not self._is_instance:
            return None
        uuid: str | bytes | None = self._read("UUID of its GPU", lambda: pynvml.nvmlDeviceGetUUID(self._chip))
        return uuid.decode() if isinstance(uuid, bytes) else uuid

    def _foreign_process_events(self, now_ns: int, belongs: BelongsToAttempt) -> list[SourceEvent]:
        """Foreign processes that appeared on the device or left it; looked for once a second.

        NVML lists pids of the host's namespace, which a sampler in a container can't inspect. Such a process is known
        to be foreign only if it was there at the first look, before the engine.
        """
        if now_ns < self._foreign_due_ns:
            return []
        first = self._foreign_due_ns == 0
        self._foreign_due_ns = now_ns + _FOREIGN_PROCESSES_NS
        memory = self._process_memory()
        if memory is None:
            return []
        foreign = {pid for pid in memory if belongs(pid) is False or (first and belongs(pid) is None)}
        foreign |= self._foreign_pids & memory.keys()
        events = [
            self._event(now_ns, "foreign_process", pid=pid, memory_bytes=memory[pid])
            for pid in sorted(foreign - self._foreign_pids)
        ]
        events += [
            self._event(now_ns, "foreign_process_gone", pid=pid) for pid in sorted(self._foreign_pids - memory.keys())
        ]
        self._foreign_pids = foreign
        return events

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
        # Drivers before 510 lack the _v3 functions. pynvml's unversioned names raise another exception there.
        for version in (3, 2):
            function = f"nvmlDeviceGet{kind}RunningProcesses_v{version}"
            name = f"{function}{suffix}"
            listed: Sequence[Any] | None = self._read(name, partial(getattr(pynvml, function), handle))
            if listed is not None or self._queries.failure(name) is not None:
                return listed
        return ()

    def _event(self, now_ns: int, kind: str, **detail: JsonValue) -> SourceEvent:
        return SourceEvent(now_ns, kind, {"device_index": self.index, **detail})
