"""The simulated source."""

from __future__ import annotations

import pytest

from conformance.sources.suite import Rig, SourceConformance
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.workers import DeviceKind
from lem_worker.devices.inventory import simulated_devices

CONFIG = ExperimentConfig.model_validate({"backend": "simulated", "model": "m", "simulated": {"power_w": 40}})


class SimulatedRig(Rig):
    def remove(self) -> None:
        self.devices = tuple(device.model_copy(update={"kind": DeviceKind.CPU}) for device in self.devices)


class TestSimulated(SourceConformance):
    name = "simulated"

    @pytest.fixture
    def rig(self) -> Rig:
        return SimulatedRig(simulated_devices("wrk_1", 2), CONFIG, watts=40)
