"""What backends do with a transformers tokenizer, the same in each, so that every engine gets the same tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.errors import LemError
from lem_worker.backends.protocol import loaded
from lem_worker.process.protocol import RankJob
from lem_worker.rank.prompts import PreparedPrompt, PromptRefused, synthetic_prompts, truncate_prompt


class NoChatTemplate(LemError):
    """`prompts.chat_template` is set and the tokenizer has no template."""


class ModelTokens(ABC):
    """The tokenizer of a model, its special tokens, and the limits of its context by the names for messages."""

    def __init__(self, tokenizer: Any, contexts: Mapping[str, int | None], generation: Any = None) -> None:
        self.tokenizer: Any = tokenizer
        self._contexts = contexts
        self._generation = generation

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """Number of tokens of the model."""

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Every token that ends a sequence: those of the checkpoint's generation settings, else the tokenizer's."""
        ids = None if self._generation is None else self._generation.eos_token_id
        if ids is None:
            ids = self.tokenizer.eos_token_id
        if ids is None:
            return ()
        return tuple(int(one) for one in ids) if isinstance(ids, list | tuple) else (int(ids),)

    @property
    def padding_id(self) -> int:
        """The token that fills padded rows; it is masked, so any token works where the tokenizer has none."""
        padding = self.tokenizer.pad_token_id
        return int(padding) if padding is not None else (self.end_ids or (0,))[0]

    def token_ids(self, text: str, *, chat_template: bool) -> list[int]:
        """Tokenise with the tokenizer's own special tokens, or in the chat template as a user's turn.

        Raises:
            NoChatTemplate: the tokenizer has none.
        """
        if not chat_template:
            return list(self.tokenizer(text)["input_ids"])
        if not self.tokenizer.chat_template:
            raise NoChatTemplate(
                "the model's tokenizer has no chat template; set prompts.chat_template to false or use a chat model."
            )
        turn = [{"role": "user", "content": text}]
        return list(self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def ordinary_ids(self) -> list[int]:
        """The ids that are text, in order: without special and added tokens, and without ids beyond the vocabulary."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        ids = sorted(self.tokenizer.get_vocab().values())
        return [token for token in ids if token < self.vocabulary and token not in special]

    def check_context(self, prompt: PreparedPrompt, max_tokens: int) -> None:
        """Check a prompt and its answer against the limits.

        Raises:
            PromptRefused: they are longer.
        """
        for name, longest in self._contexts.items():
            if longest is not None and len(prompt.token_ids) + max_tokens > longest:
                raise PromptRefused(
                    f"prompt {prompt.index} has {len(prompt.token_ids)} tokens and output.max_tokens is {max_tokens}, "
                    f"together above {name} of {longest}; lower output.max_tokens or input.max_tokens."
                )


class TokenizingBackend(ABC):
    """The methods of a backend that only need its tokenizer."""

    _job: RankJob | None = None

    @property
    @abstractmethod
    def _tokens(self) -> ModelTokens: ...

    @property
    def _config(self) -> ExperimentConfig:
        return loaded(self._job).config

    def prepare(self, prompts: Sequence[tuple[int, str]]) -> list[PreparedPrompt]:
        """Tokenise and truncate; prompt and answer must fit into the context."""
        config, template = self._config, self._config.prompts.chat_template
        return self._within_context(
            truncate_prompt(index, self._tokens.token_ids(text, chat_template=template), config.input)
            for index, text in prompts
        )

    def synthesise(self, lengths: Sequence[tuple[int, int]], seed: int) -> list[PreparedPrompt]:
        """Prompts of ids that are text, within the context."""
        vocabulary = self._tokens.ordinary_ids()
        return self._within_context(synthetic_prompts(lengths, vocabulary, seed=seed, limits=self._config.input))

    def text(self, token_ids: Sequence[int]) -> str:
        """Decode without special tokens."""
        return self._tokens.text(token_ids)

    def _within_context(self, prompts: Iterable[PreparedPrompt]) -> list[PreparedPrompt]:
        prepared = list(prompts)
        for prompt in prepared:
            self._tokens.check_context(prompt, self._config.output.max_tokens)
        return prepared
