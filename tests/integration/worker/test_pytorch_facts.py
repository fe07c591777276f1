"""Sizes for the estimate of operations, against what PyTorch itself counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from lem_worker.backends.pytorch_facts import model_facts, peak_memory_bytes
from lem_worker.models import resolve_model

SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",
}


def counted(model: torch.nn.Module, tokens: int) -> int:
    ids = torch.arange(tokens)[None] % 200
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(ids)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("tied", [True, False])
def test_the_estimate_is_what_a_prefill_multiplies(tied: bool) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))
    facts = model_facts(model)
    tokens = 40
    # Eager attention multiplies the whole square, above the diagonal too; all logits are computed.
    expected = 2 * facts["matmul_parameters"] * tokens + 4 * facts["layers"] * facts["attention_width"] * tokens**2
    assert counted(model, tokens) == pytest.approx(expected, rel=1e-3)


def test_of_experts_only_the_active_ones_count() -> None:
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=8, num_experts_per_tok=2))
    facts = model_facts(model)
    one_expert = 3 * 64 * 96
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) > facts["matmul_parameters"]
    dense = model_facts(LlamaForCausalLM(LlamaConfig(**SMALL)))["matmul_parameters"]
    router = 64 * 8
    assert facts["matmul_parameters"] == dense + SMALL["num_hidden_layers"] * (one_expert + router)


def test_the_built_in_model_has_all_facts(tmp_path: Path) -> None:
    folder = resolve_model("builtin:tiny-llama", cache_dir=tmp_path).path_or_id
    model = AutoModelForCausalLM.from_pretrained(folder)
    facts = model_facts(model)
    assert facts["dtype"] == "float32"
    assert all(isinstance(facts[name], int) and facts[name] > 0 for name in facts if name != "dtype")
    assert peak_memory_bytes(torch.device("cpu")) is None
