"""The two LLM classes of the fake: the PyTorch flow, and the one with a built engine."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ._executor import Executor
from ._models import BaseLlmArgs, TorchLlmArgs, TrtLlmArgs
from ._orders import fail_as_ordered, orders, told
from ._results import RequestOutput
from ._sampling import SamplingParams


class BaseLLM:
    """What both have: they check what they are given, load, and generate."""

    _args_class: type[BaseLlmArgs]
    _executor: Executor | None = None

    def __init__(
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._refuse(kwargs)
        explicit = {
            "model": model,
            "tokenizer": tokenizer,
            "tokenizer_mode": tokenizer_mode,
            "skip_tokenizer_init": skip_tokenizer_init,
            "trust_remote_code": trust_remote_code,
            "tensor_parallel_size": tensor_parallel_size,
            "dtype": dtype,
            "revision": revision,
            "tokenizer_revision": tokenizer_revision,
        }
        told("LLM", {"class": type(self).__name__, **_plain({**explicit, **kwargs})})
        told("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
        self.args: Any = self._args_class(**explicit, **kwargs)
        visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
        needed = self.args.tensor_parallel_size * self.args.pipeline_parallel_size
        if needed > 1 and len(visible) < needed:
            raise RuntimeError(f"Only {len(visible)} GPUs are available, but {needed} are required.")
        try:
            fail_as_ordered("load")
            vocabulary = self._load()
        except RuntimeError as error:
            raise RuntimeError("Executor worker returned error") from error
        for name, value in orders().get("lie", {}).items():
            owner, _, field = name.rpartition(".")
            setattr(getattr(self.args, owner) if owner else self.args, field, value)
        self._executor = Executor(self.args, vocabulary, self._most_at_once)

    def _refuse(self, kwargs: dict[str, Any]) -> None:
        """Raise for an argument that this class has not."""
        for key in kwargs:
            if key not in self._args_class.model_fields or key in orders().get("without", ()):
                raise ValueError(f"{type(self).__name__} got invalid argument: {key}")

    def _load(self) -> int:
        self._most_at_once = int(self.args.max_batch_size)
        return _vocabulary(Path(self.args.model))

    def generate_async(
        self,
        inputs: Any,
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        if self._executor is None:
            raise RuntimeError("LLM is shutting down")
        sampling = sampling_params or SamplingParams()
        if not isinstance(sampling, SamplingParams):
            raise TypeError("The sampling_params must be type SamplingParams or None")
        if sampling.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None, or you can explicitly specify it")
        prompt = inputs["prompt_token_ids"] if isinstance(inputs, dict) else inputs
        if not isinstance(prompt, list) or not all(isinstance(token, int) for token in prompt):
            raise TypeError(f"The inputs must be type str or list of int, but got {type(inputs)}")
        if not self.args.enable_chunked_prefill and len(prompt) > self.args.max_num_tokens:
            raise ValueError(f"The sum of prompt length ({len(prompt)}) should not exceed max_num_tokens")
        told("generate_async", {"prompt": prompt, "cache_salt": cache_salt, **_set_fields(sampling)})
        return self._executor.submit(prompt, sampling, streaming=streaming, salt=cache_salt)

    def shutdown(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


class LLM(BaseLLM):
    """The PyTorch flow."""

    _args_class = TorchLlmArgs

    def _refuse(self, kwargs: dict[str, Any]) -> None:
        wrong = [name for name in kwargs if name in TrtLlmArgs.model_fields and name not in TorchLlmArgs.model_fields]
        if wrong:
            raise ValueError(f"The following arguments are specific to TensorRT backend: {wrong}.")
        super()._refuse(kwargs)


class BuiltLLM(BaseLLM):
    """The flow with an engine: built from a checkpoint, or loaded from a folder that `save` made."""

    _args_class = TrtLlmArgs

    def save(self, engine_dir: str) -> None:
        told("save", engine_dir)
        shutil.copytree(self._engine_dir, engine_dir, dirs_exist_ok=True)

    def _load(self) -> int:
        args = self.args
        model = Path(args.model)
        described = json.loads((model / "config.json").read_text())
        if "build_config" in described and "pretrained_config" in described:
            self._engine_dir = model
            mapping = described["pretrained_config"]["mapping"]
            if args.tensor_parallel_size not in (1, mapping["tp_size"]):
                raise ValueError(f"tp_size {args.tensor_parallel_size} is not consistent with the engine's")
            told("engine", "loaded")
        else:
            vocabulary = _vocabulary(model)
            self._workspace = tempfile.TemporaryDirectory(suffix="-llm-workspace")
            self._engine_dir = Path(self._workspace.name)
            told("engine", "built")
            described = {
                "version": "1.2.1",
                "pretrained_config": {
                    "dtype": described.get("dtype") or "float16" if args.dtype == "auto" else args.dtype,
                    "vocab_size": vocabulary,
                    "mapping": {"tp_size": args.tensor_parallel_size, "pp_size": args.pipeline_parallel_size},
                    "quantization": args.quant_config.model_dump(mode="json"),
                },
                "build_config": args.build_config.model_dump(mode="json"),
            }
            (self._engine_dir / "config.json").write_text(json.dumps(described))
            (self._engine_dir / "rank0.engine").write_bytes(b"fake engine")
            args.model = self._engine_dir
        self._most_at_once = int(described["build_config"]["max_batch_size"])
        return int(described["pretrained_config"]["vocab_size"])


def _vocabulary(model: Path) -> int:
    """Read the checkpoint as far as to see that it is one."""
    if not (model / "config.json").exists():
        raise ValueError(f"Failed to infer model format because no config.json exists in {model}")
    config = json.loads((model / "config.json").read_text())
    for weights in model.glob("*.safetensors"):
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            try:
                json.loads(file.read(length) if length < weights.stat().st_size else b"")
            except ValueError as error:
                raise RuntimeError(f"Error while deserializing header of {weights.name}: HeaderTooLarge") from error
    return int(config.get("vocab_size", 1024))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON, with only what was set in models."""
    return {
        name: {"": type(value).__name__, **value.model_dump(mode="json", exclude_unset=True)}
        if hasattr(value, "model_dump")
        else value
        for name, value in values.items()
    }


def _set_fields(sampling: SamplingParams) -> dict[str, Any]:
    blank = SamplingParams()
    names = [name for name in SamplingParams.__slots__ if not name.startswith("_")]
    return {name: getattr(sampling, name) for name in names if getattr(sampling, name) != getattr(blank, name)}
