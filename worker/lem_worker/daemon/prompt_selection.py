"""Which prompts an experiment sends, and in which order: pure."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lem_domain.config.experiment import PromptsConfig


def select_prompts(prompts: Sequence[str], config: PromptsConfig) -> tuple[str, ...]:
    """The first `sample_size` prompts after ordering.

    `longest_first` goes by characters: tokens depend on the model, and the order must not.
    """
    ordered = list(prompts)
    if config.order == "shuffled":
        random.Random(config.seed).shuffle(ordered)
    elif config.order == "longest_first":
        ordered.sort(key=len, reverse=True)
    return tuple(ordered[: config.sample_size])
