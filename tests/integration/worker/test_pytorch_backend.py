"""The PyTorch backend on a real, tiny model: the tokens of `generate`, honest counts, and every key in force."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic.types import JsonValue

from factories.one_rank import TEXTS, TOKENS
from factories.pytorch_run import Run, ending_at
from lem_domain.evidence.streams import PhaseName
from lem_domain.states import FailureReason
from lem_worker.backends.tokenizer import NoChatTemplate
from lem_worker.process.failures import failure_of
from lem_worker.rank.prompts import PromptRefused, batches_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def greedy(model_folder: Path) -> Run:
    return Run(model_folder, pytorch={"batch_size": 8})


# --- the tokens of generate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_greedy_tokens_are_those_of_generate(model_folder: Path, batch_size: int, attention: str) -> None:
    run = Run(model_folder, pytorch={"batch_size": batch_size, "attn_implementation": attention})
    for batch in batches_of(range(len(TEXTS)), batch_size):  # type: ignore[arg-type]
        expected = run.generated([TEXTS[index] for index in batch])  # type: ignore[call-overload]
        assert [run.outputs[index] for index in batch] == expected  # type: ignore[call-overload]


def test_padding_does_not_change_the_tokens(model_folder: Path, greedy: Run) -> None:
    assert Run(model_folder, pytorch={"batch_size": 1}).outputs == greedy.outputs


@pytest.mark.proves(
    "decoding.temperature",
    "decoding.top_k",
    "decoding.top_p",
    "decoding.min_p",
    "decoding.repetition_penalty",
    on="transformers 5.23.0",
)
@pytest.mark.parametrize(
    ("decoding", "options"),
    [
        ({"temperature": 1.0}, {}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 1.3, "top_k": 5}, {"temperature": 1.3, "top_k": 5}),
        ({"temperature": 1.0, "top_p": 0.3}, {"top_p": 0.3}),
        ({"temperature": 1.0, "min_p": 0.8}, {"min_p": 0.8}),
        ({"temperature": 0.9, "repetition_penalty": 1.7}, {"temperature": 0.9, "repetition_penalty": 1.7}),
    ],
)
def test_sampled_tokens_are_those_of_generate(
    model_folder: Path, decoding: dict[str, JsonValue], options: dict[str, Any]
) -> None:
    run = Run(model_folder, pytorch={"batch_size": 8}, decoding={**decoding, "seed": 11})
    torch.manual_seed(11)  # of the first request of the batch: experiment's seed, repetition 0, prompt 0
    expected = run.generated(do_sample=True, **{"temperature": 1.0, "top_k": 0, **options})
    assert list(run.outputs.values()) == expected
    assert run.unconfirmed == []


# --- counts and times -------------------------------------------------------------------------------------------------


def test_padding_is_never_counted(greedy: Run) -> None:
    expected = [len(greedy.live.tokenizer(text)["input_ids"]) for text in TEXTS]
    assert len(set(expected)) > 3
    assert [row["prompt_tokens"] for row in greedy.requests] == expected


@pytest.mark.proves("output.max_tokens", "output.mode", on="transformers 5.23.0")
def test_fixed_mode_gives_the_exact_number_even_past_the_end_of_sequence(
    model_folder: Path, tmp_path: Path, greedy: Run
) -> None:
    ends = sorted({row[3] for row in greedy.outputs.values()})
    run = Run(ending_at(model_folder, tmp_path / "model", ends), pytorch={"batch_size": 8})
    assert run.outputs == greedy.outputs
    assert [(row["generated_tokens"], row["finish_reason"]) for row in run.requests] == [(TOKENS, "length")] * 8
    assert len(run.tokens) == TOKENS * 8


@pytest.mark.proves("output.mode", "output.min_tokens", on="transformers 5.23.0")
@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("min_tokens", [0, 6])
def test_natural_mode_ends_each_row_at_any_end_of_sequence(
    model_folder: Path, tmp_path: Path, greedy: Run, batch_size: int, min_tokens: int
) -> None:
    ends = [greedy.outputs[0][2], greedy.outputs[3][7], greedy.outputs[5][0]]
    folder = ending_at(model_folder, tmp_path / "model", ends)
    output: JsonValue = {"mode": "natural", "max_tokens": TOKENS, "min_tokens": min_tokens}
    run = Run(folder, pytorch={"batch_size": batch_size}, output=output)
    expected = run.generated(eos_token_id=ends, min_new_tokens=min_tokens or None, pad_token_id=run.live.padding_id)
    assert list(run.outputs.values()) == expected
    for row in run.requests:
        ids = run.outputs[row["prompt_index"]]
        assert row["generated_tokens"] == len(ids) >= min_tokens
        assert row["finish_reason"] == ("stop" if ids[-1] in ends else "length")
        assert not set(ids[:-1]) & set(ends)
    assert len(run.tokens) == sum(len(ids) for ids in run.outputs.values())
    assert "stop" in {row["finish_reason"] for row in run.requests}
    assert run.effective["output.mode"] == "natural"


def test_natural_mode_of_a_model_without_an_end_is_not_confirmed(model_folder: Path, tmp_path: Path) -> None:
    folder = ending_at(model_folder, tmp_path / "model", [])
    run = Run(folder, TEXTS[:1], output={"mode": "natural", "max_tokens": 2})
    assert run.unconfirmed == ["output.mode"]


def test_token_times_are_strictly_ordered_and_shared_within_a_batch(greedy: Run) -> None:
    by_request: dict[int, list[int]] = {}
    for row in greedy.tokens:
        by_request.setdefault(int(row["request_id"]), []).append(int(row["time_ns"]))
    assert len(by_request) == 8
    for times in by_request.values():
        assert len(times) == TOKENS
        assert all(later > earlier for earlier, later in itertools.pairwise(times))
        assert times == by_request[0]
    for row in greedy.requests:
        assert row["arrival_ns"] <= row["scheduled_ns"] < row["first_token_ns"] < row["last_token_ns"]


# --- every key takes effect -------------------------------------------------------------------------------------------


@pytest.mark.proves("precision", on="transformers 5.23.0")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_precision(model_folder: Path, precision: str) -> None:
    run = Run(model_folder, TEXTS[:2], precision=precision)
    assert {parameter.dtype for parameter in run.live.model.parameters()} == {getattr(torch, precision)}
    assert run.effective["precision"] == precision


def test_auto_precision_is_the_checkpoints_own(model_folder: Path) -> None:
    checkpoint = json.loads((model_folder / "config.json").read_text())
    run = Run(model_folder, TEXTS[:1], precision="auto")
    assert run.effective["precision"] == checkpoint.get("dtype", checkpoint.get("torch_dtype"))
    assert run.unconfirmed == []


@pytest.mark.proves("model.weights", on="transformers 5.23.0")
def test_dummy_weights_need_no_checkpoint_and_are_the_same_every_time(
    model_folder: Path, tmp_path: Path, greedy: Run
) -> None:
    shape = tmp_path / "shape"
    shutil.copytree(model_folder, shape, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    model: JsonValue = {"id": "tiny", "weights": "dummy"}
    first, second = (Run(shape, model=model, pytorch={"batch_size": 8}) for _ in range(2))
    assert first.outputs == second.outputs != greedy.outputs
    assert first.effective["model.weights"] == "dummy"
    assert first.unconfirmed == []


@pytest.mark.proves("pytorch.attn_implementation", on="transformers 5.23.0")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention(model_folder: Path, attention: str) -> None:
    run = Run(model_folder, TEXTS[:1], pytorch={"attn_implementation": attention})
    assert run.effective["pytorch.attn_implementation"] == attention
    assert run.unconfirmed == []


@pytest.mark.proves("pytorch.num_threads", on="transformers 5.23.0")
def test_threads(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = Run(model_folder, TEXTS[:1], pytorch={"num_threads": 2})
    assert torch.get_num_threads() == 2
    assert run.effective["pytorch.num_threads"] == 2


@pytest.mark.proves("pytorch.batch_size", on="transformers 5.23.0")
def test_batch_size(model_folder: Path) -> None:
    run = Run(model_folder, pytorch={"batch_size": 3})
    assert [row["batch_id"] for row in run.requests] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert run.effective["pytorch.batch_size"] == 3
    assert run.unconfirmed == []


def test_a_batch_that_can_not_be_filled_is_not_confirmed(model_folder: Path) -> None:
    run = Run(model_folder, TEXTS[:2], pytorch={"batch_size": 4})
    assert run.effective["pytorch.batch_size"] == 2
    assert run.unconfirmed == ["pytorch.batch_size"]


@pytest.mark.proves(
    "decoding.top_k",
    "decoding.top_p",
    "decoding.min_p",
    "decoding.temperature",
    "decoding.seed",
    on="transformers 5.23.0",
)
@pytest.mark.parametrize(
    "key",
    [
        {"top_k": 2},
        {"top_p": 0.2},
        {"min_p": 0.9},
        {"temperature": 0.05},
        {"seed": 4},
    ],
)
def test_every_decoding_key_changes_the_tokens(model_folder: Path, key: dict[str, JsonValue]) -> None:
    base: dict[str, JsonValue] = {"temperature": 1.0, "seed": 3}
    plain, again = (Run(model_folder, pytorch={"batch_size": 8}, decoding=base) for _ in range(2))
    changed = Run(model_folder, pytorch={"batch_size": 8}, decoding={**base, **key})
    assert plain.outputs == again.outputs != changed.outputs
    for name, value in key.items():
        if name != "seed":
            assert changed.effective[f"decoding.{name}"] == value
    assert changed.unconfirmed == []


@pytest.mark.parametrize("key", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_sampling_from_one_token_is_greedy(model_folder: Path, greedy: Run, key: dict[str, JsonValue]) -> None:
    decoding: JsonValue = {"temperature": 1.0, **key}
    assert Run(model_folder, pytorch={"batch_size": 8}, decoding=decoding).outputs == greedy.outputs


@pytest.mark.proves("decoding.repetition_penalty", on="transformers 5.23.0")
def test_repetition_penalty_works_under_greedy_decoding(model_folder: Path, greedy: Run) -> None:
    run = Run(model_folder, pytorch={"batch_size": 8}, decoding={"repetition_penalty": 3.0})
    assert list(run.outputs.values()) == run.generated(repetition_penalty=3.0)
    assert run.outputs != greedy.outputs
    assert run.effective["decoding.repetition_penalty"] == 3.0


@pytest.mark.proves("input.max_tokens", "input.truncate", on="transformers 5.23.0")
@pytest.mark.parametrize(("truncate", "part"), [("left", slice(-4, None)), ("right", slice(None, 4))])
def test_truncation(model_folder: Path, greedy: Run, truncate: str, part: slice) -> None:
    run = Run(model_folder, input={"max_tokens": 4, "truncate": truncate})
    assert run.prompts[3].token_ids == greedy.prompts[3].token_ids[part]
    assert max(row["prompt_tokens"] for row in run.requests) == 4


@pytest.mark.proves("input.max_tokens", "input.truncate", on="transformers 5.23.0")
def test_a_prompt_above_the_limit_is_refused_with_its_numbers(model_folder: Path, greedy: Run) -> None:
    count = len(greedy.prompts[3].token_ids)
    with pytest.raises(PromptRefused, match=rf"prompt 3 has {count} tokens and input.max_tokens is {count - 1}; raise"):
        Run(model_folder, input={"max_tokens": count - 1})


def test_prompt_and_answer_above_the_context_are_refused(model_folder: Path) -> None:
    with pytest.raises(PromptRefused, match=r"above the model's context of \d+; lower output.max_tokens"):
        Run(model_folder, TEXTS[:1], output={"max_tokens": 100_000})


@pytest.mark.proves("prompts.chat_template", on="transformers 5.23.0")
def test_chat_template(model_folder: Path, tmp_path: Path, greedy: Run) -> None:
    run = Run(model_folder, TEXTS[:1], prompts={"chat_template": True})
    text = run.live.tokenizer.decode(run.prompts[0].token_ids)
    assert TEXTS[0] in text
    assert len(run.prompts[0].token_ids) > len(greedy.prompts[0].token_ids)
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare, ignore=shutil.ignore_patterns("chat_template*"))
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(NoChatTemplate, match=r"has no chat template; set prompts\.chat_template to false"):
        Run(bare, TEXTS[:1], prompts={"chat_template": True})


def test_a_revision_of_a_local_folder_is_not_confirmed(model_folder: Path) -> None:
    run = Run(model_folder, TEXTS[:1], model={"id": "tiny", "revision": "some-branch"})
    assert run.unconfirmed == ["model.revision"]


def test_text_has_no_special_tokens(greedy: Run) -> None:
    ids = [greedy.live.tokenizer.eos_token_id, *greedy.prompts[0].token_ids, greedy.live.padding_id]
    assert greedy.backend.text(ids) == TEXTS[0]


def test_a_lack_of_memory_is_distinguished_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as allocation:
        torch.empty(2**46, dtype=torch.uint8)
    for error in (allocation.value, torch.OutOfMemoryError("CUDA out of memory.")):
        assert failure_of(error, PhaseName.MEASURE).reason is FailureReason.OUT_OF_MEMORY
    assert failure_of(RuntimeError("mat1 and mat2"), PhaseName.WARMUP).reason is FailureReason.INFERENCE
    assert failure_of(RuntimeError("mat1 and mat2"), PhaseName.LOAD).reason is FailureReason.BACKEND_INITIALISATION
