"""NVML: energy counter, power, temperature, clocks, throttling, memory and strangers on the leased NVIDIA GPUs.

What the readings are, by NVIDIA's own description (NVML API reference, vR580) and by measurement:

- `nvmlDeviceGetTotalEnergyConsumption` (as a field `NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION`, 83): mJ since the driver
  was loaded; Volta and newer. NVIDIA does not say how often it advances. Others saw steps of 20 to 100 ms on newer
  chips (PETSc's manual, PetscLogGpuEnergyMeter) and of roughly 100 ms (Zeus, skills/measuring-energy/SKILL.md), and we
  know of no study by generation. So aggregation observes the period instead of assuming one, and
  `benchmarks/gpu_check.py` looks closer than a sampler does.
- `NVML_FI_DEV_POWER_INSTANT` (field 186): the newest reading of the sensor, in mW, whatever the chip.
- `nvmlDeviceGetPowerUsage`: that too on Volta, Turing and GA100 (A100), but a mean over one second on the other Ampere
  chips and what is newer (Ada, Hopper, Blackwell), which is `NVML_FI_DEV_POWER_AVERAGE` (185) there. So it only stands
  in where field 186 is missing, and is then called `average`, whatever it is: that is the wider bound.
- Both power readings are renewed every 20 ms on Volta (V100), and about every 100 ms on Turing (RTX 2080 Ti, Quadro
  RTX 8000, Titan RTX), GA100 (A100), the other Ampere chips (RTX 3090, A10, A5000, A6000), Ada (RTX 4090) and Hopper
  (H100): Yang, Adamek, Armour: "Part-time Power Measurements", arXiv:2312.02741, at SC24 "Accurate and Convenient
  Energy Measurements for GPUs"; medians of each GPU in Overall_Results.xlsx of their repository
  JimZeyuYang/GPU_Power_Benchmark.
- What such a reading is a mean of is shorter there on V100 (10 of 20 ms) and on A100 and H100 (about 25 of 100 ms: the
  sensor does not look at the chip for three quarters of the time), which is one more reason for windows of many
  seconds. Of Blackwell no such study is known to us: nothing here rests on a period.
- The accuracy of power readings is ± 5 W (nvidia-smi's manual, `power.draw`).

A MIG instance has no power of its own: its parent's is read, and the sampler's summary says whose that is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

import pynvml
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.run import EnergyMethod
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.gpu_memory import attempt_processes
from lem_worker.process.children import ATTEMPT_VARIABLE
from lem_worker.sampler.nvml_gpu import Gpu
from lem_worker.sampler.sources import DeviceFailed, Sample, SourceUnavailable


class NvmlSource:
    """The leased GPUs, by UUID; one that fails leaves the others their samples."""

    name = "nvml"
    method = EnergyMethod.COUNTER
    min_interval_s = 0.0

    def __init__(self, config: ExperimentConfig, clock: Callable[[], int]) -> None:  # noqa: ARG002 - has no settings
        self._clock = clock
        self._ours = attempt_processes(os.environ.get(ATTEMPT_VARIABLE, ""))
        self._gpus: list[Gpu] = []
        self._not_opened: dict[int, str] = {}
        """Why, by device index; told with the first samples."""

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:
        """Raises SourceUnavailable where no GPU is leased, or NVML has neither power nor energy of any."""
        leased = [(index, device) for index, device in enumerate(devices) if device.kind is DeviceKind.GPU]
        if not leased:
            raise SourceUnavailable("no GPU is leased; remove nvml from energy.sources or run on a GPU worker.")
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise SourceUnavailable(
                f"NVML can't be used ({error}); see what nvidia-smi says on this machine."
            ) from error
        for index, device in leased:
            try:
                self._gpus.append(_opened(index, device.uuid))
            except SourceUnavailable as error:
                self._not_opened[index] = str(error)
        if not self._gpus:
            self.close()
            raise SourceUnavailable(" ".join(self._not_opened.values()))
        return tuple(gpu.uuid for gpu in self._gpus)

    def sample(self, now_ns: int) -> Sequence[Sample]:
        """One sample of each GPU, and news of strangers and of what fails."""
        samples: list[Sample] = [DeviceFailed(index, now_ns, why) for index, why in self._not_opened.items()]
        self._not_opened = {}
        for gpu in self._gpus:
            samples += gpu.sample(now_ns, self._clock, self._ours)
        return samples

    def facts(self) -> list[dict[str, JsonValue]]:
        """What each device is."""
        return [gpu.facts() for gpu in self._gpus]

    def close(self) -> None:
        """Let go of NVML."""
        self._gpus = []
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _opened(index: int, uuid: str) -> Gpu:
    try:
        gpu = Gpu(index, uuid)
    except pynvml.NVMLError as error:
        raise SourceUnavailable(f"NVML can't open {uuid} ({error}); see what nvidia-smi says of it.") from error
    if not gpu.offers_energy():
        raise SourceUnavailable(f"NVML has neither power nor energy of {uuid}; name other energy.sources.")
    return gpu
