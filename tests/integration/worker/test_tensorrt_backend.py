"""The TensorRT-LLM backend in its real rank, on a fake engine with the published signatures: what a user asks for
arrives there, is read back, and every token is recorded. The real engine has not been there (see docs/backends.md)."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from factories.tensorrt_ranks import FAKES, GPU, SECOND, Stage, gpu_line
from fakes.nvml.library import SimulatedNvml, built
from lem_domain.evidence.codec import decode_chunk
from lem_domain.evidence.streams import PhaseName, StreamName
from lem_domain.states import FailureReason
from lem_domain.wire.runs import EffectiveParameter
from lem_worker.backends.tensorrt import devices as tensorrt_devices
from lem_worker.backends.tensorrt.backend import TensorrtBackend
from lem_worker.process.failures import OptionRefused, failure_of
from lem_worker.process.protocol import Done, Failed, Finish, Go, Loaded, Measured, PhaseEdge, Ready, WarmUp
from lem_worker.process.spool import sealed_chunks
from lem_worker.rank.prompts import warmup_requests

MODULE = "lem_worker.rank.main"
Drive = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Path:
    return tiny_llama


@pytest.fixture
def stage(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, model: Path) -> Stage:
    nvml = SimulatedNvml(built(tmp_path_factory.getbasetemp().parent), tmp_path / "nvml.state")
    return Stage(tmp_path, model, nvml)


@pytest.fixture
def rank(stage: Stage, drive: Drive) -> Callable[..., Any]:
    """A rank with this configuration; `uuids` are the leased GPUs."""

    def start(*, uuids: tuple[str, ...] = (GPU,), **config: Any) -> Any:
        return drive(MODULE, stage.job(uuids=uuids, **config), **stage.environment(*uuids))

    return start


class Live:
    """Engines that are loaded in this process: what is only about their arguments needs no rank."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stage = stage
        self._monkeypatch = monkeypatch
        self._backends: list[TensorrtBackend] = []

    def load(self, *, uuids: tuple[str, ...] = (GPU,), **config: Any) -> tuple[EffectiveParameter, ...]:
        """What the backend reads back."""
        for name, value in self._stage.variables(*uuids).items():
            self._monkeypatch.setenv(name, value)
        job = self._stage.job(uuids=uuids, **config)
        backend = TensorrtBackend()
        self._backends.append(backend)
        backend.load(job)
        prompts = backend.prepare(list(enumerate(job.prompts)))
        return backend.effective_config(warmup_requests(prompts, seed=0)[:2]).parameters

    def __call__(self, **config: Any) -> dict[str, Any]:
        """What it read back: name to (requested, effective); nothing differs."""
        parameters = self.load(**config)
        assert [one for one in parameters if not one.confirmed] == []
        return {one.name: (one.requested, one.effective) for one in parameters}

    def close(self) -> None:
        for backend in self._backends:
            backend.unload()


def forget_the_fake() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
        del sys.modules[name]


