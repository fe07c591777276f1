"""NVML: energy counter, power, temperature, clocks, throttling, memory and strangers on the leased NVIDIA GPUs.

What the readings are, by NVIDIA's own description (NVML API reference, vR580) and by measurement:

- `nvmlDeviceGetTotalEnergyConsumption` (as a field `NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION`, 83): mJ since the driver
  was loaded; Volta and newer. It advances in steps of 20 to 100 ms, depending on the chip; aggregation observes the
  period instead of assuming one, and `benchmarks/gpu_check.py` looks closer than a sampler does.
- `NVML_FI_DEV_POWER_INSTANT` (field 186): the newest reading of the sensor, in mW, whatever the chip.
- `nvmlDeviceGetPowerUsage`: that too on Volta, Turing and GA100 (A100), but a mean over one second on the other Ampere
  chips and what is newer (Ada, Hopper, Blackwell), which is `NVML_FI_DEV_POWER_AVERAGE` (185) there. So it only stands
  in where field 186 is missing, and is then called `average`, whatever it is: that is the wider bound.
- On A100 and H100 the sensor behind both looks at the chip for only about 25 of every 100 ms (Yang, Adamek, Armour:
  "Part-time Power Measurements", arXiv:2312.02741, at SC24 "Accurate and Convenient Energy Measurements for GPUs", over
  70 GPUs of twelve generations), which is one more reason for windows of many seconds. Of Blackwell no such study is
  known to us: nothing here rests on a period.
- The accuracy of power readings is ± 5 W (nvidia-smi's manual, `power.draw`).

A MIG instance has no power of its own: its parent's is read, and the sampler's summary says whose that is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pynvml
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results import EnergyMethod
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices import Ours, of_attempt
from lem_worker.energy import DeviceSample, Sample, SourceEvent, SourceUnavailable
from lem_worker.nvml.facts import gpu_facts
from lem_worker.processes import ATTEMPT_VARIABLE

_SLOW_NS = 200_000_000
"""Temperature, clocks, utilisation and memory change slowly, and reading them takes longer than power does."""
_STRANGERS_NS = 1_000_000_000

_UNSUPPORTED = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
)
"""What a chip, a driver or a container's rights may not offer; the reading is null then."""


