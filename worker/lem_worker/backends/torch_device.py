"""Facts of a torch device that several engines report: peak memory and the arithmetic of float32 products."""

from __future__ import annotations

import torch

_HAS_TF32 = (8, 0)
"""Compute capability of Ampere, the first architecture with TensorFloat-32."""


def reset_peak_memory(device: torch.device) -> None:
    """Restart the count of `peak_memory_bytes` from the memory that is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most that this process's tensors held on an accelerator since the reset; None on the CPU."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None


def float32_format(device: torch.device) -> str | None:
    """The number format of float32 products: TensorFloat-32 on a GPU that has it, where torch may use it."""
    if torch.get_float32_matmul_precision() == "highest":
        return "float32"
    if device.type != "cuda":
        return None  # float32, TensorFloat-32 or bfloat16: the processor's library decides
    # Up to torch 2.13 no GPU kernel computes in bfloat16 for `medium`, so it is the same as `high`.
    return "tensorfloat32" if torch.cuda.get_device_capability(device) >= _HAS_TF32 else "float32"
