"""A rank's share of the prompts as token ids, and the requests of one repetition of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from lem_domain.config.experiment import InputConfig
from lem_domain.errors import LemError

_SEED_STRIDE = 1_000_003
"""Keeps the seeds of different repetitions apart for up to a million prompts (the largest `sample_size`)."""


class PromptRefused(LemError):
    """A prompt can't be sent as it is."""


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt after tokenisation and truncation; `index` is its position in the experiment's list."""

    index: int
    token_ids: tuple[int, ...]
    max_tokens: int | None = None
    """Exact number of tokens to generate, instead of the configuration's (a probe)."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt that is sent to the engine once."""

    request_id: int
    prompt_index: int
    token_ids: tuple[int, ...]
    seed: int
    """Seed of this request's sampling; the same in every run of the experiment."""
    repetition: int = 0
    """Number of the repetition of all prompts; a prefix cache must not serve one repetition from another."""
    max_tokens: int | None = None
    """Exact number of tokens to generate, instead of the configuration's (a probe)."""


P = TypeVar("P")


def share_of(prompts: Sequence[P], rank: int, world_size: int) -> tuple[tuple[int, P], ...]:
    """Return the rank's prompts with their indices: every `world_size`-th from its own number.

    Raises:
        PromptRefused: there are fewer prompts than ranks.
    """
    share = tuple(enumerate(prompts))[rank::world_size]
    if not share:
        raise PromptRefused(
            f"rank {rank} has no prompt: there are {len(prompts)} prompts for {world_size} processes; "
            "lower the number of processes or add prompts."
        )
    return share


def truncate_prompt(index: int, token_ids: Sequence[int], limits: InputConfig) -> PreparedPrompt:
    """Truncate a prompt to `input.max_tokens`.

    Raises:
        PromptRefused: it is too long and `input.truncate` is `error`, or it has no tokens.
    """
    if not token_ids:
        raise PromptRefused(f"prompt {index} has no tokens; remove it or give it a text.")
    limit = limits.max_tokens
    if len(token_ids) <= limit:
        return PreparedPrompt(index, tuple(token_ids))
    match limits.truncate:
        case "left":
            return PreparedPrompt(index, tuple(token_ids[-limit:]))
        case "right":
            return PreparedPrompt(index, tuple(token_ids[:limit]))
        case "error":
            raise PromptRefused(
                f"prompt {index} has {len(token_ids)} tokens and input.max_tokens is {limit}; "
                "raise input.max_tokens, set input.truncate to left or right, or shorten the prompt."
            )


def synthetic_prompts(
    lengths: Sequence[tuple[int, int]], vocabulary: Sequence[int], *, seed: int, limits: InputConfig
) -> list[PreparedPrompt]:
    """One prompt per (index, length): ids drawn uniformly from `vocabulary`, a function of seed and index alone."""
    ids = np.asarray(vocabulary, dtype=np.int64)
    drawn = (
        (index, ids[np.random.default_rng([seed, index]).integers(len(ids), size=length)]) for index, length in lengths
    )
    return [truncate_prompt(index, tokens.tolist(), limits) for index, tokens in drawn]


def requests_of(prompts: Sequence[PreparedPrompt], *, repetition: int, first_id: int, seed: int) -> tuple[Request, ...]:
    """One request per prompt, numbered from `first_id`."""
    return tuple(
        Request(
            request_id=first_id + position,
            prompt_index=prompt.index,
            token_ids=prompt.token_ids,
            seed=(seed + repetition * _SEED_STRIDE + prompt.index) % 2**63,
            # Negative for a probe, so that a prefix cache can't serve it from the window.
            repetition=repetition if prompt.max_tokens is None else -1 - repetition,
            max_tokens=prompt.max_tokens,
        )
        for position, prompt in enumerate(prompts)
    )


def batches_of(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """Yield the requests in order, `size` at a time; the last batch may be smaller."""
    for begin in range(0, len(requests), size):
        yield requests[begin : begin + size]


def warmup_requests(prompts: Sequence[PreparedPrompt], *, seed: int) -> tuple[Request, ...]:
    """The requests of warm-up: each prompt with its tokens reversed.

    They have the lengths of the window, but share no prefix with a measured prompt that a cache could keep.
    """
    whole = requests_of(prompts, repetition=0, first_id=0, seed=seed)
    return tuple(replace(request, token_ids=request.token_ids[::-1]) for request in whole)


def repeated(requests: Sequence[Request], count: int) -> list[Request]:
    """`count` requests, repeated from the first after the last, renumbered."""
    endless = itertools.islice(itertools.cycle(requests), count)
    return [replace(request, request_id=number) for number, request in enumerate(endless)]


_FEW_TOKENS = 3
"""A prefill, a step on its cache, and a step on a cache that has grown; later steps are like the third."""


def with_few_tokens(batch: Sequence[Request], max_tokens: int) -> list[Request]:
    """The batch with just enough tokens to generate for one step of every kind."""
    return [replace(request, max_tokens=min(_FEW_TOKENS, max_tokens)) for request in batch]


def batch_with_most_tokens(batches_of_all: Sequence[Sequence[Request]]) -> Sequence[Request]:
    """The batch with the most tokens, padding included, so that a lack of memory shows before the window."""
    return max(batches_of_all, key=lambda batch: len(batch) * _longest(batch))


def batch_with_most_rows(batches_of_all: Sequence[Sequence[Request]]) -> Sequence[Request]:
    """The batch with the most rows, the longest of those: it shows how many rows the engine takes."""
    return max(batches_of_all, key=lambda batch: (len(batch), _longest(batch)))


def _longest(batch: Sequence[Request]) -> int:
    return max(len(request.token_ids) for request in batch)
