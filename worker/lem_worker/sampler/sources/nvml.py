"""NVML: energy counter, power, temperature, clocks, throttling, memory and foreign processes of the leased NVIDIA GPUs.

Properties of the readings, from NVIDIA's documentation (NVML API reference, vR580) and from measurements:

- `nvmlDeviceGetTotalEnergyConsumption` (as a field `NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION`, 83): mJ since the driver
  was loaded; Volta and newer. NVIDIA does not document its update period. Reported are steps of 20 to 100 ms on newer
  chips (PETSc's manual, PetscLogGpuEnergyMeter) and of roughly 100 ms (Zeus, skills/measuring-energy/SKILL.md); no
  study by generation is known. So aggregation determines the period from the samples instead of assuming one, and
  `benchmarks/gpu_check.py` measures it with a finer resolution than the sampler.
- `NVML_FI_DEV_POWER_INSTANT` (field 186): the newest reading of the sensor, in mW, on every chip.
- `nvmlDeviceGetPowerUsage`: the same on Volta, Turing and GA100 (A100), but a mean over one second on the other Ampere
  chips and on newer ones (Ada, Hopper, Blackwell), where it equals `NVML_FI_DEV_POWER_AVERAGE` (185). So it is only
  used where field 186 is missing, and is then always called `average`, which gives the wider bound.
- Both power readings are updated every 20 ms on Volta (V100), and about every 100 ms on Turing (RTX 2080 Ti, Quadro
  RTX 8000, Titan RTX), GA100 (A100), the other Ampere chips (RTX 3090, A10, A5000, A6000), Ada (RTX 4090) and Hopper
  (H100): Yang, Adamek, Armour: "Part-time Power Measurements", arXiv:2312.02741, at SC24 "Accurate and Convenient
  Energy Measurements for GPUs"; medians of each GPU in Overall_Results.xlsx of their repository
  JimZeyuYang/GPU_Power_Benchmark.
- The averaging window of a reading is shorter than the period there on V100 (10 of 20 ms) and on A100 and H100 (about
  25 of 100 ms: the sensor ignores the chip for three quarters of the time), which is one more reason for windows of
  many seconds. No such study of Blackwell is known; nothing here relies on a period.
- The accuracy of power readings is ± 5 W (nvidia-smi's manual, `power.draw`).

A MIG instance has no power reading: its GPU's is used, and the sampler's summary names that GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.figures import EnergyMethod
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.devices.gpu_memory import attempt_processes
from lem_worker.devices.nvml_session import NvmlUnavailable, open_nvml
from lem_worker.process.children import ATTEMPT_VARIABLE
from lem_worker.process.evidence_rows import Clock
from lem_worker.sampler.energy_source import Coverage, EnergySource, Sample, SourceSpec, SourceUnavailable

if TYPE_CHECKING:
    from lem_worker.sampler.nvml_gpu import AbsentGpu, LeasedGpu


class NvmlSource(EnergySource):
    """The leased GPUs, by UUID. A GPU that fails does not affect the samples of the others."""

    def __init__(self, config: ExperimentConfig, clock: Clock) -> None:  # noqa: ARG002 - it has no settings
        self._clock = clock
        self._belongs = attempt_processes(os.environ.get(ATTEMPT_VARIABLE, ""))
        self._session = contextlib.ExitStack()
        self._gpus: list[LeasedGpu] = []
        self._absent: list[AbsentGpu] = []

    def open(self, devices: Sequence[Device]) -> tuple[str, ...]:
        """Raises SourceUnavailable where no GPU is leased, or NVML offers neither power nor energy of any.

        A GPU that can't be opened at the moment is tried again with every sample.
        """
        leased = [(index, device) for index, device in enumerate(devices) if device.kind is DeviceKind.GPU]
        if not leased:
            raise SourceUnavailable("no GPU is leased; remove nvml from energy.sources or run on a GPU worker.")
        try:
            self._session.enter_context(open_nvml())
        except NvmlUnavailable as error:
            raise SourceUnavailable(str(error)) from error
        # It imports pynvml, which may be missing.
        from lem_worker.sampler.nvml_gpu import AbsentGpu, LeasedGpu, NotOpened  # noqa: PLC0415

        without_meter: list[str] = []
        for index, device in leased:
            try:
                self._gpus.append(LeasedGpu(index, device.uuid, self._clock))
            except SourceUnavailable as error:
                self._absent.append(AbsentGpu(index, device.uuid, str(error), self._clock))
                if not isinstance(error, NotOpened):
                    without_meter.append(str(error))
        if len(without_meter) == len(leased):
            self.close()
            raise SourceUnavailable(" ".join(without_meter))
        return tuple(device.uuid for _, device in leased)

    def sample(self, now_ns: int) -> Sequence[Sample]:
        """One sample of each GPU, with changes of foreign processes and failures."""
        samples: list[Sample] = []
        for absent in tuple(self._absent):
            gpu, news = absent.look()
            samples += news
            if gpu is not None:
                self._absent.remove(absent)
                self._gpus = sorted([*self._gpus, gpu], key=lambda one: one.index)
        for gpu in self._gpus:
            samples += gpu.sample(now_ns, self._belongs)
        return samples

    def facts(self) -> list[dict[str, JsonValue]]:
        """Name, limits, clocks and versions of each GPU."""
        return [gpu.facts() for gpu in self._gpus]

    def close(self) -> None:
        """Close the NVML session."""
        self._gpus, self._absent = [], []
        self._session.close()


SPEC = SourceSpec("nvml", Coverage.GPUS, EnergyMethod.COUNTER, NvmlSource)
