"""The order and number of an experiment's prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lem_domain.config.experiment import PromptsConfig


def select_prompts(prompts: Sequence[str], config: PromptsConfig) -> tuple[str, ...]:
    """Order the prompts and return the first `sample_size` of them.

    `longest_first` sorts by characters: token counts depend on the model, and the order must not.
    """
    ordered = list(prompts)
    if config.order == "shuffled":
        random.Random(config.seed).shuffle(ordered)
    elif config.order == "longest_first":
        ordered.sort(key=len, reverse=True)
    return tuple(ordered[: config.sample_size])
