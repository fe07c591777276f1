"""Which prompts are sent, from where, and in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_domain.config.experiment import ExperimentConfig, PromptsConfig
from lem_domain.prompt_sets import Prompt
from lem_domain.wire.datasets import DatasetContent
from lem_worker.daemon import preparation
from lem_worker.process.prompt_selection import select_prompts

PROMPTS = ("bb", "a", "dddd", "ccc", "ee")


def select(**config: Any) -> tuple[str, ...]:
    return select_prompts(PROMPTS, PromptsConfig(**config), len)


def test_prompts_are_sent_as_they_are_unless_asked_otherwise() -> None:
    assert select() == PROMPTS


@pytest.mark.proves("prompts.order", on="worker")
def test_longest_first_goes_by_characters_and_keeps_the_order_of_equals() -> None:
    assert select(order="longest_first") == ("dddd", "ccc", "bb", "ee", "a")


@pytest.mark.proves("prompts.sample_size", on="worker")
def test_a_sample_is_taken_after_ordering() -> None:
    assert select(order="longest_first", sample_size=2) == ("dddd", "ccc")
    assert select(sample_size=2) == ("bb", "a")


def test_a_sample_beyond_the_set_is_the_set() -> None:
    assert select(sample_size=99) == PROMPTS


@pytest.mark.proves("prompts.order", "prompts.seed", on="worker")
def test_a_shuffle_is_what_its_seed_says() -> None:
    """Pinned: the same seed gives the same order in every version, or results of one configuration differ."""
    assert select(order="shuffled", seed=1) == select(order="shuffled", seed=1)
    assert select(order="shuffled", seed=1) == ("dddd", "ccc", "ee", "bb", "a")
    assert select(order="shuffled", seed=2) != select(order="shuffled", seed=1)


@given(
    st.lists(st.text(max_size=5), max_size=30),
    st.sampled_from(["as_is", "shuffled", "longest_first"]),
    st.integers(0, 1000),
)
def test_ordering_neither_loses_nor_repeats_a_prompt(prompts: list[str], order: Any, seed: int) -> None:
    chosen = select_prompts(prompts, PromptsConfig(order=order, seed=seed), len)
    assert sorted(chosen) == sorted(prompts)


@pytest.mark.anyio
@pytest.mark.proves("prompts.builtin", "prompts.dataset", on="worker")
async def test_prompts_come_from_the_named_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Api:
        async def dataset(self, sha256: str) -> DatasetContent:
            return DatasetContent(name="mine", sha256=sha256, builtin=False, prompts=1, texts=(f"of {sha256}",))

    def builtin(name: str) -> list[Prompt]:
        return [Prompt(id="one", kind="question", text=f"of {name}")]

    async def prompts(**config: str) -> tuple[str, ...]:
        experiment = ExperimentConfig.model_validate({"backend": "simulated", "model": "m", "prompts": config})
        made = await preparation.prepare(experiment, Api(), attempt_id="a", cache_dir=tmp_path)  # type: ignore[arg-type]
        return made.prompts

    monkeypatch.setattr(preparation, "load_builtin_prompts", builtin)
    assert await prompts(builtin="some-set") == ("of some-set",)
    assert await prompts(dataset="ab" * 32) == (f"of {'ab' * 32}",)
    assert await prompts() == ("of general-v1",)
