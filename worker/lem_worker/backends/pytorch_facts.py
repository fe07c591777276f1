"""What a loaded transformers model is made of, as far as estimates of its work need it."""

from __future__ import annotations

from typing import Any

import torch
from pydantic.types import JsonValue
from transformers import PreTrainedModel


def model_facts(model: PreTrainedModel) -> dict[str, JsonValue]:
    """Sizes for the estimate of floating-point operations (see docs/measurement.md).

    `matmul_parameters` are the weights that each token is multiplied with: every matrix, the head that makes logits
    included (also where it shares the embedding's weights), the look-up of the input embedding left out, and of experts
    as many as are active for a token.
    """
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    head_width = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
    return {
        "matmul_parameters": _matmul_parameters(model),
        "layers": int(config.num_hidden_layers),
        "attention_width": heads * int(head_width),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most that this process's tensors held on an accelerator; None on the CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def _matmul_parameters(model: PreTrainedModel) -> int:
    embedding = model.get_input_embeddings().weight
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = head is not None and head.weight is embedding
    shared, experts = 0, 0
    for name, parameter in model.named_parameters():  # a tied weight is listed once
        if parameter.dim() < 2 or (parameter is embedding and not tied):
            continue
        if ".experts." in name:
            experts += parameter.numel()
        else:
            shared += parameter.numel()
    config = model.config.get_text_config()
    known = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    active = getattr(config, "num_experts_per_tok", None)
    return shared + (experts * int(active) // int(known) if known and active else experts)
