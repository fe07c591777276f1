"""`make gpu-check` from its beginning to its report, over a simulated NVML and an nvidia-smi that reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fakes.nvml.curves import Sawtooth
from fakes.nvml.library import SimulatedNvml, built
from fakes.nvml.profiles import PROFILES

ROOT = Path(__file__).parents[2]
GPU = "GPU-aaaaaaaa-0000-0000-0000-000000000000"

PROGRAM = """
import sys
from unittest.mock import patch
import torch
sys.path[:0] = ["benchmarks", "tests"]
import gpu_check
from lem_worker.backends.pytorch import model as pytorch_model

import gpu_sensor
import os
from pathlib import Path
from factories.simulated_load import SimulatedLoad

gpu_check.cuda_problem = lambda: None
gpu_sensor.BUSY_S, gpu_sensor.SHORT_STEPS, gpu_sensor.LONG_STEPS = 3.0, 16, 4


class Load(SimulatedLoad):
    def __init__(self):
        super().__init__(Path(os.environ["LEM_FAKE_NVML"]), 95, 560)

    def steps(self, holds_s):
        return [gpu_sensor.Step(at, is_up) for at, is_up in super().steps(holds_s)]


gpu_check.LOAD = Load
gpu_check.WORKER = (sys.executable, "-m", "factories.worker_without_gpu")
gpu_check.SHAPE = {**gpu_check.SHAPE, "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16,
                   "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
with patch.object(pytorch_model, "_device", lambda _: torch.device("cpu")):
    gpu_check.main()
"""

NVIDIA_SMI = """#!{python}
import datetime, sys, time
import pynvml
arguments = dict(one.partition("=")[::2] for one in sys.argv[1:])
fields = arguments["--query-gpu"].split(",")
if "power.draw.instant" in fields:
    sys.exit('Field "power.draw.instant" is not a valid field to query.')
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByUUID(arguments.get("--id", "{gpu}"))
say = {{
    "timestamp": lambda: f"{{datetime.datetime.now(datetime.UTC):%Y/%m/%d %H:%M:%S.%f}}"[:-3],
    "power.draw": lambda: f"{{pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3:.2f}}",
    "driver_version": pynvml.nvmlSystemGetDriverVersion,
    "power.limit": lambda: f"{{pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3:.2f}} W",
}}
while True:
    print(", ".join(say[field]() for field in fields), flush=True)
    if "-lms" not in sys.argv:
        break
    time.sleep(0.2)
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_reports_what_the_simulated_gpu_is(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    nvml = SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")
    chip, curve = PROFILES["H100"], Sawtooth(200, 300, 700)
    at_rest = ("gpu_use 0 constant 0", "memory_use 0 constant 0")
    nvml.write(f"origin_ns {time.monotonic_ns()}", *chip.lines(0, GPU, curve.text()), *at_rest)
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(NVIDIA_SMI.format(python=sys.executable, gpu=GPU))
    smi.chmod(0o755)
    environment = nvml.environment()
    environment["PATH"] = f"{smi.parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(ROOT / "tests")
    page = tmp_path / "validation.md"
    page.write_text("# Validation\n")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--cycles=2", "--seconds=2", "--pairs=2", f"--write={page}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["gpu"], report["driver"], report["power_limit"]) == (chip.name, "580.65.06", "700.00 W")
    assert page.read_text() == "# Validation\n", "a simulation is no validation on a GPU"
    assert "Nothing is written to a page" in ran.stderr
    assert len(report["experiments"]) == 2
    for found in report["experiments"].values():
        assert found["cycles"] == 2
        assert found["method"] == ["counter"]
        assert found["mean_power_w"] == pytest.approx(250, rel=0.1)
        assert found["counter_period_ms"] == pytest.approx(chip.counter_period_ms, rel=0.3)
        assert abs(found["integral_over_counter_minus_1"]) < 0.2
        assert set(found["baselines_w_bound_steady"]) >= {"idle", "ready", "ready_after"}
        assert found["cv_over_cycles"] is not None
        steady = found["steady"]
        assert (steady["energy_per_output_token_j"] is None) == bool(steady["reasons"]), steady
        assert steady["reasons"] or 0.5 < steady["over_whole_window"] < 2
    watched = report["watched"]
    assert watched["nvidia_smi_field"] == "power.draw"
    for name in ("mean_power_w", "nvidia_smi_mean_power_w", "polled_mean_power_w"):
        assert watched[name] == pytest.approx(250, rel=0.2), name
    assert watched["counter_update_ms"] == pytest.approx(chip.counter_period_ms, rel=0.3)
    assert watched["power_update_ms"] == pytest.approx(chip.period_ms, rel=0.3)
    sampling = report["sampling"]
    assert 0 < sampling["20 Hz"]["cpu_share"] < sampling["100 Hz"]["cpu_share"] < 1
    assert sampling["at_rest"]["unsampled_w"] is not None, "the worker has measured it at its start"
    sensor = report["sensor"]
    for reading, window_ms in (("instant", chip.window_ms), ("average", chip.average_ms)):
        least_ms, most_ms = sensor[reading]["range_ms"]
        assert 0.9 * least_ms <= window_ms <= 1.1 * most_ms, reading
    assert (sensor["scopes"]["counter"], sensor["scopes"]["power_w"]["module"]) == ("gpu", None)
    assert (sensor["limits"]["enforced_w"], sensor["limits"]["readings_above"]) == (700, 0)
    assert set(report["rate_recorded_over_bare"]) == {"batch 1", "batch 16"}


def test_a_machine_without_a_gpu_is_told_what_is_missing(tmp_path: Path) -> None:
    page = tmp_path / "validation.md"
    ran = subprocess.run(
        [sys.executable, "benchmarks/gpu_check.py", f"--write={page}"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert "- a GPU: " in ran.stderr and "- CUDA in PyTorch: " in ran.stderr
    assert not page.exists()
