"""Prompts made to a length."""

from __future__ import annotations

from lem_domain.config.experiment import InputConfig, PromptsConfig
from lem_domain.config.prompt_sources import SyntheticPrompts
from lem_worker.rank.prompt_share import synthetic_lengths
from lem_worker.rank.prompts import synthetic_prompts

WANTED = SyntheticPrompts(prompt_tokens=40, spread=15, count=200, seed=3)
LIMITS = InputConfig()


def test_lengths_lie_evenly_around_what_was_asked_for_and_repeat() -> None:
    lengths = synthetic_lengths(WANTED, PromptsConfig())
    assert (min(lengths), max(lengths), len(lengths)) == (25, 55, 200)
    assert lengths == synthetic_lengths(WANTED, PromptsConfig())
    assert lengths != synthetic_lengths(WANTED.model_copy(update={"seed": 4}), PromptsConfig())


def test_lengths_keep_to_the_order_and_the_sample() -> None:
    as_is = synthetic_lengths(WANTED, PromptsConfig())
    assert synthetic_lengths(WANTED, PromptsConfig(order="longest_first")) == tuple(sorted(as_is, reverse=True))
    shuffled = synthetic_lengths(WANTED, PromptsConfig(order="shuffled", seed=1))
    assert shuffled != as_is
    assert sorted(shuffled) == sorted(as_is)
    assert synthetic_lengths(WANTED, PromptsConfig(sample_size=3)) == as_is[:3]


def test_prompts_are_exactly_as_long_and_of_the_vocabulary() -> None:
    vocabulary = [5, 7, 1000]
    prompts = synthetic_prompts([(0, 40), (2, 3)], vocabulary, seed=1, limits=LIMITS)
    assert [(prompt.index, len(prompt.token_ids)) for prompt in prompts] == [(0, 40), (2, 3)]
    assert {token for prompt in prompts for token in prompt.token_ids} <= set(vocabulary)
    assert prompts == synthetic_prompts([(0, 40), (2, 3)], vocabulary, seed=1, limits=LIMITS)
    assert prompts != synthetic_prompts([(0, 40), (2, 3)], vocabulary, seed=2, limits=LIMITS)


def test_a_prompt_does_not_depend_on_the_others() -> None:
    vocabulary = range(100)
    together = synthetic_prompts([(0, 4), (1, 5)], vocabulary, seed=1, limits=LIMITS)
    assert synthetic_prompts([(1, 5)], vocabulary, seed=1, limits=LIMITS) == together[1:]
