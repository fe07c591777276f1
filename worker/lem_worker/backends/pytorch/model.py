"""Loads a transformers model with its tokenizer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers.utils.logging
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.hub import cached_file, extract_commit_hash

from lem_domain.backends.pytorch import PyTorchConfig
from lem_domain.config.experiment import ExperimentConfig, ModelConfig
from lem_domain.errors import LemError
from lem_domain.wire.workers import DeviceKind
from lem_worker.backends.pytorch import log_filters, quantization
from lem_worker.backends.pytorch.compile import Compiled
from lem_worker.backends.tokenizer import ModelTokens
from lem_worker.process.failures import BackendUnavailable
from lem_worker.process.protocol import RankJob

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DUMMY_SEED = 20_260_601
"""Fixed, so that random weights and their outputs are the same in every run."""


class ModelRefused(LemError):
    """The model can't be loaded as configured."""


class LiveModel(ModelTokens):
    """A loaded model with its tokenizer, adapter and drafting model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        weights: str,
        *,
        commit: str | None = None,
        adapter: str | None = None,
        assistant: PreTrainedModel | None = None,
        compiled: Compiled | None = None,
    ) -> None:
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        super().__init__(tokenizer, {"the model's context": positions}, model.generation_config)
        self.model = model
        self.weights = weights
        self.commit = commit
        """The hub commit of the files; None for a folder."""
        self.adapter = adapter
        """The adapter whose layers the model has."""
        self.assistant = assistant
        """The drafting model."""
        self.compiled = compiled
        self.forward: Callable[..., Any] = model if compiled is None else compiled
        """The model's forward pass, compiled if configured."""
        self.device = next(model.parameters()).device

    @property
    def vocabulary(self) -> int:
        """Number of tokens of the model."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.num_embeddings)

    def release(self) -> None:
        """Free the memory, on an accelerator also the one that torch's allocator caches."""
        del self.model, self.forward
        self.assistant = self.compiled = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def load(job: RankJob) -> LiveModel:
    """Load the model of the job on its device.

    Raises:
        ModelRefused: the leased device is missing, or the model can't be loaded as configured.
        BackendUnavailable: an option needs a package or a device that this machine lacks.
    """
    config = job.config
    settings = config.section(PyTorchConfig)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    if settings.matmul_precision is not None:
        torch.set_float32_matmul_precision(settings.matmul_precision)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    log_filters.log_once("bitsandbytes")
    device = _device(job)
    tokenizer = AutoTokenizer.from_pretrained(job.model_path, **_source(config.model))
    model = _model(job, settings, device)
    if config.model.adapter is not None:
        _add_adapter(model, job)
    model.eval()
    return LiveModel(
        model,
        tokenizer,
        config.model.weights,
        commit=_commit(job.model_path, config.model.revision),
        adapter=config.model.adapter if _has_adapter(model) else None,
        assistant=None if job.assistant_path is None else _assistant(job.assistant_path, model, device),
        compiled=Compiled(model.forward, settings.torch_compile)
        if settings.compiles and settings.torch_compile
        else None,
    )


def _model(job: RankJob, settings: PyTorchConfig, device: torch.device) -> Any:
    config = job.config
    options: dict[str, Any] = {}
    if settings.attn_implementation is not None:
        options["attn_implementation"] = settings.attn_implementation
    with _naming_the_attention_package(settings.attn_implementation, device):
        if config.model.weights == "dummy":
            if settings.quantization is not None:
                raise ModelRefused(
                    "pytorch.quantization is made from a checkpoint and model.weights is dummy; remove one of them."
                )
            return _random_model(job.model_path, config, device, options)
        dtype = "auto" if config.precision == "auto" else _DTYPES[config.precision]
        options |= {**_source(config.model), **quantization.options(settings.quantization)}
        if settings.quantization is not None and device.type != "cpu":
            options["device_map"] = {"": device}  # quantised on the device; a quantised model can't be moved
        model: Any = AutoModelForCausalLM.from_pretrained(job.model_path, dtype=dtype, **options)
    return model if settings.quantization is not None else model.to(device)


