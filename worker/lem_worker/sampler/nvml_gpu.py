"""One leased GPU or MIG instance as NVML shows it: its samples, its facts, and strangers on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pynvml
from pydantic.types import JsonValue

from lem_worker.devices.gpu_memory import BelongsToAttempt
from lem_worker.devices.nvml_facts import gpu_facts
from lem_worker.sampler.nvml_queries import Asker
from lem_worker.sampler.sources import DeviceFailed, DeviceSample, Sample, SourceEvent

_SLOW_NS = 200_000_000
"""Temperature, clocks, utilisation and memory change slowly, and reading them takes longer than power does."""
_STRANGERS_NS = 1_000_000_000
FAILED_TICKS = 5
"""A device that gave neither power nor energy so many times on end is given up. A driver that is busy refuses a call
now and then; what it refuses five times, at 50 ms a quarter of a second apart, a window of seconds can't do without."""

_COUNTER = "energy counter"
_INSTANT = "instant power"
_AVERAGE = "average power"


class Gpu:
    """What it does not offer is null, what fails is null and told; only without any power and energy is it given up.

    Raises:
        pynvml.NVMLError: it can't be found.
    """

    def __init__(self, index: int, uuid: str) -> None:
        self.index = index
        self.uuid = uuid
        self._device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self._is_instance = bool(pynvml.nvmlDeviceIsMigDeviceHandle(self._device))
        self._chip = self._device
        if self._is_instance:
            self._chip = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self._device)
        self._asker = Asker(index, uuid)
        self._ask = self._asker.ask
        self._facts: dict[str, JsonValue] = {}
        self._failed = False
        self._empty_ticks = 0
        self._slow_due_ns = 0
        self._strangers_due_ns = 0
        self._strangers: set[int] = set()

    def sample(self, due_ns: int, clock: Callable[[], int], ours: BelongsToAttempt) -> list[Sample]:
        """Counter and power at one instant, the slow readings now and then, and news; `due_ns` is when it was to be."""
        if self._failed:
            return []
        energy_mj = self._energy_mj()
        now_ns = clock()
        power_mw = self._power_mw()
        if energy_mj is None and power_mw is None:
            return [*self._asker.news(now_ns), *self._empty(now_ns)]
        self._empty_ticks = 0
        sample = DeviceSample(self.index, now_ns, power_mw=power_mw, energy_mj=energy_mj)
        if now_ns >= self._slow_due_ns:
            self._slow_due_ns = now_ns + _SLOW_NS
            sample = self._with_slow_readings(sample)
        strangers = self._look_for_strangers(due_ns, ours)
        return [sample, *strangers, *self._asker.news(now_ns)]

    def offers_energy(self) -> bool:
        """Whether it has a counter, or power that can be integrated; one that fails at the moment may come."""
        self._energy_mj()
        self._power_mw()
        return any(self._asker.is_offered(what) for what in (_COUNTER, _INSTANT, _AVERAGE))

    def facts(self) -> dict[str, JsonValue]:
        """What does not change during an attempt; what could not be read is asked for again."""
        read: dict[str, JsonValue] = {
            "index": self.index,
            "uuid": self.uuid,
            "power_reading": self._power_reading(),
            "mig_parent_uuid": self._parent_uuid(),
            **gpu_facts(self._device, self._chip, self._ask),
        }
        self._facts = {**read, **{name: value for name, value in self._facts.items() if value is not None}}
        return self._facts

    def _empty(self, now_ns: int) -> list[Sample]:
        self._empty_ticks += 1
        if self._empty_ticks < FAILED_TICKS:
            return []
        self._failed = True
        whys = [why for what in (_COUNTER, _INSTANT, _AVERAGE) if (why := self._asker.why_not(what)) is not None]
        none = f"NVML has neither power nor energy of {self.uuid} any more; see what nvidia-smi says of it."
        return [DeviceFailed(self.index, now_ns, whys[0] if whys else none)]

    def _energy_mj(self) -> int | None:
        energy_mj: int | None = self._ask(
            _COUNTER, lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._chip), "energy_mj"
        )
        return energy_mj

    def _power_reading(self) -> str | None:
        if self._asker.is_offered(_INSTANT):
            return "instant"
        return "average" if self._asker.is_offered(_AVERAGE) else None

    def _power_mw(self) -> int | None:
        power_mw: int | None = self._ask(_INSTANT, self._instant_mw, "power_mw")
        if power_mw is None and not self._asker.is_offered(_INSTANT):
            power_mw = self._ask(_AVERAGE, lambda: pynvml.nvmlDeviceGetPowerUsage(self._chip), "power_mw")
        return power_mw

    def _instant_mw(self) -> int:
        [field] = pynvml.nvmlDeviceGetFieldValues(self._chip, [pynvml.NVML_FI_DEV_POWER_INSTANT])
        if field.nvmlReturn != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(field.nvmlReturn)
        return int(field.value.uiVal)

    def _with_slow_readings(self, sample: DeviceSample) -> DeviceSample:
        use = self._ask("utilisation", lambda: pynvml.nvmlDeviceGetUtilizationRates(self._device))
        memory = self._ask("memory", lambda: pynvml.nvmlDeviceGetMemoryInfo(self._device))
        return sample._replace(
            memory_used_bytes=None if memory is None else memory.used,
            gpu_percent=None if use is None else use.gpu,
            memory_percent=None if use is None else use.memory,
            temperature_c=self._ask(
                "temperature",
                lambda: pynvml.nvmlDeviceGetTemperature(self._chip, pynvml.NVML_TEMPERATURE_GPU),
                "temperature_c",
            ),
            sm_clock_mhz=self._ask("sm clock", lambda: pynvml.nvmlDeviceGetClockInfo(self._chip, pynvml.NVML_CLOCK_SM)),
            memory_clock_mhz=self._ask(
                "memory clock", lambda: pynvml.nvmlDeviceGetClockInfo(self._chip, pynvml.NVML_CLOCK_MEM)
            ),
            throttle_reasons=self._throttle_reasons(),
        )

    def _throttle_reasons(self) -> int | None:
        """Drivers before 535 have them under another name."""
        now, before = "clocks event reasons", "clocks throttle reasons"
        reasons: int | None = self._ask(now, lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._chip))
        if reasons is None and not self._asker.is_offered(now):
            reasons = self._ask(before, lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._chip))
        return reasons

    def _parent_uuid(self) -> str | None:
        if not self._is_instance:
            return None
        uuid: str | bytes | None = self._ask("UUID of its GPU", lambda: pynvml.nvmlDeviceGetUUID(self._chip))
        return uuid.decode() if isinstance(uuid, bytes) else uuid

    def _look_for_strangers(self, now_ns: int, ours: BelongsToAttempt) -> list[SourceEvent]:
        """Processes that came to the device or left it and are not this attempt's, looked for once a second.

        Of one that can't be looked at (NVML names processes of the host, and a container has numbers of its own) only
        those that were there before the engine are known to be strange.
        """
        if now_ns < self._strangers_due_ns:
            return []
        first = self._strangers_due_ns == 0
        self._strangers_due_ns = now_ns + _STRANGERS_NS
        memory = self._holders()
        if memory is None:
            return []
        strange = {pid for pid in memory if ours(pid) is False or (first and ours(pid) is None)}
        strange |= self._strangers & memory.keys()
        events = [
            self._event(now_ns, "foreign_process", pid=pid, memory_bytes=memory[pid])
            for pid in sorted(strange - self._strangers)
        ]
        events += [
            self._event(now_ns, "foreign_process_gone", pid=pid) for pid in sorted(self._strangers - memory.keys())
        ]
        self._strangers = strange
        return events

    def _holders(self) -> dict[int, int | None] | None:
        """The memory of each process that computes or draws on the device, by its id; None where they can't be listed
        at the moment.

        Of a MIG instance the whole GPU is asked too, where the rights allow it: its power is in the figure.
        """
        found: dict[int, int | None] = {}
        for handle, whose in ((self._device, ""), *([(self._chip, " of its GPU")] if self._is_instance else [])):
            for kind in ("Compute", "MPSCompute", "Graphics"):
                listed = self._running(kind, handle, whose)
                if listed is None:
                    return None
                for one in listed:
                    found.setdefault(int(one.pid), one.usedGpuMemory)
        return found

    def _running(self, kind: str, handle: Any, whose: str) -> Sequence[Any] | None:
        """Nothing where they are not listed at all, None where that fails."""
        # Drivers before 510 have no third version; the names without a version hide that behind another exception.
        for version in (3, 2):
            name = f"nvmlDeviceGet{kind}RunningProcesses_v{version}"
            what = f"{name}{whose}"
            listed: Sequence[Any] | None = self._ask(what, partial(getattr(pynvml, name), handle))
            if listed is not None or self._asker.why_not(what) is not None:
                return listed
        return ()

    def _event(self, now_ns: int, kind: str, **detail: JsonValue) -> SourceEvent:
        return SourceEvent(now_ns, kind, {"device_index": self.index, **detail})
