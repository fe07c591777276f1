"""The NVML source, through the unmodified nvidia-ml-py over the simulated NVML library."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import pynvml
import pytest

from conformance.sources.suite import Rig, SourceConformance
from fakes.nvml.library import SimulatedNvml, built
from lem_domain.wire.workers import Device, DeviceKind

UUIDS = tuple(f"GPU-{letter * 8}-0000-0000-0000-000000000000" for letter in "ab")
MACHINE = tuple(
    line
    for number, uuid in enumerate(UUIDS)
    for line in (f'device {number} uuid {uuid} name "NVIDIA H100" memory_total 80000', f"power {number} constant 250")
)


@dataclass
class NvmlRig(Rig):
    nvml: SimulatedNvml | None = None

    def write(self, *more: str) -> None:
        assert self.nvml is not None
        self.nvml.write(*MACHINE, *more)

    def remove(self) -> None:
        self.write("error nvmlInitWithFlags 9")

    def fail_one_part(self) -> str:
        powers = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues", "nvmlDeviceGetPowerUsage")
        self.write(*(f"error {symbol} 15 1" for symbol in powers))
        return UUIDS[1]


class TestNvml(SourceConformance):
    name = "nvml"

    @pytest.fixture
    def rig(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Rig:
        library = built(tmp_path_factory.getbasetemp().parent)
        monkeypatch.setenv("LEM_FAKE_NVML", str(tmp_path / "nvml.state"))
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library / "libnvidia-ml.so.1")))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        gpus = tuple(Device(uuid=uuid, kind=DeviceKind.GPU, name="NVIDIA H100") for uuid in UUIDS)
        rig = NvmlRig(gpus, watts=250, nvml=SimulatedNvml(library, tmp_path / "nvml.state"))
        rig.write()
        return rig

    def test_close_ends_the_nvml_session(self, rig: Rig) -> None:
        from lem_worker.sampler.sources.nvml import NvmlSource

        source = NvmlSource(rig.config, lambda: 0)
        source.open(rig.devices)
        source.close()
        with pytest.raises(pynvml.NVMLError, match="Uninitialized"):
            pynvml.nvmlDeviceGetCount()