@contextmanager
def _naming_the_attention_package(attention: str | None, device: torch.device) -> Iterator[None]:
    """Convert the engine's error about a missing kernel package into one that says what to install."""
    if attention is None or not attention.startswith("flash_attention"):
        yield
        return
    needs = (
        f"pytorch.attn_implementation {attention} needs an NVIDIA GPU and the package "
        f"{'flash-attn' if attention == 'flash_attention_2' else 'flash-attn-3'}"
    )
    if device.type != "cuda":
        raise BackendUnavailable(f"{needs}, and this run has the CPU; use a worker with a GPU, or sdpa.")
    try:
        yield
    except ImportError as error:
        raise BackendUnavailable(f"{needs}, which this worker's environment lacks; install it, or use sdpa.") from error


def _add_adapter(model: Any, job: RankJob) -> None:
    """Load the adapter's layers into the model and activate them."""
    path = job.adapter_path or job.config.model.adapter
    try:
        model.load_adapter(path)
    except ImportError as error:
        raise BackendUnavailable(
            "model.adapter needs the package peft; install llm-energy-measurement[pytorch] in this worker's "
            "environment."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelRefused(
            f"the adapter {job.config.model.adapter} can't be loaded into {job.config.model.id} ({error}); "
            "name one that was made for this model."
        ) from error


def _has_adapter(model: Any) -> bool:
    return bool(getattr(model, "peft_config", None)) and any("lora_" in name for name, _ in model.named_parameters())


def _assistant(path: str, model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Load the drafting model in the measured model's number format."""
    assistant: Any = AutoModelForCausalLM.from_pretrained(path, dtype=model.dtype)
    ours, theirs = (one.config.get_text_config().vocab_size for one in (model, assistant))
    if ours != theirs:
        raise ModelRefused(
            f"pytorch.assisted_decoding.model has a vocabulary of {theirs} and the model one of {ours}; "
            "name a smaller model of the same family, with the same tokenizer."
        )
    assistant.to(device).eval()
    return assistant  # type: ignore[no-any-return]


def _random_model(path: str, config: ExperimentConfig, device: torch.device, options: dict[str, Any]) -> Any:
    shape = AutoConfig.from_pretrained(path, **_source(config.model))
    dtype = (shape.dtype or torch.float32) if config.precision == "auto" else _DTYPES[config.precision]
    torch.manual_seed(_DUMMY_SEED)
    with device:  # created on the device, so that the host needs no copy
        return AutoModelForCausalLM.from_config(shape, dtype=dtype, **options)  # type: ignore[no-untyped-call]


def _source(model: ModelConfig) -> dict[str, Any]:
    return {} if model.revision is None else {"revision": model.revision}


def _commit(path: str, revision: str | None) -> str | None:
    """The commit of the loaded files, by the path of their snapshot; transformers 5 exposes it nowhere else."""
    file = cached_file(path, "config.json", revision=revision, local_files_only=True)
    return extract_commit_hash(file, None)


def _device(job: RankJob) -> torch.device:
    accelerators = [device for device in job.devices if device.kind is DeviceKind.GPU]
    if not accelerators:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelRefused(
            f"{accelerators[0].name} was leased but PyTorch sees no GPU; install a CUDA build of torch that fits "
            "the driver, or let the worker offer the CPU."
        )
    if job.world_size > len(accelerators):
        raise ModelRefused(
            f"pytorch.num_processes is {job.world_size} and {len(accelerators)} GPU was leased, which they would "
            f"share; set devices.count to {job.world_size}."
        )
    # CUDA_VISIBLE_DEVICES holds the leased devices' UUIDs, in their order.
    return torch.device("cuda", job.rank)
