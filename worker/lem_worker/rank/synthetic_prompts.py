"""Synthetic prompts: their lengths, and the random tokens that fill them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from lem_domain.config.experiment import InputConfig, PromptsConfig
from lem_domain.config.prompt_sources import SyntheticPrompts
from lem_worker.rank.prompts import PreparedPrompt, truncate_prompt


def synthetic_lengths(wanted: SyntheticPrompts, prompts: PromptsConfig) -> tuple[int, ...]:
    """Length in tokens of every prompt of the experiment, in the order of sending."""
    draw = random.Random(wanted.seed)
    lengths = [wanted.prompt_tokens + draw.randint(-wanted.spread, wanted.spread) for _ in range(wanted.count)]
    if prompts.order == "shuffled":
        random.Random(prompts.seed).shuffle(lengths)
    elif prompts.order == "longest_first":
        lengths.sort(reverse=True)
    return tuple(lengths[: prompts.sample_size])


def synthetic_prompts(
    lengths: Sequence[tuple[int, int]], vocabulary: Sequence[int], *, seed: int, limits: InputConfig
) -> list[PreparedPrompt]:
    """One prompt per (index, length): ids drawn uniformly from `vocabulary`, a function of seed and index alone."""
    ids = np.asarray(vocabulary, dtype=np.int64)
    drawn = (
        (index, ids[np.random.default_rng([seed, index]).integers(len(ids), size=length)]) for index, length in lengths
    )
    return [truncate_prompt(index, tokens.tolist(), limits) for index, tokens in drawn]
