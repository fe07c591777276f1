"""Sizes for the estimate of operations, against what PyTorch itself counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from lem_worker.backends.model_facts import model_facts
from lem_worker.backends.torch_device import float32_format, peak_memory_bytes

SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",
}
EAGER = {"attn_implementation": "eager"}


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


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_learned_positions_are_looked_up_and_not_multiplied(kind: str) -> None:
    model: PreTrainedModel
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=512, **EAGER))
    else:
        shape = {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        model = OPTForCausalLM(OPTConfig(vocab_size=300, word_embed_proj_dim=64, **shape, **EAGER))
    facts = model_facts(model)
    tokens = 40
    expected = 2 * facts["matmul_parameters"] * tokens + 4 * facts["layers"] * facts["attention_width"] * tokens**2
    assert counted(model, tokens) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("quantization", "number_format"),
    [
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}, "float32"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}, None),
        ({"load_in_8bit": True}, None),
    ],
    ids=["4bit-alike", "4bit-mixed", "8bit"],
)
def test_packed_weights_count_as_many_as_they_represent(
    tmp_path: Path, quantization: dict[str, Any], number_format: str | None
) -> None:
    """Two weights of 4 bits lie in a byte; the head stays as it was, so one format or two are at work."""
    plain = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))
    plain.save_pretrained(tmp_path)
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**quantization), dtype=torch.float32
    )
    assert sum(one.numel() for one in packed.parameters()) <= sum(one.numel() for one in plain.parameters())
    facts = model_facts(packed)
    assert facts["matmul_parameters"] == model_facts(plain)["matmul_parameters"]
    assert facts["dtype"] == number_format


class Packed(torch.nn.Module):
    """A layer with the attributes of GPTQ's and AWQ's, whose kernels need a GPU: weights packed into a buffer."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("qweight", torch.zeros(in_features // 8, out_features, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(in_features // 32, out_features))


def test_a_checkpoint_that_is_quantised_counts_whole_and_names_no_format() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    expected = model_facts(model)["matmul_parameters"]
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in [one for one in block.named_children() if isinstance(one[1], torch.nn.Linear)]:
                setattr(block, name, Packed(linear.in_features, linear.out_features))
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    facts = model_facts(model)
    assert (facts["matmul_parameters"], facts["dtype"]) == (expected, None)


@pytest.mark.parametrize(
    ("precision", "device", "capability", "found"),
    [
        ("highest", "cuda", (9, 0), "float32"),
        ("high", "cuda", (9, 0), "tensorfloat32"),
        ("medium", "cuda", (8, 0), "tensorfloat32"),
        ("high", "cuda", (7, 5), "float32"),
        ("highest", "cpu", None, "float32"),
        ("high", "cpu", None, None),
    ],
)
def test_float32_is_multiplied_in_what_torch_may_use(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, capability: Any, found: str | None
) -> None:
    """A GPU's word for what it is able to do is made here; the switch is torch's own."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert float32_format(torch.device(device)) == found
        half = LlamaForCausalLM(LlamaConfig(**SMALL)).half()
        assert model_facts(half)["dtype"] == "float16"
    finally:
        torch.set_float32_matmul_precision(before)


def test_of_experts_only_the_active_ones_count() -> None:
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=8, num_experts_per_tok=2))
    facts = model_facts(model)
    one_expert = 3 * 64 * 96
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) > facts["matmul_parameters"]
    dense = model_facts(LlamaForCausalLM(LlamaConfig(**SMALL)))["matmul_parameters"]
    router = 64 * 8
    assert facts["matmul_parameters"] == dense + SMALL["num_hidden_layers"] * (one_expert + router)


def test_the_built_in_model_has_all_facts(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    facts = model_facts(model)
    assert facts["dtype"] == "float32"
    assert all(isinstance(facts[name], int) and facts[name] > 0 for name in facts if name != "dtype")
    assert peak_memory_bytes(torch.device("cpu")) is None
