"""The checkpoint's own tokenizer and the ids that end a sequence, for an engine that gets and gives token ids only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.types import JsonValue
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from lem_domain.errors import LemError
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import PreparedPrompt, PromptRefused
from lem_worker.rank.synthetic_prompts import ordinary_ids


class NoChatTemplate(LemError):
    """A chat template was asked of a tokenizer that has none."""


class Tokens:
    """A model's texts as token ids and back."""

    def __init__(self, job: RankJob) -> None:
        source = {} if job.config.model.revision is None else {"revision": job.config.model.revision}
        self._folder = Path(job.model_path)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(job.model_path, **source)
        self._config: Any = AutoConfig.from_pretrained(job.model_path, **source)
        self.end_ids = self._end_ids(job.model_path, source)
        """Every token that ends a sequence, as the checkpoint's generation settings say, else the tokenizer."""
        padding = self._tokenizer.pad_token_id
        self.padding_id = int(padding) if padding is not None else (self.end_ids or (0,))[0]

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self._config.get_text_config().vocab_size)

    def ordinary_ids(self) -> list[int]:
        """Every token that stands for text."""
        return ordinary_ids(self._tokenizer, self.vocabulary)

    def ids(self, text: str, *, chat_template: bool) -> list[int]:
        """The text with the tokenizer's own special tokens, or in the chat template as a user's turn.

        Raises:
            NoChatTemplate: the tokenizer has none.
        """
        if not chat_template:
            return list(self._tokenizer(text)["input_ids"])
        if not self._tokenizer.chat_template:
            raise NoChatTemplate(
                "the model's tokenizer has no chat template; set prompts.chat_template to false or use a chat model."
            )
        turn = [{"role": "user", "content": text}]
        rendered = self._tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return list(self._tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def text(self, token_ids: Sequence[int]) -> str:
        """Without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def check_context(self, prompt: PreparedPrompt, max_tokens: int, *, longest: int | None) -> None:
        """Raises PromptRefused when prompt and answer are longer than the model's positions or `longest`."""
        context = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        limits = [(context, "the model's context"), (longest, "tensorrt.max_seq_len")]
        for limit, name in limits:
            if limit is not None and len(prompt.token_ids) + max_tokens > limit:
                raise PromptRefused(
                    f"prompt {prompt.index} has {len(prompt.token_ids)} tokens and output.max_tokens is {max_tokens}, "
                    f"together above {name} of {limit}; lower output.max_tokens or input.max_tokens."
                )

    @property
    def quantised(self) -> bool:
        """The checkpoint's weights are."""
        described = getattr(self._config, "quantization_config", None) is not None
        return described or (self._folder / "hf_quant_config.json").exists()  # as TensorRT's own tools write it

    def model_facts(self) -> dict[str, JsonValue]:
        """Sizes for the estimate of the model's work, from its description alone: no weights are loaded."""
        import torch  # noqa: PLC0415 - the engine loads it in processes of its own; here it's needed once, at the end
        from transformers import AutoModelForCausalLM  # noqa: PLC0415

        from lem_worker.backends.model_facts import model_facts  # noqa: PLC0415

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self._config)  # type: ignore[no-untyped-call]
        return model_facts(model)

    def _end_ids(self, path: str, source: dict[str, str]) -> tuple[int, ...]:
        try:
            ids = GenerationConfig.from_pretrained(path, **source).eos_token_id  # type: ignore[arg-type]
        except OSError:  # not every checkpoint has one
            ids = None
        if ids is None:
            ids = self._tokenizer.eos_token_id
        if ids is None:
            return ()
        return tuple(int(one) for one in ids) if isinstance(ids, list | tuple) else (int(ids),)
