"""The part of TensorRT-LLM's LLM API 1.2 that the backend relies on: names and defaults as the project publishes them
(its API reference and tests/unittest/api_stability). The fake and, where it is installed, the real package are held to
these."""

from __future__ import annotations

from typing import Any

LLM_EXPLICIT = (
    "model",
    "tokenizer",
    "tokenizer_mode",
    "skip_tokenizer_init",
    "trust_remote_code",
    "tensor_parallel_size",
    "dtype",
    "revision",
    "tokenizer_revision",
)
LLM_ARGUMENTS = (
    *LLM_EXPLICIT,
    "pipeline_parallel_size",
    "moe_tensor_parallel_size",
    "moe_expert_parallel_size",
    "load_format",
    "kv_cache_config",
    "scheduler_config",
    "cuda_graph_config",
    "speculative_config",
    "enable_chunked_prefill",
    "max_batch_size",
    "max_input_len",
    "max_seq_len",
    "max_num_tokens",
    "max_beam_width",
    "return_perf_metrics",
)
MODELS: dict[str, dict[str, Any]] = {
    "KvCacheConfig": {
        "free_gpu_memory_fraction": 0.9,
        "max_tokens": None,
        "enable_block_reuse": True,
        "enable_partial_reuse": True,
        "host_cache_size": None,
        "dtype": "auto",
        "tokens_per_block": 32,
    },
    "SchedulerConfig": {
        "capacity_scheduler_policy": "GUARANTEED_NO_EVICT",
        "context_chunking_policy": None,
    },
    "CudaGraphConfig": {"batch_sizes": None, "max_batch_size": 0, "enable_padding": False},
    "NGramDecodingConfig": {"max_draft_len": None, "max_matching_ngram_size": 0},
    "DraftTargetDecodingConfig": {"max_draft_len": None, "speculative_model_dir": None},
    "QuantConfig": {"quant_algo": None, "kv_cache_quant_algo": None},
}
SAMPLING: dict[str, Any] = {
    "end_id": None,
    "pad_id": None,
    "max_tokens": 32,
    "min_tokens": None,
    "stop_token_ids": None,
    "include_stop_str_in_output": False,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "min_p": None,
    "seed": None,
    "repetition_penalty": None,
    "ignore_eos": False,
    "detokenize": True,
    "return_perf_metrics": False,
}
ALSO_CALLED = {"speculative_model_dir": "speculative_model"}
"""Later copies take the first as an alias of the second."""
GENERATE_ASYNC = ("inputs", "sampling_params", "streaming", "cache_salt")
OUTPUTS = {
    "RequestOutput": (
        "request_id",
        "prompt_token_ids",
        "outputs",
        "finished",
        "result",
        "aresult",
        "abort",
        "aborted",
        "__aiter__",
        "__anext__",
    ),
    "CompletionOutput": ("index", "token_ids", "finish_reason", "stop_reason", "request_perf_metrics"),
}
