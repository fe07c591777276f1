"""The effective configuration of a live TensorRT-LLM engine, from `llm.args` and a built engine's description."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic.types import JsonValue

from lem_domain.backends.tensorrt import TensorrtConfig, TensorrtCudaGraph, TensorrtSpeculation
from lem_domain.config.experiment import DecodingConfig, ExperimentConfig, OutputConfig
from lem_domain.wire.runs import EffectiveParameter
from lem_worker.backends.tensorrt.engine import BuiltEngine, TensorrtEngine

_SIZES = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "max_beam_width")
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")
_EXPERTS = ("moe_tensor_parallel_size", "moe_expert_parallel_size")
_KV_CACHE = (
    "free_gpu_memory_fraction",
    "max_tokens",
    "enable_block_reuse",
    "enable_partial_reuse",
    "host_cache_size",
    "dtype",
)


def parameters(config: ExperimentConfig, live: TensorrtEngine, sampling: Any) -> tuple[EffectiveParameter, ...]:
    """Every parameter with its requested and effective value; `sampling` are the `SamplingParams` of a request."""
    settings = config.section(TensorrtConfig)
    args = live.llm.args
    found = [
        *_of_the_model(config, live),
        *_of_sampling(config.decoding, config.output, sampling),
        *(_parameter(f"tensorrt.{name}", getattr(settings, name), value) for name, value in _sizes(live).items()),
        *(_parameter(f"tensorrt.{name}", getattr(settings, name), value) for name, value in _parallel(live).items()),
        *(
            _parameter(
                f"tensorrt.kv_cache.{name}", getattr(settings.kv_cache, name), getattr(args.kv_cache_config, name)
            )
            for name in _KV_CACHE
        ),
        _parameter("tensorrt.enable_chunked_prefill", settings.enable_chunked_prefill, args.enable_chunked_prefill),
        _parameter(
            "tensorrt.scheduler.capacity_policy",
            settings.scheduler.capacity_policy,
            args.scheduler_config.capacity_scheduler_policy,
        ),
        _parameter(
            "tensorrt.scheduler.context_chunking_policy",
            settings.scheduler.context_chunking_policy,
            args.scheduler_config.context_chunking_policy,
        ),
        _parameter("tensorrt.build_engine", settings.build_engine, live.built is not None),
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
        _parameter("precision", None if config.precision == "auto" else config.precision, precision),
        _parameter("model.weights", config.model.weights, weights),
        _parameter("model.revision", config.model.revision, live.llm.args.revision),
    ]


def _of_sampling(decoding: DecodingConfig, output: OutputConfig, sampling: Any) -> list[EffectiveParameter]:
    names = ("top_k", "top_p", "min_p", "repetition_penalty")
    return [
        _parameter("output.mode", output.mode, "fixed" if sampling.ignore_eos else "natural"),
        _parameter("output.max_tokens", output.max_tokens, sampling.max_tokens),
        _parameter("output.min_tokens", output.min_tokens or None, sampling.min_tokens),
        _parameter("decoding.temperature", decoding.temperature, sampling.temperature or 0.0),
        *(_parameter(f"decoding.{name}", getattr(decoding, name), getattr(sampling, name)) for name in names),
    ]


def _sizes(live: TensorrtEngine) -> dict[str, Any]:
    if live.built is None:
        return {name: getattr(live.llm.args, name) for name in _SIZES}
    build = live.built.described["build_config"]
    return {name: build.get(name) for name in _SIZES}


def _parallel(live: TensorrtEngine) -> dict[str, Any]:
    # A built engine keeps the parallel sizes of its build, whatever arguments it is loaded with.
    mapping = {} if live.built is None else _pretrained(live.built).get("mapping", {})
    sizes = {name: getattr(live.llm.args, name) for name in (*_PARALLEL, *_EXPERTS)}
    for name, short in zip(_PARALLEL, ("tp_size", "pp_size"), strict=True):
        sizes[name] = mapping.get(short, sizes[name])
    return sizes


def _cuda_graph(settings: TensorrtCudaGraph | None, live: Any) -> list[EffectiveParameter]:
    found = [
        _parameter("tensorrt.cuda_graph.enabled", None if settings is None else settings.enabled, live is not None)
    ]
    for name in ("batch_sizes", "max_batch_size", "enable_padding"):
        requested = None if settings is None else getattr(settings, name)
        requested = list(requested) if isinstance(requested, tuple) else requested
        found.append(
            _parameter(f"tensorrt.cuda_graph.{name}", requested, None if live is None else getattr(live, name))
        )
    return found


def _speculation(settings: TensorrtSpeculation | None, live: Any) -> list[EffectiveParameter]:
    kinds = {"NGram": "ngram", "Draft_Target": "draft_target"}
    method = None if live is None else kinds.get(live.decoding_type, live.decoding_type)
    found = [_parameter("tensorrt.speculative.method", None if settings is None else settings.method, method)]
    for name, theirs in (
        ("max_draft_len", ("max_draft_len",)),
        ("max_matching_ngram_size", ("max_matching_ngram_size",)),
        # Some versions keep the second name and accept the first as an alias.
        ("model", ("speculative_model_dir", "speculative_model")),
    ):
        requested = None if settings is None else getattr(settings, name)
        kept = next((getattr(live, one) for one in theirs if hasattr(live, one)), None)
        found.append(_parameter(f"tensorrt.speculative.{name}", requested, kept))
    return found


def _of_the_build(settings: TensorrtConfig, built: BuiltEngine) -> list[EffectiveParameter]:
    wanted = settings.quantization
    quantization = _pretrained(built).get("quantization") or {}
    folder = None
    if built.key is not None and settings.engine_cache_dir is not None:
        folder = settings.engine_cache_dir
    return [
        _parameter(
            "tensorrt.quantization.algorithm",
            None if wanted is None else wanted.algorithm,
            quantization.get("quant_algo"),
        ),
        _parameter(
            "tensorrt.quantization.kv_cache",
            None if wanted is None else wanted.kv_cache,
            quantization.get("kv_cache_quant_algo"),
        ),
        _parameter("tensorrt.engine_cache_dir", settings.engine_cache_dir, folder),
        # An engine from the cache does not fulfil a requested rebuild.
        _parameter("tensorrt.force_rebuild", True if settings.force_rebuild else None, not built.from_cache),
        _parameter("tensorrt.engine_key", None, None if built.key is None else built.key.digest),
    ]


def _pretrained(built: BuiltEngine) -> Mapping[str, Any]:
    described: Mapping[str, Any] = built.described["pretrained_config"]
    return described


def _parameter(name: str, requested: JsonValue, effective: Any) -> EffectiveParameter:
    value = _plain(effective)
    confirmed = requested is None or requested == value
    return EffectiveParameter(name=name, requested=requested, effective=value, confirmed=confirmed)


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
