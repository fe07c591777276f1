"""The checkpoint's tokenizer and description, for an engine that takes and returns token ids only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.types import JsonValue
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from lem_worker.backends import tokenizer as tokenizers
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import PreparedPrompt


class Tokens:
    """Converts a model's texts to token ids and back."""

    def __init__(self, job: RankJob) -> None:
        source = {} if job.config.model.revision is None else {"revision": job.config.model.revision}
        self._folder = Path(job.model_path)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(job.model_path, **source)
        self._config: Any = AutoConfig.from_pretrained(job.model_path, **source)
        self.end_ids = tokenizers.end_ids(_generation_config(job.model_path, source), self._tokenizer)
        """Every token that ends a sequence."""
        self.padding_id = tokenizers.padding_id(self._tokenizer, self.end_ids)

    @property
    def vocabulary(self) -> int:
        """Number of tokens of the model."""
        return int(self._config.get_text_config().vocab_size)

    def ordinary_ids(self) -> list[int]:
        """Every token that is text."""
        return tokenizers.ordinary_ids(self._tokenizer, self.vocabulary)

    def ids(self, text: str, *, chat_template: bool) -> list[int]:
        """Tokenise, as `lem_worker.backends.tokenizer.token_ids` does."""
        return tokenizers.token_ids(self._tokenizer, text, chat_template=chat_template)

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode without special tokens."""
        return tokenizers.text_of(self._tokenizer, token_ids)

    def check_context(self, prompt: PreparedPrompt, max_tokens: int, *, longest: int | None) -> None:
        """Raise PromptRefused when prompt and answer are longer than the model's positions or `longest`."""
        context = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        tokenizers.check_context(prompt, max_tokens, context)
        tokenizers.check_context(prompt, max_tokens, longest, "tensorrt.max_seq_len")

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint's weights are quantised."""
        described = getattr(self._config, "quantization_config", None) is not None
        return described or (self._folder / "hf_quant_config.json").exists()  # the format of TensorRT's own tools

    def model_facts(self) -> dict[str, JsonValue]:
        """Sizes for the estimate of the model's work, from its description alone; loads no weights."""
        # Imported here, because the rank needs torch only for this; the engine loads it in its own processes.
        import torch  # noqa: PLC0415
        from transformers import AutoModelForCausalLM  # noqa: PLC0415

        from lem_worker.backends.model_facts import model_facts  # noqa: PLC0415

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self._config)  # type: ignore[no-untyped-call]
        return model_facts(model)


def _generation_config(path: str, source: dict[str, str]) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(path, **source)  # type: ignore[arg-type]
    except OSError:  # not every checkpoint has one
        return None
