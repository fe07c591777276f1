"""`make gpu-check` from its beginning to its report, over a simulated NVML and an nvidia-smi that reads it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fakes.nvml.curves import Sawtooth
from fakes.nvml.library import SimulatedNvml, built

ROOT = Path(__file__).parents[2]
GPU = "GPU-aaaaaaaa-0000-0000-0000-000000000000"

PROGRAM = """
import sys
from unittest.mock import patch
import torch
sys.path[:0] = ["benchmarks", "tests"]
import gpu_check
from lem_worker.backends.pytorch import model as pytorch_model

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
def test_it_reports_what_the_simulated_gpu_is(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    nvml = SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")
    curve = Sawtooth(200, 300, 700)
    nvml.write(
        f"origin_ns {time.monotonic_ns()}",
        f'device 0 uuid {GPU} name "NVIDIA H100" pci 00000000:1B:00.0 memory_total 85899345920 memory_used 524288000',
        f"power 0 {curve.text()}",
        "sensor 0 period_ms 25",
        "counter 0 period_ms 20 quantum_mj 1",
        "limits 0 enforced_w 650 current_w 700 default_w 700",
    )
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
        [sys.executable, "-c", PROGRAM, "--cycles=2", "--seconds=2", "--pairs=1", f"--write={page}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["gpu"], report["driver"], report["power_limit"]) == ("NVIDIA H100", "580.65.06", "700.00 W")
    assert json.dumps(report, indent=2) in page.read_text()
    assert len(report["experiments"]) == 2
    for found in report["experiments"].values():
        assert found["cycles"] == 2
        assert found["method"] == ["counter"]
        assert found["mean_power_w"] == pytest.approx(250, rel=0.05)
        # A sample every 50 ms sees a counter change that often at most; the watched run looks closer.
        assert found["counter_period_ms"] == pytest.approx(50, rel=0.3)
        assert abs(found["integral_over_counter_minus_1"]) < 0.1
        assert set(found["baselines_w_bound_steady"]) >= {"idle", "ready", "ready_after"}
        assert found["cv_over_cycles"] is not None
    watched = report["watched"]
    assert watched["nvidia_smi_field"] == "power.draw"
    for name in ("mean_power_w", "nvidia_smi_mean_power_w", "polled_mean_power_w"):
        assert watched[name] == pytest.approx(250, rel=0.1), name
    assert watched["counter_update_ms"] == pytest.approx(20, rel=0.3)
    assert watched["power_update_ms"] == pytest.approx(25, rel=0.3)
    assert set(report["rate_recorded_over_bare"]) == {"batch 1", "batch 16"}
