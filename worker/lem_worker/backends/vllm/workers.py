"""Functions that run in each of an engine's workers, on the part of the model that the worker holds."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from typing import Any

import torch
from pydantic.types import JsonValue
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from lem_worker.backends import torch_device
from lem_worker.backends.model_facts import dtype_name
from lem_worker.process import children


def describe(worker: Any) -> dict[str, Any]:
    """Describe this worker's part of the model and its settings."""
    runner = worker.model_runner
    model = runner.model
    drafter = getattr(runner, "drafter", None)
    attention = [module for module in model.modules() if hasattr(module, "attn_backend")]
    storages = [cache.untyped_storage() for cache in runner.kv_caches if isinstance(cache, torch.Tensor)]
    return {
        "pid": os.getpid(),
        "dtype": dtype_name(next(model.parameters()).dtype),
        "arithmetic": arithmetic_format(worker.vllm_config.model_config, worker.device),
        "threads": torch.get_num_threads(),
        "cores": sorted(os.sched_getaffinity(0)),
        "attention_backend": attention[0].attn_backend.get_name() if attention else None,
        # Layers may share one allocation.
        "kv_cache_bytes": sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()),
        "matmul_parameters": _matmul_parameters(model, int(worker.parallel_config.tensor_parallel_size)),
        "compiled": _is_compiled(worker),
        "adapters": sorted(worker.list_loras()) if worker.lora_config is not None else [],
        "drafter": type(drafter).__name__ if drafter is not None else None,
        "lookup": None if drafter is None else [getattr(drafter, "min_n", None), getattr(drafter, "max_n", None)],
    }


def arithmetic_format(model_config: Any, device: torch.device) -> str | None:
    """The number format in which tokens are multiplied with the weights.

    None for quantised weights, whose kernels choose the format by device.
    """
    if model_config.quantization is not None:
        return None
    return (
        torch_device.float32_format(device) if model_config.dtype == torch.float32 else dtype_name(model_config.dtype)
    )


def reset_peak_memory(worker: Any) -> None:
    """Restart the count of this worker's peak memory from the memory that is held now."""
    torch_device.reset_peak_memory(worker.device)


def memory(worker: Any) -> dict[str, Any]:
    """The most that this worker's tensors held on its accelerator since the reset; None on the CPU."""
    return {"peak_device_memory_bytes": torch_device.peak_memory_bytes(worker.device)}


def die_with_parent(worker: Any) -> None:  # noqa: ARG001 - collective_rpc passes the worker
    """Make a worker subprocess end with the rank, also where the rank is killed."""
    if multiprocessing.parent_process() is not None:  # the rank itself has done so already
        os.environ["LEM_PARENT"] = str(os.getppid())
        children.die_with_parent()


def model_facts(vllm_config: Any, workers: Sequence[dict[str, Any]]) -> dict[str, JsonValue]:
    """Sizes for the estimate of floating-point operations (see docs/measurement.md), of all workers together."""
    model = vllm_config.model_config
    parallel = vllm_config.parallel_config
    heads = int(model.get_num_attention_heads(parallel)) * int(parallel.tensor_parallel_size)
    return {
        "matmul_parameters": workers[0]["matmul_parameters"],
        "layers": int(model.get_total_num_hidden_layers()),
        "attention_width": heads * int(model.get_head_size()),
        "dtype": workers[0]["arithmetic"],
    }


def _matmul_parameters(model: torch.nn.Module, processes: int) -> int:
    """The number of weights of the whole model that a token is multiplied with.

    The output head counts also where it shares the embedding's weights, of experts only the active ones count, and the
    look-up of the input embedding does not. The sizes of layers are summed, not their weights, which are packed on the
    CPU and divided among processes.
    """
    linear = sum(int(one.input_size) * int(one.output_size) for one in model.modules() if isinstance(one, LinearBase))
    embeddings = [one for one in model.modules() if isinstance(one, VocabParallelEmbedding)]
    head = next((one for one in embeddings if isinstance(one, ParallelLMHead)), embeddings[0] if embeddings else None)
    logits = int(head.org_vocab_size) * int(head.embedding_dim) if head is not None else 0
    held = sum(one.numel() for name, one in model.named_parameters() if ".experts." in name and one.dim() > 1)
    config: Any = getattr(model, "config", None)
    known = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    active = getattr(config, "num_experts_per_tok", None)
    experts = held * processes
    return linear + logits + (experts * int(active) // int(known) if known and active else experts)


def _is_compiled(worker: Any) -> bool:
    """Whether a part of the model is compiled."""
    return any(getattr(module, "do_not_compile", None) is False for module in worker.model_runner.model.modules())
