"""The TensorRT-LLM tier: what is refused before anything is queued, with the fix."""

from __future__ import annotations

from typing import Any

import pytest

from lem_domain.backends.tensorrt import TensorrtConfig
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.validation import model_or_problems
from lem_domain.errors import ConfigurationError


def experiment(**config: Any) -> ExperimentConfig:
    return model_or_problems(ExperimentConfig, {"backend": "tensorrt", "model": "m", **config})


def problem(**config: Any) -> str:
    with pytest.raises(ConfigurationError) as raised:
        experiment(**config)
    return str(raised.value)


def test_unset_is_unset() -> None:
    settings = TensorrtConfig()
    assert settings.model_dump(exclude_none=True) == {
        "kv_cache": {},
        "scheduler": {},
        "build_engine": False,
        "force_rebuild": False,
    }


def test_float32_is_refused_at_submit() -> None:
    assert problem(precision="float32") == (
        "precision: TensorRT-LLM does not run in float32; set precision to float16, bfloat16 or auto"
    )


@pytest.mark.parametrize(
    ("settings", "count", "fix"),
    [
        ({"tensor_parallel_size": 2}, 1, "set devices.count: 2"),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 2, "set devices.count: 4"),
        ({}, 2, "set devices.count: 1"),
    ],
)
def test_parallel_sizes_must_be_what_is_leased(settings: dict[str, Any], count: int, fix: str) -> None:
    assert fix in problem(tensorrt=settings, devices={"count": count})


def test_parallel_sizes_that_fit_are_taken() -> None:
    config = experiment(tensorrt={"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, devices={"count": 4})
    assert config.tensorrt is not None
    assert config.tensorrt.devices_needed == 4
    assert config.processes == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantization": {"algorithm": "FP8"}}, "quantization needs a built engine; set build_engine: true"),
        ({"engine_cache_dir": "/engines"}, "engine_cache_dir needs a built engine"),
        ({"build_engine": True, "cuda_graph": {}}, "cuda_graph belongs to the PyTorch flow; remove it or build_engine"),
        ({"build_engine": True, "kv_cache": {"dtype": "fp8"}}, "kv_cache.dtype belongs to the PyTorch flow"),
        ({"build_engine": True, "force_rebuild": True}, "force_rebuild has no effect without engine_cache_dir"),
        ({"max_input_len": 64, "max_seq_len": 64}, "max_input_len 64 leaves nothing of max_seq_len 64"),
        (
            {"tensor_parallel_size": 1, "moe_tensor_parallel_size": 2, "moe_expert_parallel_size": 2},
            "must be tensor_parallel_size 1; change one of them",
        ),
        ({"cuda_graph": {"enabled": False, "max_batch_size": 4}}, "max_batch_size has no effect without CUDA graphs"),
        ({"cuda_graph": {"batch_sizes": [1], "max_batch_size": 4}}, "keep one"),
        ({"cuda_graph": {"batch_sizes": [4, 1]}}, "in rising order"),
        (
            {"speculative": {"method": "ngram", "max_draft_len": 2}},
            "method ngram needs max_matching_ngram_size; set it",
        ),
        (
            {"speculative": {"method": "draft_target", "max_draft_len": 2, "model": "m", "max_matching_ngram_size": 1}},
            "max_matching_ngram_size has no effect with method draft_target; remove it",
        ),
        ({"max_batchsize": 2}, "did you mean 'max_batch_size'?"),
    ],
)
def test_what_can_not_be_is_refused_with_the_fix(settings: dict[str, Any], said: str) -> None:
    assert said in problem(tensorrt=settings)


def test_prompts_that_would_be_cut_too_long_for_the_engine_are_refused() -> None:
    said = problem(
        tensorrt={"max_seq_len": 100}, input={"max_tokens": 90, "truncate": "left"}, output={"max_tokens": 20}
    )
    assert "together above tensorrt.max_seq_len 100; raise it or lower one of them" in said


def test_every_key_says_what_the_engine_calls_it() -> None:
    def fields(schema: dict[str, Any]) -> dict[str, Any]:
        return {
            f"{name}.{key}": field
            for name, model in {"": schema, **schema["$defs"]}.items()
            for key, field in model.get("properties", {}).items()
        }

    unnamed = [
        name
        for name, field in fields(TensorrtConfig.model_json_schema()).items()
        if "x-engine-parameter" not in field or not field.get("description")
    ]
    # Sections: their own keys say it.
    assert unnamed == [".kv_cache", ".scheduler", ".cuda_graph", ".speculative", ".quantization"]