@pytest.fixture
def live(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """The backend in this process, with the fake engine in reach and GPUs that are new enough."""
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.setattr(tensorrt_devices, "_capability", lambda _: (9, 0))
    forget_the_fake()
    made = Live(stage, monkeypatch)
    yield made
    made.close()
    forget_the_fake()


def loaded(process: Any) -> dict[str, Any]:
    """What it read back: name to (requested, effective); nothing differs."""
    message = process.until(Loaded).effective_config
    assert [one for one in message.parameters if not one.confirmed] == []
    return {one.name: (one.requested, one.effective) for one in message.parameters}


def measured(process: Any) -> Done:
    """From a loaded engine to its end."""
    process.send(WarmUp())
    process.until(Ready)
    process.send(Go())
    process.until(Measured)
    process.send(Finish())
    done: Done = process.until(Done)
    assert process.to_the_end() == 0, process.stderr()
    return done


def rows(stage: Stage, stream: StreamName) -> list[dict[str, Any]]:
    files = [chunk.path for chunk in sealed_chunks(stage.folder / "spool") if chunk.stream is stream]
    return [row for file in files for row in decode_chunk(stream, file.read_bytes()).to_pylist()]


def sent_in_the_window(stage: Stage, count: int) -> list[dict[str, Any]]:
    """The last `count` requests that the engine got."""
    return list(stage.told("generate_async")[-count:])


# --- what arrives -----------------------------------------------------------------------------------------------------


def test_nothing_is_sent_that_the_user_left_unset(stage: Stage, live: Live) -> None:
    read = live()
    assert stage.engine() == {
        "class": "LLM",
        "model": str(stage.model),
        "tokenizer": None,
        "tokenizer_mode": "auto",
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "tensor_parallel_size": 1,
        "dtype": "auto",
        "revision": None,
        "tokenizer_revision": None,
        "return_perf_metrics": True,
    }
    asked = {name for name, (requested, _) in read.items() if requested is not None}
    assert asked == {
        "model.weights",
        "output.mode",
        "output.max_tokens",
        "decoding.temperature",
        "tensorrt.build_engine",
    }
    assert read["tensorrt.max_batch_size"] == (None, 2048)
    assert read["tensorrt.kv_cache.free_gpu_memory_fraction"] == (None, 0.9)
    assert read["tensorrt.scheduler.capacity_policy"] == (None, "GUARANTEED_NO_EVICT")


@pytest.mark.proves(
    "precision",
    "model.weights",
    "tensorrt.max_batch_size",
    "tensorrt.max_input_len",
    "tensorrt.max_seq_len",
    "tensorrt.max_num_tokens",
    "tensorrt.max_beam_width",
    "tensorrt.enable_chunked_prefill",
    "tensorrt.kv_cache.free_gpu_memory_fraction",
    "tensorrt.kv_cache.max_tokens",
    "tensorrt.kv_cache.enable_block_reuse",
    "tensorrt.kv_cache.enable_partial_reuse",
    "tensorrt.kv_cache.host_cache_size",
    "tensorrt.kv_cache.dtype",
    "tensorrt.scheduler.capacity_policy",
    "tensorrt.scheduler.context_chunking_policy",
    "tensorrt.cuda_graph.batch_sizes",
    "tensorrt.cuda_graph.enable_padding",
    on="TensorRT-LLM 1.2 contract",
)
def test_every_setting_of_the_pytorch_flow_arrives_and_is_read_back(stage: Stage, live: Live) -> None:
    sizes = {"max_batch_size": 3, "max_input_len": 64, "max_seq_len": 96, "max_num_tokens": 256, "max_beam_width": 2}
    kv_cache = {
        "free_gpu_memory_fraction": 0.5,
        "max_tokens": 4096,
        "enable_block_reuse": False,
        "enable_partial_reuse": False,
        "host_cache_size": 1 << 30,
        "dtype": "fp8",
    }
    scheduler = {"capacity_policy": "MAX_UTILIZATION", "context_chunking_policy": "EQUAL_PROGRESS"}
    read = live(
        precision="bfloat16",
        model={"id": "m", "weights": "dummy"},
        tensorrt={
            **sizes,
            "enable_chunked_prefill": True,
            "kv_cache": kv_cache,
            "scheduler": scheduler,
            "cuda_graph": {"batch_sizes": [1, 2, 3], "enable_padding": True},
        },
    )
    engine = stage.engine()
    assert {name: engine[name] for name in sizes} == sizes
    assert (engine["dtype"], engine["load_format"], engine["enable_chunked_prefill"]) == ("bfloat16", "dummy", True)
    assert engine["kv_cache_config"] == {"": "KvCacheConfig", **kv_cache}
    assert engine["scheduler_config"] == {
        "": "SchedulerConfig",
        "capacity_scheduler_policy": "MAX_UTILIZATION",
        "context_chunking_policy": "EQUAL_PROGRESS",
    }
    assert engine["cuda_graph_config"]["batch_sizes"] == [1, 2, 3]
    assert engine["cuda_graph_config"]["enable_padding"] is True
    for name, value in sizes.items():
        assert read[f"tensorrt.{name}"] == (value, value)
    for name, value in kv_cache.items():
        assert read[f"tensorrt.kv_cache.{name}"] == (value, value)
    for name, value in scheduler.items():
        assert read[f"tensorrt.scheduler.{name}"] == (value, value)
    assert read["tensorrt.cuda_graph.batch_sizes"] == ([1, 2, 3], [1, 2, 3])
    assert read["precision"] == ("bfloat16", "bfloat16")
    assert read["model.weights"] == ("dummy", "dummy")


@pytest.mark.proves("tensorrt.cuda_graph.enabled", "tensorrt.cuda_graph.max_batch_size", on="TensorRT-LLM 1.2 contract")
@pytest.mark.parametrize(("given", "expected"), [({"enabled": False}, None), ({"max_batch_size": 16}, 16)])
def test_cuda_graphs_are_turned_off_or_bounded(
    stage: Stage, live: Live, given: dict[str, Any], expected: int | None
) -> None:
    read = live(tensorrt={"cuda_graph": given})
    sent = stage.engine()["cuda_graph_config"]
    assert (sent and sent["max_batch_size"]) == expected
    assert read["tensorrt.cuda_graph.enabled"][1] is (expected is not None)
    assert read["tensorrt.cuda_graph.max_batch_size"][1] == expected


@pytest.mark.proves(
    "tensorrt.tensor_parallel_size",
    "tensorrt.pipeline_parallel_size",
    "tensorrt.moe_tensor_parallel_size",
    "tensorrt.moe_expert_parallel_size",
    "devices.count",
    on="TensorRT-LLM 1.2 contract",
)
def test_parallel_sizes_arrive_with_the_leased_devices_by_uuid(stage: Stage, live: Live) -> None:
    settings = {"tensor_parallel_size": 2, "moe_tensor_parallel_size": 1, "moe_expert_parallel_size": 2}
    read = live(uuids=(SECOND, GPU), tensorrt=settings)
    assert {name: stage.engine()[name] for name in settings} == settings
    assert stage.told("CUDA_VISIBLE_DEVICES") == [f"{SECOND},{GPU}"]
    for name, value in settings.items():
        assert read[f"tensorrt.{name}"] == (value, value)
    read = live(uuids=(GPU, SECOND), tensorrt={"pipeline_parallel_size": 2})
    assert read["tensorrt.pipeline_parallel_size"] == (2, 2)


@pytest.mark.proves(
    "tensorrt.speculative.method",
    "tensorrt.speculative.max_draft_len",
    "tensorrt.speculative.max_matching_ngram_size",
    on="TensorRT-LLM 1.2 contract",
)
def test_ngram_speculation_arrives_and_what_was_accepted_is_reported(stage: Stage, rank: Callable[..., Any]) -> None:
    speculation = {"method": "ngram", "max_draft_len": 3, "max_matching_ngram_size": 2}
    process = rank(tensorrt={"speculative": speculation}, output={"max_tokens": 12})
    read = loaded(process)
    assert stage.engine()["speculative_config"] == {
        "": "NGramDecodingConfig",
        "max_draft_len": 3,
        "max_matching_ngram_size": 2,
    }
    assert read["tensorrt.speculative.method"] == ("ngram", "ngram")
    done = measured(process)
    assert done.summary["generated_tokens"] == 4 * 12
    told = done.summary["speculation"]
    assert isinstance(told, dict)
    assert 0 < told["accepted_tokens"] <= told["drafted_tokens"]
    times = [(row["request_id"], row["time_ns"]) for row in rows(stage, StreamName.TOKENS)]
    assert len(times) == 4 * 12
    assert len(set(times)) < 4 * 12, "tokens of one step share its time"


@pytest.mark.proves("tensorrt.speculative.model", on="TensorRT-LLM 1.2 contract")
@pytest.mark.parametrize("kept_as", ["speculative_model_dir", "speculative_model"])
def test_a_smaller_model_that_drafts_arrives(stage: Stage, live: Live, kept_as: str) -> None:
    stage.orders["drafting_model"] = kept_as
    speculation = {"method": "draft_target", "max_draft_len": 2, "model": "/models/small"}
    read = live(tensorrt={"speculative": speculation})
    assert stage.engine()["speculative_config"] == {
        "": "DraftTargetDecodingConfig",
        "max_draft_len": 2,
        kept_as: "/models/small",
    }
    assert read["tensorrt.speculative.model"] == ("/models/small", "/models/small")


# --- sampling and lengths ---------------------------------------------------------------------------------------------


@pytest.mark.proves("output.mode", "output.max_tokens", "decoding.temperature", on="TensorRT-LLM 1.2 contract")
def test_fixed_output_ignores_the_end_of_sequence_and_is_greedy(stage: Stage, rank: Callable[..., Any]) -> None:
    process = rank(output={"max_tokens": 20})
    loaded(process)
    done = measured(process)
    for sent in sent_in_the_window(stage, 4):
        sent.pop("prompt"), sent.pop("cache_salt")
        assert sent == {
            "max_tokens": 20,
            "end_id": sent["end_id"],
            "pad_id": sent["pad_id"],
            "detokenize": False,
            "ignore_eos": True,
            "include_stop_str_in_output": True,
            "return_perf_metrics": True,
        }
        assert isinstance(sent["end_id"], int)
    assert [row["generated_tokens"] for row in rows(stage, StreamName.REQUESTS)] == [20] * 4
    assert {row["finish_reason"] for row in rows(stage, StreamName.REQUESTS)} == {"length"}
    assert done.summary["outputs_repeat"] is True
    assert len(stage.told("shutdown")) == 1


@pytest.mark.proves("output.mode", "output.min_tokens", on="TensorRT-LLM 1.2 contract")
def test_natural_output_ends_at_the_end_of_sequence_and_not_before_the_least(
    stage: Stage, rank: Callable[..., Any], live: Live
) -> None:
    process = rank(output={"max_tokens": 30, "mode": "natural"})
    loaded(process)
    measured(process)
    natural = [row["generated_tokens"] for row in rows(stage, StreamName.REQUESTS)]
    assert all(3 < count < 30 for count in natural)
    assert {row["finish_reason"] for row in rows(stage, StreamName.REQUESTS)} == {"stop"}
    assert live(output={"max_tokens": 30, "min_tokens": 25, "mode": "natural"})["output.min_tokens"] == (25, 25)


@pytest.mark.proves(
    "decoding.temperature",
    "decoding.top_k",
    "decoding.top_p",
    "decoding.min_p",
    "decoding.repetition_penalty",
    "decoding.seed",
    on="TensorRT-LLM 1.2 contract",
)
def test_sampling_arrives_with_a_seed_for_every_request(stage: Stage, rank: Callable[..., Any]) -> None:
    decoding = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 11}
    process = rank(decoding=decoding)
    read = loaded(process)
    measured(process)
    sent = sent_in_the_window(stage, 4)
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        assert {one[name] for one in sent} == {decoding[name]}
        assert read[f"decoding.{name}"] == (decoding[name], decoding[name])
    assert [one["seed"] for one in sent] == [11, 12, 13, 14]


