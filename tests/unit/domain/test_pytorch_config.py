"""What the PyTorch tier refuses, each with what to change."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError
from pydantic.types import JsonValue

from lem_domain.config.experiment import ExperimentConfig


def experiment(**pytorch: JsonValue) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"model": "m", "pytorch": pytorch})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batching": "dynamic"}, "batching dynamic needs a limit; set max_tokens_per_batch"),
        ({"max_tokens_per_batch": 9}, "batching is static; remove it or set batching: dynamic"),
        (
            {"batching": "length_sorted", "max_tokens_per_batch": 9},
            "batching is length_sorted; remove it or set batching: dynamic",
        ),
        ({"use_cache": False, "cache_implementation": "static"}, "there is no static cache; remove one of the two"),
        ({"quantization": {"load_in_4bit": True, "load_in_8bit": True}}, "load_in_8bit and load_in_4bit are both set"),
        ({"quantization": {"load_in_4bit": True, "torchao": "int8_weight_only"}}, "load_in_4bit and torchao are both"),
        ({"quantization": {}}, "no scheme is set; set load_in_8bit, load_in_4bit or torchao"),
        ({"quantization": {"load_in_8bit": True, "quant_type": "nf4"}}, "quant_type belongs to load_in_4bit"),
        ({"assisted_decoding": {"model": "a"}, "prompt_lookup_tokens": 3}, "are both set; keep one way of speculation"),
        ({"prompt_lookup_tokens": 3, "batch_size": 2}, "works on one request at a time; remove batching and set"),
        (
            {"assisted_decoding": {"model": "a"}, "batching": "length_sorted"},
            "assisted_decoding works on one request at a time",
        ),
        ({"prompt_lookup_tokens": 3, "use_cache": False}, "prompt_lookup_tokens needs a dynamic cache"),
        ({"prompt_lookup_tokens": 3, "cache_implementation": "static"}, "prompt_lookup_tokens needs a dynamic cache"),
        ({"prompt_lookup_tokens": 3, "torch_compile": {}}, "can't be combined with torch_compile; remove one"),
        ({"torch_compile": {"backend": "eager", "mode": "max-autotune"}}, "remove mode or set backend: inductor"),
        ({"torch_compile": {"enabled": False, "dynamic": True}}, "dynamic would do nothing; remove it or enable it"),
    ],
)
def test_what_can_not_be_together_is_refused(settings: dict[str, JsonValue], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        experiment(**settings)


def test_an_adapter_belongs_to_the_backend_that_puts_it_in() -> None:
    model = {"id": "m", "adapter": "a"}
    for backend in ("simulated", "tensorrt"):
        with pytest.raises(ValidationError, match=r"model\.adapter is not supported"):
            ExperimentConfig.model_validate({"backend": backend, "model": model})
    for backend in ("pytorch", "vllm"):
        assert ExperimentConfig.model_validate({"backend": backend, "model": model}).model.adapter == "a"


def test_processes_are_the_ranks_of_an_attempt() -> None:
    assert experiment(num_processes=3).processes == 3
    assert experiment().processes == 1
