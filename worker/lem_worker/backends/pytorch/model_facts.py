"""What a loaded transformers model is made of, as far as estimates of its work need it."""

from __future__ import annotations

import math

import torch
from pydantic.types import JsonValue
from transformers import PreTrainedModel

from lem_worker.backends.pytorch import quantization as pytorch_quantization

_MATRIX = 2
_HAS_TF32 = (8, 0)
"""Ampere and newer."""


def model_facts(model: PreTrainedModel) -> dict[str, JsonValue]:
    """Sizes for the estimate of floating-point operations (see docs/measurement.md).

    `matmul_parameters` are the weights that each token is multiplied with: every matrix, the head that makes logits
    included (also where it shares the embedding's weights), embeddings of tokens and positions left out, which are
    looked up, and of experts as many as are active for a token. `dtype` is the number format of that arithmetic.
    """
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    head_width = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
    return {
        "matmul_parameters": _matmul_parameters(model),
        "layers": int(config.num_hidden_layers),
        "attention_width": heads * int(head_width),
        "dtype": arithmetic_format(model),
    }


def forget_peak_memory(device: torch.device) -> None:
    """From now on the peak counts anew, from what is held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most that this process's tensors held on an accelerator since then; None on the CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def arithmetic_format(model: PreTrainedModel) -> str | None:
    """The number format in which tokens are multiplied with the weights; None where nobody can tell."""
    weight = next(model.parameters())
    found = str(weight.dtype).removeprefix("torch.")
    told = pytorch_quantization.arithmetic_format(model) if is_quantised(model) else found
    return float32_format(weight.device) if told == "float32" else told


def float32_format(device: torch.device) -> str | None:
    """What float32 products are computed in: TensorFloat-32 on a GPU that has it, where torch may use it."""
    if torch.get_float32_matmul_precision() == "highest":
        return "float32"
    if device.type != "cuda":
        return None  # float32, TensorFloat-32 or bfloat16, as the processor's library likes
    # Up to torch 2.13 there is no kernel of bfloat16 products for `medium` on a GPU: it is what `high` is.
    return "tensorfloat32" if torch.cuda.get_device_capability(device) >= _HAS_TF32 else "float32"


def is_quantised(model: PreTrainedModel) -> bool:
    """Its weights are, or its description says that they are in the checkpoint."""
    described = getattr(model.config, "quantization_config", None)
    return described is not None or getattr(model, "hf_quantizer", None) is not None


def _matmul_parameters(model: PreTrainedModel) -> int:
    """By the sizes of layers where they tell them, as packed weights have another; an embedding is looked up only."""
    shared, experts = 0, 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding):
            continue
        for within, size in _matrices(module).items():
            if ".experts." in f"{name}.{within}":
                experts += size
            else:
                shared += size
    config = model.config.get_text_config()
    known = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    active = getattr(config, "num_experts_per_tok", None)
    return shared + (experts * int(active) // int(known) if known and active else experts)


def _matrices(module: torch.nn.Module) -> dict[str, int]:
    """How many weights each matrix has that is the module's own, by name."""
    own = dict(module.named_parameters(recurse=False))
    sizes = {name: _weights(parameter) for name, parameter in own.items() if parameter.dim() >= _MATRIX}
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    packed = own.get("weight", dict(module.named_buffers(recurse=False)).get("qweight"))  # GPTQ and AWQ keep buffers
    if packed is None or not isinstance(inputs, int) or not isinstance(outputs, int):
        return sizes
    return {**sizes, "weight": inputs * outputs}


def _weights(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs two weights of 4 bits into a byte
    return math.prod(parameter.shape if state is None else state.shape)
