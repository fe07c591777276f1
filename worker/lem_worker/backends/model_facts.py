"""Sizes and number format of a transformers model, for the estimate of its work (docs/measurement.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pydantic.types import JsonValue

from lem_worker.backends.torch_device import float32_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MATRIX_DIMENSIONS = 2


def model_facts(model: PreTrainedModel) -> dict[str, JsonValue]:
    """Sizes for the estimate of floating-point operations.

    `matmul_parameters` counts the weights that each token is multiplied with: every matrix, including the output head
    (also where it shares the embedding's weights) and the active experts. Embeddings of tokens and positions are looked
    up, not multiplied, and do not count. `dtype` is the number format of that arithmetic.
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


def arithmetic_format(model: PreTrainedModel) -> str | None:
    """The number format in which tokens are multiplied with the weights; None where it is unknown."""
    weight = next(model.parameters())
    dtype = _quantized_format(model) if is_quantized(model) else dtype_name(weight.dtype)
    return float32_format(weight.device) if dtype == "float32" else dtype


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether the weights are quantised, or the checkpoint's description says so."""
    described = getattr(model.config, "quantization_config", None)
    return described is not None or getattr(model, "hf_quantizer", None) is not None


def dtype_name(dtype: object) -> str:
    """A torch dtype's name without its module, such as `float32`."""
    return str(dtype).removeprefix("torch.")


def _quantized_format(model: PreTrainedModel) -> str | None:
    """The number format that quantised weights are multiplied in, if all share one and it is known.

    bitsandbytes multiplies 4-bit weights in their `compute_dtype`; torchao multiplies weight-only schemes in the
    format of the activations. No attribute names the format of other kernels (8 bits with activations, other
    checkpoints).
    """
    formats: set[str | None] = set()
    quantized = False
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        match type(module).__name__:
            case "Linear4bit":
                quantized = True
                formats.add(dtype_name(module.compute_dtype or model.dtype))
            case "Linear" if type(weight).__module__.startswith("torchao."):
                quantized = True
                formats.add(dtype_name(weight.dtype) if getattr(weight, "act_quant_kwargs", None) is None else None)
            case "Linear":
                formats.add(dtype_name(weight.dtype))
            case "Linear8bitLt":
                return None
    return formats.pop() if quantized and len(formats) == 1 else None


def _matmul_parameters(model: PreTrainedModel) -> int:
    """Sum the sizes of matrices; embeddings are only looked up."""
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
    """Weights of each matrix that belongs to the module itself, by name.

    Packed weights have another shape than the matrix they encode, so a linear layer counts by its features.
    """
    own = dict(module.named_parameters(recurse=False))
    sizes = {name: _weights(parameter) for name, parameter in own.items() if parameter.dim() >= _MATRIX_DIMENSIONS}
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    packed = own.get("weight", dict(module.named_buffers(recurse=False)).get("qweight"))  # GPTQ and AWQ keep buffers
    if packed is None or not isinstance(inputs, int) or not isinstance(outputs, int):
        return sizes
    return {**sizes, "weight": inputs * outputs}


def _weights(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes packs two 4-bit weights into a byte
    return math.prod(parameter.shape if state is None else state.shape)
