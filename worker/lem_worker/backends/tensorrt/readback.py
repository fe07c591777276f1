"""The effective configuration of a live TensorRT-LLM engine, from `llm.args` and a built engine's description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.types import JsonValue

from lem_domain.backends.tensorrt import TensorrtConfig, TensorrtCudaGraph, TensorrtKvCache, TensorrtSpeculation
from lem_domain.config.experiment import DecodingConfig, ExperimentConfig, OutputConfig
from lem_domain.wire.runs import EffectiveParameter
from lem_worker.backends.readback import compared, compared_keys, of_model
from lem_worker.backends.tensorrt.engine import BuiltEngine, TensorrtEngine
from lem_worker.backends.tensorrt.options import PARALLEL, SIZES


def parameters(config: ExperimentConfig, live: TensorrtEngine, sampling: Any) -> tuple[EffectiveParameter, ...]:
    """Every parameter with its requested and effective value; `sampling` are the `SamplingParams` of a request."""
    settings = config.section(TensorrtConfig)
    args = live.llm.args
    scheduler = args.scheduler_config
    found = [
        *_of_the_model(config, live),
        *_of_sampling(config.decoding, config.output, sampling),
        *_keys("tensorrt", settings, {**_sizes(live), **_parallel(live)}),
        *_keys("tensorrt.kv_cache", settings.kv_cache, _attributes(args.kv_cache_config, TensorrtKvCache.model_fields)),
        compared("tensorrt.enable_chunked_prefill", settings.enable_chunked_prefill, args.enable_chunked_prefill),
        *_keys(
            "tensorrt.scheduler",
            settings.scheduler,
            {
                "capacity_policy": scheduler.capacity_scheduler_policy,
                "context_chunking_policy": scheduler.context_chunking_policy,
            },
        ),
        compared("tensorrt.build_engine", settings.build_engine, live.built is not None),
    ]
    if live.built is None:
        found += _cuda_graph(settings.cuda_graph, args.cuda_graph_config)
        found += _speculation(settings.speculative, args.speculative_config)
    else:
        found += _of_the_build(settings, live.built)
    return tuple(found)


def _of_the_model(config: ExperimentConfig, live: TensorrtEngine) -> list[EffectiveParameter]:
    precision = live.llm.args.dtype if live.built is None else _pretrained(live.built).get("dtype")
    weights = "dummy" if _name(live.llm.args.load_format).lower() == "dummy" else "checkpoint"
    if live.built is not None and live.built.from_cache:
        # A built engine contains its weights, and its key identifies them.
        weights = config.model.weights
    return [
        *of_model(config, precision=_plain(precision), weights=weights),
        compared("model.revision", config.model.revision, live.llm.args.revision),
    ]


def _of_sampling(decoding: DecodingConfig, output: OutputConfig, sampling: Any) -> list[EffectiveParameter]:
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    return [
        compared("output.mode", output.mode, "fixed" if sampling.ignore_eos else "natural"),
        compared("output.max_tokens", output.max_tokens, sampling.max_tokens),
        compared("output.min_tokens", output.min_tokens or None, sampling.min_tokens),
        compared("decoding.temperature", decoding.temperature, sampling.temperature or 0.0),
        *_keys("decoding", decoding, _attributes(sampling, names)),
    ]


def _sizes(live: TensorrtEngine) -> dict[str, Any]:
    if live.built is None:
        return _attributes(live.llm.args, SIZES)
    build = live.built.described["build_config"]
    return {name: build.get(name) for name in SIZES}


def _parallel(live: TensorrtEngine) -> dict[str, Any]:
    # A built engine keeps the parallel sizes of its build, whatever arguments it is loaded with.
    mapping = {} if live.built is None else _pretrained(live.built).get("mapping", {})
    sizes = _attributes(live.llm.args, PARALLEL)
    for name, short in (("tensor_parallel_size", "tp_size"), ("pipeline_parallel_size", "pp_size")):
        sizes[name] = mapping.get(short, sizes[name])
    return sizes


def _cuda_graph(settings: TensorrtCudaGraph | None, live: Any) -> list[EffectiveParameter]:
    names = ("batch_sizes", "max_batch_size", "enable_padding")
    sizes = dict.fromkeys(names) if live is None else _attributes(live, names)
    return _keys("tensorrt.cuda_graph", settings, {"enabled": live is not None, **sizes})


def _speculation(settings: TensorrtSpeculation | None, live: Any) -> list[EffectiveParameter]:
    kinds = {"NGram": "ngram", "Draft_Target": "draft_target"}
    found = {"method": None if live is None else kinds.get(live.decoding_type, live.decoding_type)}
    for name, theirs in (
        ("max_draft_len", ("max_draft_len",)),
        ("max_matching_ngram_size", ("max_matching_ngram_size",)),
        # Some versions keep the second name and accept the first as an alias.
        ("model", ("speculative_model_dir", "speculative_model")),
    ):
        found[name] = next((getattr(live, one) for one in theirs if hasattr(live, one)), None)
    return _keys("tensorrt.speculative", settings, found)


def _of_the_build(settings: TensorrtConfig, built: BuiltEngine) -> list[EffectiveParameter]:
    live = _pretrained(built).get("quantization") or {}
    algorithms = {"algorithm": live.get("quant_algo"), "kv_cache": live.get("kv_cache_quant_algo")}
    folder = None if built.key is None else settings.engine_cache_dir
    return [
        *_keys("tensorrt.quantization", settings.quantization, algorithms),
        compared("tensorrt.engine_cache_dir", settings.engine_cache_dir, folder),
        # An engine from the cache does not fulfil a requested rebuild.
        compared("tensorrt.force_rebuild", True if settings.force_rebuild else None, not built.from_cache),
        compared("tensorrt.engine_key", None, None if built.key is None else built.key.digest),
    ]


def _pretrained(built: BuiltEngine) -> Mapping[str, Any]:
    described: Mapping[str, Any] = built.described["pretrained_config"]
    return described


def _keys(section: str, wanted: BaseModel | None, effective: Mapping[str, Any]) -> list[EffectiveParameter]:
    return compared_keys(section, wanted, {name: _plain(value) for name, value in effective.items()})


def _attributes(of: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(of, name) for name in names}


def _plain(value: Any) -> JsonValue:
    if isinstance(value, Enum):
        return _name(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return repr(value)


def _name(value: Any) -> str:
    return value.name if isinstance(value, Enum) else str(value)
