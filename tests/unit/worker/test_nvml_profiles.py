"""The NVML source over the habits of real chips: what a chip lacks is null and listed, and the rest is read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml.library import SimulatedNvml, built
from fakes.nvml.profiles import POLICIES, PROFILES, Profile

UUID = "GPU-aaaaaaaa-0000-0000-0000-000000000000"

SCRIPT = """
import json, os, time
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.workers import DeviceKind
from lem_worker.devices.inventory import gpu_devices
from lem_worker.devices.nvml_session import open_nvml
from lem_worker.sampler.energy_source import DeviceSample
from lem_worker.sampler.sources.nvml import NvmlSource

devices = gpu_devices()
assert [device.kind for device in devices] == [DeviceKind.GPU]
config = ExperimentConfig.model_validate({"backend": "pytorch", "model": "m"})
source = NvmlSource(config, time.monotonic_ns)
source.open(devices)
rows, others = [], []
until = time.monotonic() + 0.6
while time.monotonic() < until:
    for sample in source.sample(time.monotonic_ns()):
        (rows if isinstance(sample, DeviceSample) else others).append(sample._asdict())
with open_nvml() as nvml:
    session = [nvml.memory_used(devices[0].uuid), nvml.temperature_c(devices[0].uuid),
               nvml.compute_capability(devices[0].uuid), len(nvml.processes(devices[0].uuid))]
print(json.dumps([devices[0].name, source.facts()[0], rows, others, session]))
"""


def read(profile: Profile, tmp_path: Path, library: Path) -> Any:
    nvml = SimulatedNvml(library, tmp_path / "nvml.state")
    watts = 0.6 * (profile.limits.enforced if profile.limits else 60)
    nvml.write(f"origin_ns {time.monotonic_ns()}", *profile.lines(0, UUID, f"constant {watts}"))
    return watts, *json.loads(nvml.python(SCRIPT))


@pytest.mark.parametrize("chip", PROFILES)
def test_every_chip_is_read_and_what_it_lacks_is_null_and_listed(
    chip: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    profile = PROFILES[chip]
    watts, name, facts, rows, others, session = read(profile, tmp_path, built(tmp_path_factory.getbasetemp().parent))
    assert name == facts["name"] == profile.name
    assert others == [], "nothing failed, nothing changed, no process came"
    # Power in W, the counter in J, in every sample.
    assert {row["power_mw"] for row in rows} == {round(watts * 1000)}
    assert rows[-1]["energy_mj"] > rows[0]["energy_mj"] >= 0
    seconds = (rows[-1]["time_ns"] - rows[0]["time_ns"]) / 1e9
    joules = (rows[-1]["energy_mj"] - rows[0]["energy_mj"]) / 1e3
    assert abs(joules - watts * seconds) <= watts * 2 * profile.counter_period_ms / 1e3
    assert facts["power_reading"] == "instant"

    limit = profile.limits.enforced if profile.limits else None
    expected = {
        "compute_capability": profile.compute,
        "memory_total_bytes": profile.memory_bytes,
        "power_limit_w": limit,
        "power_limit_current_w": limit,
        "power_limit_default_w": limit,
        "sm_clock_max_mhz": profile.sm_clock_max,
        "sm_clock_application_mhz": profile.sm_clock_max if profile.has_application_clock else None,
        "ecc": True if profile.has_ecc else None,
        "mig": False if profile.has_mig else None,
        "pcie_generation": profile.pcie[0],
        "pcie_width": profile.pcie[1],
        "nvlinks": profile.nvlinks or None,
    }
    assert {fact: facts[fact] for fact in expected} == expected
    slow = rows[0]
    assert slow["temperature_c"] == 45 and slow["gpu_percent"] == 90
    assert (slow["memory_used_bytes"] is None) == (profile.memory_bytes is None)
    assert {slow[f"{policy}_violation_ns"] for policy in POLICIES} == {0 if profile.has_violations else None}
    used = None if profile.memory_bytes is None else profile.memory_bytes // 160
    assert session == [used, 45, [int(part) for part in profile.compute.split(".")], 0]

    # A null has its reason: the reading is listed as one that never worked here.
    lacking = {
        "memory": profile.memory_bytes is None,
        "total memory": profile.memory_bytes is None,
        "power limit": profile.limits is None,
        "ECC": not profile.has_ecc,
        "MIG mode": not profile.has_mig,
        "NVLink": not profile.nvlinks,
        "application clock": not profile.has_application_clock,
        **{f"{policy} violation": not profile.has_violations for policy in POLICIES},
    }
    assert {reading for reading, lacks in lacking.items() if lacks} <= set(facts["unsupported"])
    assert not {reading for reading, lacks in lacking.items() if not lacks} & set(facts["unsupported"])


def test_chips_of_a_module_have_its_power_under_its_scope(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The instant power that is read is the GPU's; the memory has an average alone."""
    profile = PROFILES["GB300"]
    nvml = SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")
    nvml.write(f"origin_ns {time.monotonic_ns()}", *profile.lines(0, UUID, "constant 900"))
    script = """
import json, pynvml
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(0)
fields = [(field, scope) for field in (185, 186) for scope in (0, 1, 2)]
values = pynvml.nvmlDeviceGetFieldValues(device, fields)
print(json.dumps([[value.nvmlReturn, value.value.uiVal] for value in values]))
"""
    average, module, memory, instant, module_now, memory_now = json.loads(nvml.python(script))
    assert average == instant == [0, 900_000]
    assert module == module_now == [0, 350_000]
    assert (memory, memory_now[0]) == ([0, 60_000], 3)
