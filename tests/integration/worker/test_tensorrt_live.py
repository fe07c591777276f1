"""TensorRT-LLM itself, wherever it is installed and has a GPU: the names that the backend relies on, and a rank on the
real engine. Elsewhere skipped: then the contract is all there is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from factories.tensorrt_api import ALSO_CALLED, GENERATE_ASYNC, LLM_ARGUMENTS, LLM_EXPLICIT, MODELS, SAMPLING
from lem_domain.config.experiment import ExperimentConfig
from lem_worker.devices.inventory import gpu_devices
from lem_worker.models import resolve_model
from lem_worker.process.protocol import Done, Finish, Go, Loaded, Measured, RankJob, Ready, WarmUp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("tensorrt_llm") is None,
        reason="TensorRT-LLM is not installed here; it is not on PyPI and needs an NVIDIA GPU (see docs/backends.md)",
    ),
]


def test_the_real_package_has_the_names_of_the_contract() -> None:
    engine, api = import_module("tensorrt_llm"), import_module("tensorrt_llm.llmapi")
    assert list(inspect.signature(engine.LLM).parameters)[: len(LLM_EXPLICIT)] == list(LLM_EXPLICIT)
    assert set(LLM_ARGUMENTS) <= set(api.TorchLlmArgs.model_fields)
    parameters = inspect.signature(engine.SamplingParams).parameters
    assert {name: parameters[name].default for name in SAMPLING} == SAMPLING
    assert set(GENERATE_ASYNC) <= set(inspect.signature(engine.LLM.generate_async).parameters)
    for name, fields in MODELS.items():
        parameters = inspect.signature(getattr(api, name)).parameters
        assert [one for one in fields if one not in parameters and ALSO_CALLED.get(one) not in parameters] == [], name


def test_a_rank_on_the_real_engine_records_every_token(tmp_path: Path, drive: Callable[..., Any]) -> None:
    gpus = gpu_devices()
    if not gpus:
        pytest.skip("TensorRT-LLM is installed, but there is no NVIDIA GPU")
    model = resolve_model("builtin:smollm2-135m-instruct", cache_dir=tmp_path / "models").path_or_id
    config = {
        "backend": "tensorrt",
        "model": "builtin:smollm2-135m-instruct",
        "output": {"max_tokens": 16},
        "window": {"min_duration_s": 1, "min_requests": 8},
        "warmup": {"min_requests": 2, "window_size": 2, "max_requests": 3, "power_slope": None},
        "tensorrt": {"max_batch_size": 4, "kv_cache": {"free_gpu_memory_fraction": 0.3}},
    }
    job = RankJob(
        attempt_id="a",
        rank=0,
        world_size=1,
        config=ExperimentConfig.model_validate(config),
        model_path=model,
        prompts=("The capital of France is", "Water boils at", "Once upon a time", "Two and two are"),
        spool=str(tmp_path / "spool"),
        devices=gpus[:1],
    )
    process = drive("lem_worker.rank.main", job, CUDA_VISIBLE_DEVICES=gpus[0].uuid)
    effective = process.until(Loaded).effective_config
    assert [one for one in effective.parameters if not one.confirmed] == []
    process.send(WarmUp())
    process.until(Ready)
    process.send(Go())
    process.until(Measured)
    process.send(Finish())
    done = process.until(Done)
    assert done.summary["generated_tokens"] == 16 * int(done.summary["requests"])
    assert process.to_the_end() == 0, process.stderr()
