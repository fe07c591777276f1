"""Converts a configuration into the keyword arguments of TensorRT-LLM's classes, as plain values; imports no engine.

Unset options are left out, so that the engine's own defaults apply. A nested dictionary holds the fields of one of the
engine's configuration models, under the name of the argument that takes it.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic.types import JsonValue

from lem_domain.backends.tensorrt import TensorrtConfig, TensorrtCudaGraph, TensorrtSpeculation
from lem_domain.config.experiment import DecodingConfig, ExperimentConfig, OutputConfig

Arguments = dict[str, JsonValue]

SIZES = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "max_beam_width")
PARALLEL = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "moe_tensor_parallel_size",
    "moe_expert_parallel_size",
)


def pytorch_flow(config: ExperimentConfig) -> Arguments:
    """All arguments of `tensorrt_llm.LLM` except the model."""
    settings = config.section(TensorrtConfig)
    arguments = {**_of_weights(config), **_chosen(settings, SIZES), **at_run_time(config)}
    if settings.cuda_graph is not None:
        arguments["cuda_graph_config"] = _cuda_graph(settings.cuda_graph)
    if settings.speculative is not None:
        arguments["speculative_config"] = _speculation(settings.speculative)
    return arguments


def of_build(config: ExperimentConfig) -> Arguments:
    """The arguments that shape a built engine; all are part of the engine's key."""
    settings = config.section(TensorrtConfig)
    arguments = {**_of_weights(config), **_chosen(settings, PARALLEL)}
    sizes = _chosen(settings, SIZES)
    if sizes:
        arguments["build_config"] = sizes
    if settings.quantization is not None:
        algorithms: Arguments = {"quant_algo": settings.quantization.algorithm}
        if settings.quantization.kv_cache is not None:
            algorithms["kv_cache_quant_algo"] = settings.quantization.kv_cache
        arguments["quant_config"] = algorithms
    return arguments


def at_run_time(config: ExperimentConfig) -> Arguments:
    """The arguments of every load, in either flow."""
    settings = config.section(TensorrtConfig)
    arguments: Arguments = {
        # Prompts and answers are token ids: the engine's tokenizer would only cost time in the window.
        "skip_tokenizer_init": True,
        "return_perf_metrics": True,
        **_chosen(settings, (*PARALLEL, "enable_chunked_prefill")),
    }
    if config.model.revision is not None:
        arguments["revision"] = config.model.revision
    cache = settings.kv_cache.model_dump(exclude_none=True)
    if cache:
        arguments["kv_cache_config"] = cache
    scheduler = {
        "capacity_scheduler_policy": settings.scheduler.capacity_policy,
        "context_chunking_policy": settings.scheduler.context_chunking_policy,
    }
    if any(scheduler.values()):
        arguments["scheduler_config"] = _without_none(scheduler)
    return arguments


def of_sampling(
    decoding: DecodingConfig, output: OutputConfig, *, end_ids: tuple[int, ...], padding_id: int
) -> Arguments:
    """The `SamplingParams` that all requests share.

    The ids that end a sequence are always given, because the engine, which has no tokenizer, would look for them there.
    """
    arguments: Arguments = {
        "max_tokens": output.max_tokens,
        "end_id": end_ids[0] if end_ids else -1,
        "pad_id": padding_id,
        "detokenize": False,
        "return_perf_metrics": True,
        # The stop token was generated, so it stays in the answer, as the end of sequence does.
        "include_stop_str_in_output": True,
    }
    if output.mode == "fixed":
        arguments["ignore_eos"] = True
    else:
        if len(end_ids) > 1:
            arguments["stop_token_ids"] = list(end_ids[1:])
        if output.min_tokens:
            arguments["min_tokens"] = output.min_tokens
    if decoding.repetition_penalty is not None:
        arguments["repetition_penalty"] = decoding.repetition_penalty
    if decoding.temperature > 0:
        arguments["temperature"] = decoding.temperature
        arguments.update(_without_none({"top_k": decoding.top_k, "top_p": decoding.top_p, "min_p": decoding.min_p}))
        if decoding.top_k is None and decoding.top_p is None:
            # With a temperature alone the engine stays greedy. 1.0, the whole probability mass, is an unset top_p.
            arguments["top_p"] = 1.0
    return arguments


def _of_weights(config: ExperimentConfig) -> Arguments:
    arguments: Arguments = {}
    if config.precision != "auto":
        arguments["dtype"] = config.precision
    if config.model.weights == "dummy":
        arguments["load_format"] = "dummy"
    return arguments


def _cuda_graph(settings: TensorrtCudaGraph) -> JsonValue:
    if not settings.enabled:
        return None
    chosen = settings.model_dump(mode="json", exclude_none=True, exclude={"enabled"})
    return {**chosen}


def _speculation(settings: TensorrtSpeculation) -> Arguments:
    if settings.method == "ngram":
        return {
            "max_draft_len": settings.max_draft_len,
            "max_matching_ngram_size": settings.max_matching_ngram_size,
        }
    return {"max_draft_len": settings.max_draft_len, "speculative_model_dir": settings.model}


def _chosen(settings: TensorrtConfig, names: tuple[str, ...]) -> Arguments:
    return _without_none({name: getattr(settings, name) for name in names})


def _without_none(values: Mapping[str, JsonValue]) -> Arguments:
    return {name: value for name, value in values.items() if value is not None}