def test_a_temperature_alone_samples_from_the_whole_probability(live: Live) -> None:
    assert live(decoding={"temperature": 0.7})["decoding.top_p"] == (None, 1.0)


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_tokens_queueing_and_cached_prompts_are_recorded(stage: Stage, rank: Callable[..., Any]) -> None:
    stage.orders["step_ms"] = 3.0
    process = rank(output={"max_tokens": 6}, tensorrt={"max_batch_size": 2}, window={"min_requests": 8})
    loaded(process)
    done = measured(process)
    requests = rows(stage, StreamName.REQUESTS)
    assert len(requests) == 8
    tokens = rows(stage, StreamName.TOKENS)
    assert len(tokens) == 8 * 6 == done.summary["generated_tokens"]
    for row in requests:
        times = [token["time_ns"] for token in tokens if token["request_id"] == row["request_id"]]
        assert times == sorted(times)
        assert row["arrival_ns"] <= row["scheduled_ns"] <= row["first_token_ns"] == times[0]
        assert row["cached_prompt_tokens"] == 0
        assert row["prompt_tokens"] > 0
    # The cache of one repetition does not serve the next.
    salts = [one["cache_salt"] for one in sent_in_the_window(stage, 8)]
    assert [salt.partition(" repetition ")[2] for salt in salts] == ["0"] * 4 + ["1"] * 4
    # Two at a time: the third waited for the six steps of the first, each at least 3 ms.
    scheduled = sorted(row["scheduled_ns"] for row in requests)[:4]
    assert scheduled[2] - scheduled[0] >= 6 * 3_000_000 - 2000
    delivery = done.summary["first_token_delivery_ns"]
    assert isinstance(delivery, int) and delivery >= 0
    model = done.summary["model"]
    assert isinstance(model, dict) and model["layers"] == 2
    assert done.summary["peak_device_memory_bytes"] is None
    assert done.summary["unknown"].keys() == {"peak_device_memory_bytes", "peak_kv_cache_usage"}


