"""Operations on a transformers tokenizer that backends share, so that every engine gets the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lem_domain.errors import LemError
from lem_worker.rank.prompts import PreparedPrompt, PromptRefused


class NoChatTemplate(LemError):
    """`prompts.chat_template` is set and the tokenizer has no template."""


def token_ids(tokenizer: Any, text: str, *, chat_template: bool) -> list[int]:
    """Tokenise with the tokenizer's own special tokens, or in the chat template as a user's turn.

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
    """Decode without special tokens."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def ordinary_ids(tokenizer: Any, vocabulary: int) -> list[int]:
    """The ids of a transformers tokenizer that are text, in order.

    Special and added tokens are left out, and so are ids beyond the model's `vocabulary` size.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return [token for token in sorted(tokenizer.get_vocab().values()) if token < vocabulary and token not in special]


def end_ids(generation: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends a sequence: those of the checkpoint's generation settings, else the tokenizer's."""
    ids = None if generation is None else generation.eos_token_id
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return ()
    return tuple(int(one) for one in ids) if isinstance(ids, list | tuple) else (int(ids),)


def padding_id(tokenizer: Any, ends: Sequence[int]) -> int:
    """The token that fills padded rows; it is masked, so any token works where the tokenizer has none."""
    padding = tokenizer.pad_token_id
    return int(padding) if padding is not None else (ends or (0,))[0]


def check_context(
    prompt: PreparedPrompt, max_tokens: int, longest: int | None, name: str = "the model's context"
) -> None:
    """Check a prompt and its answer against the limit `longest`, which messages call `name`.

    Raises:
        PromptRefused: they are longer.
    """
    if longest is not None and len(prompt.token_ids) + max_tokens > longest:
        raise PromptRefused(
            f"prompt {prompt.index} has {len(prompt.token_ids)} tokens and output.max_tokens is {max_tokens}, "
            f"together above {name} of {longest}; lower output.max_tokens or input.max_tokens."
        )
