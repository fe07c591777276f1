"""Quantised weights: the options of bitsandbytes and torchao, and the readback from live modules."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from pydantic.types import JsonValue
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from lem_domain.backends.pytorch import QuantizationConfig
from lem_worker.backends.model_facts import dtype_name
from lem_worker.process.failures import BackendUnavailable

_TORCHAO = {
    "int8_weight_only": "Int8WeightOnlyConfig",
    "int8_dynamic_activation_int8_weight": "Int8DynamicActivationInt8WeightConfig",
    "float8_weight_only": "Float8WeightOnlyConfig",
}


def options(wanted: QuantizationConfig | None) -> dict[str, Any]:
    """The arguments of `from_pretrained`.

    Raises:
        BackendUnavailable: the package of the scheme is not installed.
    """
    if wanted is None:
        return {}
    if wanted.torchao is not None:
        return {"quantization_config": TorchAoConfig(_torchao_scheme(wanted.torchao))}
    _require("bitsandbytes")
    given: dict[str, Any] = {
        "bnb_4bit_compute_dtype": None if wanted.compute_dtype is None else getattr(torch, wanted.compute_dtype),
        "bnb_4bit_quant_type": wanted.quant_type,
    }
    return {
        "quantization_config": BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=wanted.load_in_8bit,
            load_in_4bit=wanted.load_in_4bit,
            **{name: value for name, value in given.items() if value is not None},
        )
    }


def in_force(model: PreTrainedModel) -> dict[str, JsonValue]:
    """Each key of `pytorch.quantization` as the live modules show it; None where it does not apply."""
    found: dict[str, JsonValue] = dict.fromkeys(QuantizationConfig.model_fields)
    found.update(load_in_8bit=False, load_in_4bit=False)
    for module in model.modules():
        weight: Any = getattr(module, "weight", None)
        match type(module).__name__:
            case "Linear8bitLt":
                found["load_in_8bit"] = weight.dtype == torch.int8
            case "Linear4bit":
                state = weight.quant_state
                found["load_in_4bit"] = state is not None
                found["compute_dtype"] = dtype_name(module.compute_dtype)
                found["quant_type"] = None if state is None else state.quant_type
            case "Linear" if type(weight).__module__.startswith("torchao."):
                found["torchao"] = _torchao_name(weight)
    return found


def _torchao_scheme(name: str) -> Any:
    _require("torchao")
    return getattr(importlib.import_module("torchao.quantization"), _TORCHAO[name])()


def _torchao_name(weight: Any) -> str:
    """The scheme, by the number format of the live weight and the presence of quantised activations."""
    dtype = dtype_name(weight.qdata.dtype)
    activations = getattr(weight, "act_quant_kwargs", None) is not None
    if dtype == "int8":
        return "int8_dynamic_activation_int8_weight" if activations else "int8_weight_only"
    kind = "float8" if dtype.startswith("float8") else dtype
    return f"{kind}_dynamic_activation" if activations else f"{kind}_weight_only"


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise BackendUnavailable(
            f"pytorch.quantization needs the package {package}; install "
            f"llm-energy-measurement[quantization] in this worker's environment."
        )