class _Gpu:
    """One leased device and what it offers."""

    def __init__(self, index: int, device: Device) -> None:
        self.index = index
        self.uuid = device.uuid
        self._device = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
        self.parent_uuid: str | None = None
        self._handle = self._device
        if pynvml.nvmlDeviceIsMigDeviceHandle(self._device):
            self._handle = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self._device)
            self.parent_uuid = _text(pynvml.nvmlDeviceGetUUID(self._handle))
        self._missing: set[str] = set()
        self._slow_due_ns = 0
        self._strangers_due_ns = 0
        self._strangers: set[int] = set()
        self.power_reading = self._power_reading()

    def sample(self, clock: Callable[[], int]) -> DeviceSample:
        """Counter and power at one instant, the slow readings now and then."""
        energy_mj = self._energy_mj()
        now_ns = clock()
        power_mw = self._power_mw()
        if now_ns < self._slow_due_ns:
            return DeviceSample(self.index, now_ns, power_mw=power_mw, energy_mj=energy_mj)
        self._slow_due_ns = now_ns + _SLOW_NS
        use = self._ask("utilisation", lambda: pynvml.nvmlDeviceGetUtilizationRates(self._device))
        memory = self._ask("memory", lambda: pynvml.nvmlDeviceGetMemoryInfo(self._device))
        return DeviceSample(
            self.index,
            now_ns,
            power_mw=power_mw,
            energy_mj=energy_mj,
            memory_used_bytes=None if memory is None else memory.used,
            gpu_percent=None if use is None else use.gpu,
            memory_percent=None if use is None else use.memory,
            temperature_c=self._ask(
                "temperature", lambda: pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU)
            ),
            sm_clock_mhz=self._ask(
                "sm clock", lambda: pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM)
            ),
            memory_clock_mhz=self._ask(
                "memory clock", lambda: pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_MEM)
            ),
            throttle_reasons=self._throttle_reasons(),
        )

    def strangers(self, now_ns: int, ours: Ours) -> list[SourceEvent]:
        """Processes that came to the device or left it and are not this attempt's, looked for once a second.

        Of one that can't be looked at (NVML names processes of the host, and a container has numbers of its own) only
        those that were there before the engine are known to be strange.
        """
        if now_ns < self._strangers_due_ns:
            return []
        first = self._strangers_due_ns == 0
        self._strangers_due_ns = now_ns + _STRANGERS_NS
        memory = self._computing()
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

    def facts(self) -> dict[str, JsonValue]:
        """What does not change during an attempt."""
        return {
            "index": self.index,
            "uuid": self.uuid,
            "power_reading": self.power_reading,
            "mig_parent_uuid": self.parent_uuid,
            **gpu_facts(self._device, self._handle, self._ask),
        }

    def measures_energy(self) -> bool:
        """Whether it has a counter, or power that can be integrated."""
        return self.power_reading is not None or self._energy_mj() is not None

    def _energy_mj(self) -> int | None:
        energy_mj: int | None = self._ask(
            "energy counter", lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        )
        return energy_mj

    def _power_reading(self) -> str | None:
        if self._instant_mw() is not None:
            return "instant"
        return "average" if self._average_mw() is not None else None

    def _power_mw(self) -> int | None:
        match self.power_reading:
            case "instant":
                return self._instant_mw()
            case "average":
                return self._average_mw()
        return None

    def _instant_mw(self) -> int | None:
        def read() -> int:
            [field] = pynvml.nvmlDeviceGetFieldValues(self._handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
            if field.nvmlReturn != pynvml.NVML_SUCCESS:
                raise pynvml.NVMLError(field.nvmlReturn)
            return int(field.value.uiVal)

        power_mw: int | None = self._ask("instant power", read)
        return power_mw

    def _average_mw(self) -> int | None:
        power_mw: int | None = self._ask("average power", lambda: pynvml.nvmlDeviceGetPowerUsage(self._handle))
        return power_mw

    def _throttle_reasons(self) -> int | None:
        """Drivers before 535 have them under another name."""
        reasons: int | None = self._ask(
            "clocks event reasons", lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)
        )
        if reasons is None:
            reasons = self._ask(
                "clocks throttle reasons", lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
            )
        return reasons

    def _computing(self) -> dict[int, int | None]:
        """The memory of each process that computes on the device, by its id."""
        listed = (*self._running("Compute"), *self._running("MPSCompute"))
        return {int(one.pid): one.usedGpuMemory for one in listed}

    def _running(self, kind: str) -> Sequence[Any]:
        # Drivers before 510 have no third version; the names without a version hide that behind another exception.
        for version in (3, 2):
            name = f"nvmlDeviceGet{kind}RunningProcesses_v{version}"
            listed: Sequence[Any] | None = self._ask(name, partial(getattr(pynvml, name), self._device))
            if listed is not None:
                return listed
        return ()

    def _ask(self, what: str, read: Callable[[], Any]) -> Any:
        """The reading, or None where the device does not offer it; it is not asked for again then.

        Raises:
            SourceUnavailable: the device fails.
        """
        if what in self._missing:
            return None
        try:
            return read()
        except pynvml.NVMLError as error:
            if error.value not in _UNSUPPORTED:
                raise SourceUnavailable(
                    f"NVML can't read {what} of {self.uuid} ({error}); see what nvidia-smi says of it."
                ) from error
            self._missing.add(what)
            return None

    def _event(self, now_ns: int, kind: str, **detail: JsonValue) -> SourceEvent:
        return SourceEvent(now_ns, kind, {"device_index": self.index, **detail})


class NvmlSource:
    """The leased GPUs, by UUID."""

    name = "nvml"
    method = EnergyMethod.COUNTER
    min_interval_s = 0.0

    def __init__(self, config: ExperimentConfig, clock: Callable[[], int]) -> None:  # noqa: ARG002 - has no settings
        self._clock = clock
        self._ours = of_attempt(os.environ.get(ATTEMPT_VARIABLE, ""))
        self._gpus: list[_Gpu] = []

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:
        """Raises SourceUnavailable where no GPU is leased, or NVML has neither power nor energy of one."""
        leased = [(index, device) for index, device in enumerate(devices) if device.kind is DeviceKind.GPU]
        if not leased:
            raise SourceUnavailable("no GPU is leased; remove nvml from energy.sources or run on a GPU worker.")
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise SourceUnavailable(
                f"NVML can't be used ({error}); see what nvidia-smi says on this machine."
            ) from error
        try:
            self._gpus = [_opened(index, device) for index, device in leased]
            silent = [gpu.uuid for gpu in self._gpus if not gpu.measures_energy()]
            if silent:
                raise SourceUnavailable(
                    f"NVML has neither power nor energy of {', '.join(silent)}; name other energy.sources."
                )
        except SourceUnavailable:
            self.close()
            raise
        return tuple(gpu.uuid for gpu in self._gpus)

    def sample(self, now_ns: int) -> Sequence[Sample]:
        """One sample of each GPU, and news of strangers."""
        samples: list[Sample] = [gpu.sample(self._clock) for gpu in self._gpus]
        for gpu in self._gpus:
            samples += gpu.strangers(now_ns, self._ours)
        return samples

    def facts(self) -> list[dict[str, JsonValue]]:
        """What each device is."""
        return [gpu.facts() for gpu in self._gpus]

    def close(self) -> None:
        """Let go of NVML."""
        self._gpus = []
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _opened(index: int, device: Device) -> _Gpu:
    try:
        return _Gpu(index, device)
    except pynvml.NVMLError as error:
        raise SourceUnavailable(
            f"NVML can't open {device.uuid} ({error}); see what nvidia-smi says on this machine."
        ) from error


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
