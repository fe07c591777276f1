"""A LoRA in peft's format, made without peft, for a model of the Llama family."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

_TARGETS = ("q_proj", "v_proj")
ALPHA = 16


def make_lora(model: Path, folder: Path, *, rank: int = 4, seed: int = 7) -> Path:
    """Random weights that are large enough to change what is generated."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    with safe_open(model / "model.safetensors", framework="pt") as checkpoint:
        for name in checkpoint.keys():  # noqa: SIM118 - not a mapping
            module = name.removesuffix(".weight")
            if module.rpartition(".")[2] not in _TARGETS:
                continue
            rows, columns = checkpoint.get_slice(name).get_shape()
            for letter, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                weights[f"base_model.model.{module}.lora_{letter}.weight"] = 0.3 * torch.randn(shape, generator=random)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": ALPHA,
        "target_modules": list(_TARGETS),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder


def merged(adapter: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """What it adds to the weight of each module that it aims at."""
    rank = int(json.loads((adapter / "adapter_config.json").read_text())["r"])
    weights = load_file(adapter / "adapter_model.safetensors")
    for name in weights:
        module, _, letter = name.removeprefix("base_model.model.").partition(".lora_")
        if letter.startswith("A"):
            yield module, ALPHA / rank * weights[name.replace("lora_A", "lora_B")] @ weights[name]


def aimed_elsewhere(adapter: Path, folder: Path) -> Path:
    """The same for modules that no model has."""
    folder.mkdir(parents=True, exist_ok=True)
    described = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**described, "target_modules": ["no_such_module"]}))
    renamed = {
        name.replace("q_proj", "no_such_module"): weight
        for name, weight in load_file(adapter / "adapter_model.safetensors").items()
        if "q_proj" in name
    }
    save_file(renamed, folder / "adapter_model.safetensors")
    return folder
