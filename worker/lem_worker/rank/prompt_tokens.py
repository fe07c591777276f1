"""A prompt's tokens by a tokenizer of transformers: the same for every engine that uses one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lem_domain.errors import LemError
from lem_worker.rank.prompts import PreparedPrompt, PromptRefused


class NoChatTemplate(LemError):
    """The tokenizer can't wrap a prompt."""


def token_ids(tokenizer: Any, text: str, *, chat_template: bool) -> list[int]:
    """With the tokenizer's own special tokens, or in the chat template as a user's turn.

    Raises:
        NoChatTemplate: the tokenizer has none.
    """
    if not chat_template:
        return list(tokenizer(text)["input_ids"])
    if not tokenizer.chat_template:
        raise NoChatTemplate(
            "the model's tokenizer has no chat template; set prompts.chat_template to false or use a chat model."
        )
    turn = [{"role": "user", "content": text}]
    return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False))


def text_of(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Without special tokens."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def check_context(prompt: PreparedPrompt, max_tokens: int, context: int) -> None:
    """Raises PromptRefused when prompt and answer together are longer than `context`."""
    if len(prompt.token_ids) + max_tokens > context:
        raise PromptRefused(
            f"prompt {prompt.index} has {len(prompt.token_ids)} tokens and output.max_tokens is {max_tokens}, "
            f"together above the model's context of {context}; lower output.max_tokens or input.max_tokens."
        )
