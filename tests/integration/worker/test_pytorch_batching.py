"""Batching, caches and speculation change how tokens are made and never which: greedy ids in float32 stay the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from pydantic.types import JsonValue

from factories.one_rank import TEXTS, TOKENS
from factories.pytorch_run import Run, ending_at
from lem_worker.rank.prompts import PromptRefused

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def alone(model_folder: Path) -> Run:
    """Each prompt by itself: nothing is padded."""
    return Run(model_folder)


def lengths(run: Run) -> list[list[int]]:
    """Prompt tokens of the rows of each batch, in the order of sending."""
    tokens = {prompt.index: len(prompt.token_ids) for prompt in run.prompts}
    groups = itertools.groupby(run.requests, key=lambda row: row["batch_id"])
    return [[tokens[row["prompt_index"]] for row in rows] for _, rows in groups]


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 3},
        {"batch_size": 8},
        {"batching": "length_sorted", "batch_size": 3},
        {"batching": "dynamic", "max_tokens_per_batch": 90},
        {"cache_implementation": "dynamic", "batch_size": 4},
        {"cache_implementation": "static", "batch_size": 4},
        {
            "cache_implementation": "static",
            "batching": "length_sorted",
            "batch_size": 3,
            "attn_implementation": "eager",
        },
        {"use_cache": False, "batch_size": 4},
        {"prompt_lookup_tokens": 3},
    ],
)
def test_tokens_and_their_count_are_the_same_however_they_are_made(
    model_folder: Path, alone: Run, settings: dict[str, JsonValue]
) -> None:
    run = Run(model_folder, pytorch=settings)
    assert run.outputs == alone.outputs
    assert run.unconfirmed == []
    assert sorted(row["prompt_index"] for row in run.requests) == list(range(len(TEXTS)))
    assert [row["generated_tokens"] for row in run.requests] == [TOKENS] * len(TEXTS)
    assert len(run.tokens) == TOKENS * len(TEXTS)


@pytest.mark.proves("pytorch.batching", on="transformers 5.23.0")
def test_sorted_by_length_rows_of_like_length_share_a_batch(model_folder: Path, alone: Run) -> None:
    run = Run(model_folder, pytorch={"batching": "length_sorted", "batch_size": 3})
    sent = [length for batch in lengths(run) for length in batch]
    assert sent == sorted((len(prompt.token_ids) for prompt in alone.prompts), reverse=True)
    assert [len(batch) for batch in lengths(run)] == [3, 3, 2]
    assert _padding(run) < _padding(Run(model_folder, pytorch={"batch_size": 3}))
    assert run.effective["pytorch.batching"] == "length_sorted"


@pytest.mark.proves("pytorch.batching", "pytorch.max_tokens_per_batch", on="transformers 5.23.0")
@pytest.mark.parametrize("limit", [41, 90, 10_000])
def test_dynamic_batches_are_as_large_as_the_limit_on_tokens_allows(model_folder: Path, limit: int) -> None:
    run = Run(model_folder, pytorch={"batching": "dynamic", "max_tokens_per_batch": limit})
    batches = lengths(run)
    for batch in batches:
        assert len(batch) * (max(batch) + TOKENS) <= limit
    for batch, following in itertools.pairwise(batches):
        assert (len(batch) + 1) * (max(*batch, following[0]) + TOKENS) > limit
    assert [row["prompt_index"] for row in run.requests] == list(range(len(TEXTS)))
    assert run.effective["pytorch.max_tokens_per_batch"] == limit
    assert run.unconfirmed == []


@pytest.mark.proves("pytorch.batch_size", on="transformers 5.23.0")
def test_a_batch_size_bounds_dynamic_batches(model_folder: Path) -> None:
    run = Run(model_folder, pytorch={"batching": "dynamic", "max_tokens_per_batch": 10_000, "batch_size": 5})
    assert [len(batch) for batch in lengths(run)] == [5, 3]
    assert run.effective["pytorch.batch_size"] == 5
    assert run.unconfirmed == []


def test_a_prompt_that_no_dynamic_batch_can_hold_is_refused(model_folder: Path) -> None:
    with pytest.raises(PromptRefused, match=r"prompt 0 has \d+ tokens .* above pytorch.max_tokens_per_batch 13; raise"):
        Run(model_folder, pytorch={"batching": "dynamic", "max_tokens_per_batch": 13})


def _padding(run: Run) -> int:
    return sum(max(batch) - length for batch in lengths(run) for length in batch)


# --- caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.proves("pytorch.use_cache", on="transformers 5.23.0")
@pytest.mark.parametrize("use_cache", [True, False])
def test_without_a_cache_every_step_computes_the_whole_sequence(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, use_cache: bool
) -> None:
    run = Run(model_folder, TEXTS[:1], pytorch={"use_cache": use_cache})
    seen: list[int] = []
    with run.watching(lambda arguments: seen.append(arguments["input_ids"].shape[1])):
        run.once_more()
    prompt = len(run.prompts[0].token_ids)
    assert seen == ([prompt] + [1] * (TOKENS - 1) if use_cache else list(range(prompt, prompt + TOKENS)))
    assert run.effective["pytorch.use_cache"] is use_cache
    assert run.unconfirmed == []


@pytest.mark.proves("pytorch.cache_implementation", on="transformers 5.23.0")
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_cache_grows_with_the_sequence_or_is_there_at_once(model_folder: Path, kind: str) -> None:
    run = Run(model_folder, TEXTS[:1], pytorch={"cache_implementation": kind})
    sizes: list[int] = []
    with run.watching(lambda arguments: sizes.append(_room(arguments["past_key_values"]))):
        run.once_more()
    prompt = len(run.prompts[0].token_ids)
    whole = prompt + TOKENS
    assert sizes[1:] == ([whole] * (TOKENS - 1) if kind == "static" else list(range(prompt, whole - 1)))
    assert run.effective["pytorch.cache_implementation"] == kind


def _room(cache: object) -> int:
    keys = cache.layers[0].keys  # type: ignore[attr-defined]
    return 0 if keys is None else int(keys.shape[-2])


# --- speculation ------------------------------------------------------------------------------------------------------

REPEATING = ("one two three four one two three four one two three four one two three",)


@pytest.mark.proves("pytorch.prompt_lookup_tokens", on="transformers 5.23.0")
def test_prompt_lookup_accepts_what_repeats_and_changes_no_token(model_folder: Path) -> None:
    output: JsonValue = {"max_tokens": 120}
    plain = Run(model_folder, REPEATING, output=output)
    run = Run(model_folder, REPEATING, output=output, pytorch={"prompt_lookup_tokens": 4})
    assert run.outputs == plain.outputs
    assert len(run.tokens) == 120
    counts = run.facts["speculation"]
    assert isinstance(counts, dict)
    steps, drafted, accepted = (counts[key] for key in ("steps", "drafted_tokens", "accepted_tokens"))
    assert isinstance(steps, int)
    assert isinstance(drafted, int)
    assert isinstance(accepted, int)
    assert steps + accepted == 120
    assert 0 < accepted <= drafted
    times = [row["time_ns"] for row in run.tokens]
    assert len(set(times)) == steps  # tokens that were accepted in one step came at one time
    assert max(len(list(same)) for _, same in itertools.groupby(times)) <= 4 + 1
    assert run.effective["pytorch.prompt_lookup_tokens"] == 4
    assert run.unconfirmed == []


@pytest.mark.proves("pytorch.assisted_decoding.model", "pytorch.assisted_decoding.num_tokens", on="transformers 5.23.0")
@pytest.mark.parametrize("num_tokens", [2, 4])
def test_a_perfect_assistant_has_all_its_tokens_accepted(model_folder: Path, alone: Run, num_tokens: int) -> None:
    run = Run(
        model_folder,
        assistant=model_folder,
        pytorch={"assisted_decoding": {"model": "builtin:tiny-llama", "num_tokens": num_tokens}},
    )
    assert run.outputs == alone.outputs
    steps = -(-TOKENS // (num_tokens + 1)) * len(TEXTS)
    counts = run.facts["speculation"]
    assert isinstance(counts, dict)
    assert counts["steps"] == steps
    assert counts["accepted_tokens"] == TOKENS * len(TEXTS) - steps
    assert run.effective["pytorch.assisted_decoding.model"] == "builtin:tiny-llama"
    assert run.effective["pytorch.assisted_decoding.num_tokens"] == num_tokens
    assert run.unconfirmed == []


def test_speculation_samples_the_same_for_the_same_seed(model_folder: Path) -> None:
    decoding: Any = {"temperature": 1.0, "seed": 3, "top_k": 50}
    first, second, other = (
        Run(model_folder, TEXTS[:2], decoding=one, pytorch={"prompt_lookup_tokens": 2})
        for one in (decoding, decoding, {"temperature": 1.0, "seed": 4, "top_k": 50})
    )
    assert first.outputs == second.outputs != other.outputs
    assert first.effective["decoding.top_k"] == 50
    assert first.unconfirmed == []


def test_speculation_ends_at_the_end_of_sequence(model_folder: Path, alone: Run, tmp_path: Path) -> None:
    ends = [alone.outputs[0][2], alone.outputs[3][7]]
    folder = ending_at(model_folder, tmp_path / "model", ends)
    output: JsonValue = {"mode": "natural", "max_tokens": TOKENS}
    plain = Run(folder, output=output)
    run = Run(folder, output=output, assistant=folder, pytorch={"assisted_decoding": {"model": "m", "num_tokens": 3}})
    assert run.outputs == plain.outputs
    reasons = ("generated_tokens", "finish_reason")
    assert [[row[key] for key in reasons] for row in run.requests] == [
        [row[key] for key in reasons] for row in plain.requests
    ]
    assert "stop" in {row["finish_reason"] for row in run.requests}
