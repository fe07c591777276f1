"""The order and number of an experiment's prompts, given as texts or as lengths of synthetic ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from lem_domain.config.experiment import PromptsConfig

P = TypeVar("P")


def select_prompts(prompts: Sequence[P], config: PromptsConfig, length: Callable[[P], int]) -> tuple[P, ...]:
    """Order the prompts and return the first `sample_size` of them.

    `longest_first` sorts by `length`: for texts their characters, because token counts depend on the model and the
    order must not.
    """
    ordered = list(prompts)
    if config.order == "shuffled":
        random.Random(config.seed).shuffle(ordered)
    elif config.order == "longest_first":
        ordered.sort(key=length, reverse=True)
    return tuple(ordered[: config.sample_size])
