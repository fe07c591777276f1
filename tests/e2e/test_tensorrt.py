"""The unmodified worker measures on a fake TensorRT-LLM and simulated GPUs, and is fit for the next run after every way
in which such an engine fails. The real engine has not been there (see docs/backends.md)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from factories.campaign_files import campaign
from factories.tensorrt_ranks import FAKES, GPU, SECOND, gpu_line
from fakes.nvml.library import SimulatedNvml, built
from lem_domain.states import RunState
from lem_worker.models import resolve_model


class Machine:
    """A worker with two GPUs, whose engine does as it is told."""

    def __init__(self, house: Any, folder: Path, nvml: SimulatedNvml) -> None:
        self.house = house
        self.folder = folder
        self.log = folder / "engine.log"
        self._orders = folder / "orders.json"
        self.order()
        lines = [line for number, uuid in enumerate((GPU, SECOND)) for line in (gpu_line(number, uuid), power(number))]
        nvml.write("origin_ns 0", *lines)
        variables = {
            "CUDA_VISIBLE_DEVICES": f"{SECOND},{GPU}",
            "PYTHONPATH": str(FAKES),
            "FAKE_TENSORRT_LLM": f"@{self._orders}",
            "FAKE_TENSORRT_LLM_LOG": str(self.log),
        }
        different = {
            name: value for name, value in nvml.environment(variables).items() if os.environ.get(name) != value
        }
        house.start_worker("tensorrt", environment=different)

    def order(self, **orders: Any) -> None:
        """What the engine is to do from now on."""
        self._orders.write_text(json.dumps(orders))

    def run(self, name: str, **config: Any) -> Any:
        """The one run of a campaign, when it is over."""
        document: dict[str, Any] = {
            "backend": "tensorrt",
            "model": "builtin:tiny-llama",
            "precision": "bfloat16",
            "prompts": {"sample_size": 4},
            "output": {"max_tokens": 6},
            "baseline": {"enabled": False},
            "window": {"min_duration_s": 0.5},
            "warmup": {"max_requests": 2, "min_requests": 2, "window_size": 2, "power_slope": None},
            "energy": {"sources": ["nvml"], "interval_ms": 20},
        }
        self.house.lemctl("run", campaign(self.folder, name, **{**document, **config}))
        with self.house.client() as client:
            newest = max(client.campaigns(), key=lambda one: one.created_at)
            assert newest.name == name
            [run] = client.runs(campaign_id=newest.id)
        return run


def power(number: int) -> str:
    return f"power {number} constant 250"


@pytest.fixture
def machine(house: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    nvml = SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")
    return Machine(house, tmp_path, nvml)


@pytest.mark.slow
def test_every_failure_has_its_reason_and_the_next_run_is_measured(
    machine: Machine, model_cache: Path, tmp_path: Path
) -> None:
    good = machine.run("good", tensorrt={"tensor_parallel_size": 2}, devices={"count": 2})
    assert good.state is RunState.AGGREGATED, good.message
    with machine.house.client() as client:
        result = client.result(good.id)
        [attempt] = client.attempts(good.id)
    assert result.work.generated_tokens == 6 * result.work.requests
    assert result.speed.ttft_ms.count == result.work.requests
    assert [device.uuid for device in result.energy.devices] == [SECOND, GPU]
    told = [json.loads(line) for line in machine.log.read_text().splitlines()]
    assert [one["value"] for one in told if one["what"] == "CUDA_VISIBLE_DEVICES"] == [f"{SECOND},{GPU}"]
    assert attempt.effective_config.engine == "TensorRT-LLM 1.2.1+fake"

    broken = tmp_path / "broken"
    shutil.copytree(resolve_model("builtin:tiny-llama", cache_dir=model_cache).path_or_id, broken)
    (broken / "model.safetensors").write_bytes(b"not weights at all")
    reasons = {}
    for name, orders, config in (
        ("out of memory", {"fail": "out_of_memory", "at": "load"}, {}),
        ("bad checkpoint", {}, {"model": str(broken)}),
        ("unsupported option", {"without": ["cuda_graph_config"]}, {"tensorrt": {"cuda_graph": {"enabled": False}}}),
        ("import error", {"import_error": True}, {}),
        ("crash by signal", {"fail": "kill", "at": "generate", "after": 9}, {}),
        ("hang in load", {"fail": "hang", "at": "load"}, {"limits": {"load_s": 10}}),
        ("lie", {"lie": {"max_batch_size": 3}}, {"tensorrt": {"max_batch_size": 8}}),
    ):
        machine.order(**orders)
        run = machine.run(name, **config)
        assert run.state is RunState.FAILED, name
        reasons[name] = (run.reason.value, run.message)
    machine.order()
    assert {name: reason for name, (reason, _) in reasons.items()} == {
        "out of memory": "out_of_memory",
        "bad checkpoint": "backend_initialisation",
        "unsupported option": "not_as_requested",
        "import error": "backend_unavailable",
        "crash by signal": "inference",
        "hang in load": "timeout",
        "lie": "not_as_requested",
    }
    said = {name: message for name, (_, message) in reasons.items()}
    assert "CUDA out of memory. Tried to allocate" in said["out of memory"]
    assert "Error while deserializing header" in said["bad checkpoint"]
    assert "got invalid argument: cuda_graph_config" in said["unsupported option"]
    assert "libnvinfer.so.10" in said["import error"]
    assert "was killed by SIGKILL" in said["crash by signal"]
    assert "load_s" in said["hang in load"]
    assert "max_batch_size was requested as 8" in said["lie"]
    last = machine.run("last")
    assert last.state is RunState.AGGREGATED, last.message