@pytest.mark.slow
def test_the_format_of_a_quantised_checkpoint_s_arithmetic_is_not_guessed(
    stage: Stage, rank: Callable[..., Any], tmp_path: Path
) -> None:
    """As NVIDIA's quantiser describes one, beside a configuration that knows nothing of it."""
    stage.model = Path(shutil.copytree(stage.model, tmp_path / "fp8"))
    for expected in ("bfloat16", None):
        process = rank(precision="bfloat16")
        process.until(Loaded)
        model = measured(process).summary["model"]
        assert isinstance(model, dict) and model["dtype"] == expected
        (stage.model / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
        shutil.rmtree(stage.folder / "spool")


@pytest.mark.slow
def test_how_much_of_a_prompt_was_cached_is_said_only_where_it_is_known(
    stage: Stage, rank: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factories.tensorrt_ranks.TEXTS", ("word " * 40 + "one", "word " * 40 + "two"))
    for partial, expected in ((False, 64), (True, None)):
        process = rank(tensorrt={"kv_cache": {"enable_partial_reuse": partial}})
        loaded(process)
        measured(process)
        requests = rows(stage, StreamName.REQUESTS)
        assert {row["cached_prompt_tokens"] for row in requests} == {0, expected}
        assert {row["prompt_tokens"] // 32 for row in requests} == {2}, "two whole blocks"
        for chunk in sealed_chunks(stage.folder / "spool"):
            chunk.path.unlink()


def test_no_round_of_warm_up_and_no_repetition_is_served_from_the_blocks_of_another(
    stage: Stage, rank: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block reuse is on by default; a warm-up that skips its prefill warms no prefill up."""
    monkeypatch.setattr("factories.tensorrt_ranks.TEXTS", ("word " * 40 + "one", "other " * 40))
    process = rank(warmup={"min_requests": 3, "window_size": 2, "max_requests": 3}, window={"min_requests": 4})
    loaded(process)
    measured(process)
    assert len(stage.told("generate_async")) == 3 * 2 + 4
    assert {len(one["prompt"]) // 32 for one in stage.told("generate_async")} >= {2}, "whole blocks"
    assert set(stage.told("reused_blocks")) == {0}


def test_a_time_on_another_clock_is_no_time(stage: Stage, rank: Callable[..., Any]) -> None:
    stage.orders["clock"] = "foreign"
    process = rank()
    loaded(process)
    measured(process)
    assert {row["scheduled_ns"] for row in rows(stage, StreamName.REQUESTS)} == {None}


@pytest.mark.proves("traffic.mode", "traffic.concurrency", on="TensorRT-LLM 1.2 contract")
def test_closed_traffic_keeps_so_many_in_flight(stage: Stage, rank: Callable[..., Any]) -> None:
    stage.orders["step_ms"] = 2.0
    process = rank(traffic={"mode": "closed", "concurrency": 2}, window={"min_requests": 8}, output={"max_tokens": 5})
    loaded(process)
    measured(process)
    requests = rows(stage, StreamName.REQUESTS)
    edges = sorted([(row["arrival_ns"], 1) for row in requests] + [(row["last_token_ns"], -1) for row in requests])
    level, most = 0, 0
    for _, change in edges:
        level += change
        most = max(most, level)
    assert (len(requests), most) == (8, 2)


@pytest.mark.proves("traffic.mode", "traffic.rate_per_s", on="TensorRT-LLM 1.2 contract")
def test_open_traffic_arrives_on_its_own_times(stage: Stage, rank: Callable[..., Any]) -> None:
    process = rank(traffic={"mode": "open", "rate_per_s": 50, "arrivals": "constant"}, window={"min_requests": 8})
    loaded(process)
    measured(process)
    arrivals = sorted(row["arrival_ns"] for row in rows(stage, StreamName.REQUESTS))
    assert {later - earlier for earlier, later in pairwise(arrivals)} == {20_000_000}


# --- a built engine ---------------------------------------------------------------------------------------------------


@pytest.mark.proves(
    "tensorrt.build_engine",
    "tensorrt.quantization.algorithm",
    "tensorrt.quantization.kv_cache",
    "tensorrt.max_batch_size",
    "tensorrt.max_seq_len",
    on="TensorRT-LLM 1.2 contract",
)
def test_an_engine_is_built_as_asked_and_described_by_itself(stage: Stage, live: Live) -> None:
    read = live(
        precision="float16",
        tensorrt={
            "build_engine": True,
            "max_batch_size": 4,
            "max_seq_len": 128,
            "quantization": {"algorithm": "FP8", "kv_cache": "INT8"},
        },
    )
    engine = stage.engine()
    assert engine["class"] == "BuiltLLM"
    assert engine["build_config"] == {"": "BuildConfig", "max_batch_size": 4, "max_seq_len": 128}
    assert engine["quant_config"] == {"": "QuantConfig", "quant_algo": "FP8", "kv_cache_quant_algo": "INT8"}
    assert read["tensorrt.build_engine"] == (True, True)
    assert read["tensorrt.max_batch_size"] == (4, 4)
    assert read["tensorrt.quantization.algorithm"] == ("FP8", "FP8")
    assert read["tensorrt.quantization.kv_cache"] == ("INT8", "INT8")
    assert read["precision"] == ("float16", "float16")
    assert stage.told("engine") == ["built"]
    assert stage.told("save") == []


@pytest.mark.slow
def test_a_kept_engine_measures_and_says_that_it_was_kept(stage: Stage, live: Live, rank: Callable[..., Any]) -> None:
    cache = {"build_engine": True, "engine_cache_dir": str(stage.folder / "engines")}
    live(tensorrt=cache)
    process = rank(tensorrt=cache)
    loaded(process)
    done = measured(process)
    assert stage.told("engine") == ["built", "loaded"]
    assert done.summary["engine_from_cache"] is True
    assert done.summary["generated_tokens"] == 16


@pytest.mark.proves("tensorrt.engine_cache_dir", "tensorrt.force_rebuild", on="TensorRT-LLM 1.2 contract")
def test_a_kept_engine_serves_its_own_configuration_only(stage: Stage, live: Live) -> None:
    cache = {"build_engine": True, "engine_cache_dir": str(stage.folder / "engines")}
    first = live(tensorrt=cache)
    again = live(tensorrt={**cache, "kv_cache": {"max_tokens": 512}})
    assert stage.told("engine") == ["built", "loaded"], "what holds at run time does not shape the engine"
    assert first["tensorrt.engine_key"] == again["tensorrt.engine_key"]
    assert again["tensorrt.kv_cache.max_tokens"] == (512, 512)
    other = live(tensorrt={**cache, "max_batch_size": 4})
    assert stage.told("engine") == ["built", "loaded", "built"]
    assert other["tensorrt.engine_key"] != first["tensorrt.engine_key"]
    forced = live(tensorrt={**cache, "force_rebuild": True})
    assert stage.told("engine") == ["built", "loaded", "built", "built"]
    assert forced["tensorrt.force_rebuild"] == (True, True)
    live(tensorrt=cache)
    assert stage.told("engine")[-1] == "loaded", "what was rebuilt is kept"


# --- failures ---------------------------------------------------------------------------------------------------------


def failed(process: Any) -> Failed:
    message: Failed = process.until(Failed)
    assert process.to_the_end() == 1
    return message


def test_a_value_that_the_engine_changes_is_not_confirmed(stage: Stage, live: Live) -> None:
    stage.orders["lie"] = {"max_batch_size": 3, "kv_cache_config.enable_block_reuse": False}
    parameters = live.load(tensorrt={"max_batch_size": 8, "kv_cache": {"enable_block_reuse": True}})
    assert {one.name: (one.requested, one.effective) for one in parameters if not one.confirmed} == {
        "tensorrt.max_batch_size": (8, 3),
        "tensorrt.kv_cache.enable_block_reuse": (True, False),
    }


def test_an_option_that_the_engine_refuses_is_named(stage: Stage, live: Live) -> None:
    stage.orders["without"] = ["cuda_graph_config"]
    with pytest.raises(OptionRefused) as raised:
        live(tensorrt={"cuda_graph": {"max_batch_size": 8}})
    assert str(raised.value) == (
        "TensorRT-LLM 1.2.1+fake rejects an option (ValueError: LLM got invalid argument: "
        "cuda_graph_config); change or remove it."
    )
    assert failure_of(raised.value, PhaseName.LOAD).reason is FailureReason.NOT_AS_REQUESTED


def test_out_of_memory_while_it_generates(stage: Stage, rank: Callable[..., Any]) -> None:
    stage.orders.update(fail="out_of_memory", at="generate")
    process = rank()
    process.until(Loaded)
    process.send(WarmUp())
    message = failed(process)
    assert message.reason is FailureReason.OUT_OF_MEMORY
    assert "CUDA out of memory. Tried to allocate 2.00 GiB" in message.message


def test_a_bad_checkpoint_is_reported_in_the_engines_words(stage: Stage, live: Live, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(stage.model, broken)
    (broken / "model.safetensors").write_bytes(b"not weights at all")
    stage.model = broken
    with pytest.raises(RuntimeError) as raised:
        live()
    reason, message = failure_of(raised.value, PhaseName.LOAD)
    assert reason is FailureReason.BACKEND_INITIALISATION
    assert "Error while deserializing header of model.safetensors" in message


def test_an_engine_that_can_not_be_imported_is_unavailable(stage: Stage, rank: Callable[..., Any]) -> None:
    stage.orders["import_error"] = True
    message = failed(rank())
    assert message.reason is FailureReason.BACKEND_UNAVAILABLE
    assert "can't be imported (ImportError: libnvinfer.so.10" in message.message
    assert "Dockerfile.trt" in message.message


def test_an_engine_that_is_not_installed_is_unavailable(stage: Stage, drive: Drive) -> None:
    environment = {**stage.environment(), "PYTHONPATH": ""}
    message = failed(drive(MODULE, stage.job(), **environment))
    assert message.reason is FailureReason.BACKEND_UNAVAILABLE
    assert message.message.startswith("TensorRT-LLM is not installed here; run the worker in NVIDIA's image")


def test_a_gpu_that_is_too_old_is_refused_by_name(stage: Stage, rank: Callable[..., Any]) -> None:
    stage.nvml.write(gpu_line(0, GPU, capability="7.5"))
    message = failed(rank())
    assert message.reason is FailureReason.BACKEND_UNAVAILABLE
    assert f"({GPU}) has compute capability 7.5 and TensorRT-LLM needs 8.0 or newer" in message.message
    assert stage.told("LLM") == []


def test_a_worker_without_a_gpu_reports_what_is_needed(stage: Stage, drive: Drive) -> None:
    job = stage.job().model_copy(update={"devices": ()})
    message = failed(drive(MODULE, job, **stage.environment()))
    assert message.reason is FailureReason.BACKEND_UNAVAILABLE
    assert "TensorRT-LLM needs an NVIDIA GPU of compute capability 8.0 or newer" in message.message


def test_a_request_that_the_engine_gives_up_has_its_error_and_the_others_are_measured(
    stage: Stage, rank: Callable[..., Any]
) -> None:
    stage.orders.update(time_out=[12])
    process = rank(window={"min_requests": 8})
    loaded(process)
    done = measured(process)
    requests = rows(stage, StreamName.REQUESTS)
    [given_up] = [row for row in requests if row["error"] is not None]
    assert "for the reason 'timeout'" in given_up["error"]
    assert (given_up["finish_reason"], given_up["generated_tokens"]) == (None, 1)
    assert (done.summary["requests"], done.summary["failed_requests"]) == (len(requests) - 1, 1)


def test_what_is_in_flight_when_the_engine_fails_is_kept_as_failed(stage: Stage, rank: Callable[..., Any]) -> None:
    stage.orders.update(fail="raise", at="generate", after=9)
    process = rank(window={"min_requests": 8})
    loaded(process)
    process.send(WarmUp())
    process.until(Ready)
    process.send(Go())
    message = failed(process)
    assert message.reason is FailureReason.INFERENCE
    requests = rows(stage, StreamName.REQUESTS)
    assert [row for row in requests if row["error"] is not None]
    ends = [edge.phase for edge in process.messages if isinstance(edge, PhaseEdge) and edge.edge == "end"]
    assert ends[-1] is PhaseName.MEASURE


@pytest.mark.proves("prefill_probe", "prompts.synthetic.prompt_tokens", on="TensorRT-LLM 1.2 contract")
def test_the_probe_asks_for_one_token_of_the_same_made_prompts(stage: Stage, rank: Callable[..., Any]) -> None:
    made = {"synthetic": {"prompt_tokens": 9, "spread": 2, "count": 4}}
    process = rank(prefill_probe=True, prompts=made, output={"max_tokens": 6, "mode": "natural", "min_tokens": 3})
    process.until(Loaded)
    done = measured(process)
    requests = rows(stage, StreamName.REQUESTS)
    assert all(7 <= row["prompt_tokens"] <= 11 for row in requests)
    whole = sum(row["prompt_tokens"] for row in requests if row["request_id"] < 4)
    probe = done.summary["prefill_probe"]
    assert isinstance(probe, dict)
    assert (probe["requests"], probe["prompt_tokens"]) == (4, whole)
    sent = sent_in_the_window(stage, 4)
    assert {(one["max_tokens"], one.get("min_tokens")) for one in sent} == {(1, None)}
    assert len({one["cache_salt"] for one in sent}) == 1
    assert sent[0]["cache_salt"].startswith("prefill_probe ")
