"""Loads a transformers model with its tokenizer, and answers questions about the live pair."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
import transformers.utils.logging
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.hub import cached_file, extract_commit_hash

from lem_domain.config.experiment import ExperimentConfig, ModelConfig
from lem_domain.config.pytorch import PyTorchConfig
from lem_domain.errors import LemError
from lem_domain.wire.workers import DeviceKind
from lem_worker.process_protocol import RankJob
from lem_worker.prompts import PreparedPrompt, PromptRefused
from lem_worker.synthetic import ordinary_ids

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DUMMY_SEED = 20_260_601
"""Random weights are the same in every run, so that their outputs can be compared."""


class ModelRefused(LemError):
    """A model that can't be loaded as asked."""


class LiveModel:
    """A model and its tokenizer, ready to run."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, weights: str, commit: str | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.weights = weights
        self.commit = commit
        """The hub's commit that the files are of; None for a folder."""
        self.device = next(model.parameters()).device

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Every token that ends a sequence, as the checkpoint's generation settings say, else the tokenizer."""
        generation = self.model.generation_config
        ids = generation.eos_token_id if generation is not None else None
        if ids is None:
            ids = self.tokenizer.eos_token_id
        if ids is None:
            return ()
        return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)

    @property
    def padding_id(self) -> int:
        """What fills rows up; masked, so that any token would do."""
        padding = self.tokenizer.pad_token_id
        return padding if padding is not None else (self.end_ids or (0,))[0]

    def token_ids(self, text: str, *, chat_template: bool) -> list[int]:
        """The prompt's tokens with the tokenizer's own special tokens, or in the chat template as a user's turn."""
        if not chat_template:
            return list(self.tokenizer(text)["input_ids"])
        if not self.tokenizer.chat_template:
            raise ModelRefused(
                "the model's tokenizer has no chat template; set prompts.chat_template to false or use a chat model."
            )
        turn = [{"role": "user", "content": text}]
        return list(self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))

    def ordinary_ids(self) -> list[int]:
        """Every token that stands for text."""
        embedding: Any = self.model.get_input_embeddings()
        return ordinary_ids(self.tokenizer, embedding.num_embeddings)

    def text(self, token_ids: Sequence[int]) -> str:
        """Without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def check_context(self, prompt: PreparedPrompt, max_tokens: int) -> None:
        """Raises PromptRefused when prompt and answer are longer than the model's positions."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and len(prompt.token_ids) + max_tokens > context:
            raise PromptRefused(
                f"prompt {prompt.index} has {len(prompt.token_ids)} tokens and output.max_tokens is {max_tokens}, "
                f"together above the model's context of {context}; lower output.max_tokens or input.max_tokens."
            )

    def release(self) -> None:
        """Give the memory back, on an accelerator to its driver too."""
        del self.model
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def load(job: RankJob) -> LiveModel:
    """The model of the job on its device.

    Raises:
        ModelRefused: the device that was leased is not there.
    """
    config = job.config
    settings = config.pytorch or PyTorchConfig()
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = _device(job)
    source = _source(config.model)
    tokenizer = AutoTokenizer.from_pretrained(job.model_path, **source)
    attention = {} if settings.attn_implementation is None else {"attn_implementation": settings.attn_implementation}
    if config.model.weights == "dummy":
        model: Any = _random_model(job.model_path, config, device, {**source, **attention})
    else:
        dtype = "auto" if config.precision == "auto" else _DTYPES[config.precision]
        model = AutoModelForCausalLM.from_pretrained(job.model_path, dtype=dtype, **source, **attention)
        model.to(device)
    model.eval()
    return LiveModel(model, tokenizer, config.model.weights, _commit(job.model_path, config.model.revision))


def _random_model(path: str, config: ExperimentConfig, device: torch.device, options: dict[str, Any]) -> Any:
    shape = AutoConfig.from_pretrained(path, **{key: value for key, value in options.items() if key == "revision"})
    dtype = (shape.dtype or torch.float32) if config.precision == "auto" else _DTYPES[config.precision]
    torch.manual_seed(_DUMMY_SEED)
    attention = {key: value for key, value in options.items() if key == "attn_implementation"}
    with device:  # made where it will live, not copied there
        return AutoModelForCausalLM.from_config(shape, dtype=dtype, **attention)  # type: ignore[no-untyped-call]


def _source(model: ModelConfig) -> dict[str, Any]:
    return {} if model.revision is None else {"revision": model.revision}


def _commit(path: str, revision: str | None) -> str | None:
    """The commit in whose snapshot the files lie that were just loaded; transformers 5 keeps it nowhere else."""
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
    # CUDA_VISIBLE_DEVICES holds the leased devices' UUIDs, in their order.
    return torch.device("cuda", job.rank % len(accelerators))
