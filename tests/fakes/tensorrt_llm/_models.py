"""The published configuration models; each refuses unknown fields, as the real ones do."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from ._orders import orders


class StrictBaseModel(BaseModel):
    """No unknown fields."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())


class CapacitySchedulerPolicy(StrEnum):
    MAX_UTILIZATION = "MAX_UTILIZATION"
    GUARANTEED_NO_EVICT = "GUARANTEED_NO_EVICT"
    STATIC_BATCH = "STATIC_BATCH"


class ContextChunkingPolicy(StrEnum):
    FIRST_COME_FIRST_SERVED = "FIRST_COME_FIRST_SERVED"
    EQUAL_PROGRESS = "EQUAL_PROGRESS"


class QuantAlgo(StrEnum):
    W8A16 = "W8A16"
    W4A16 = "W4A16"
    W4A16_AWQ = "W4A16_AWQ"
    W4A8_AWQ = "W4A8_AWQ"
    W8A8_SQ_PER_CHANNEL = "W8A8_SQ_PER_CHANNEL"
    FP8 = "FP8"
    INT8 = "INT8"
    NVFP4 = "NVFP4"
    NO_QUANT = "NO_QUANT"


class QuantConfig(StrictBaseModel):
    quant_algo: QuantAlgo | None = None
    kv_cache_quant_algo: QuantAlgo | None = None
    group_size: int = 128
    smoothquant_val: float = 0.5
    clamp_val: list[float] | None = None
    use_meta_recipe: bool = False
    has_zero_point: bool = False
    pre_quant_scale: bool = False
    exclude_modules: list[str] | None = None
    mamba_ssm_cache_dtype: str | None = None


class SchedulerConfig(StrictBaseModel):
    capacity_scheduler_policy: CapacitySchedulerPolicy = CapacitySchedulerPolicy.GUARANTEED_NO_EVICT
    context_chunking_policy: ContextChunkingPolicy | None = None
    dynamic_batch_config: Any = None


class KvCacheConfig(StrictBaseModel):
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    max_attention_window: list[int] | None = None
    sink_token_length: int | None = None
    free_gpu_memory_fraction: float | None = Field(default=0.9, ge=0, le=1)
    host_cache_size: int | None = None
    onboard_blocks: bool = True
    cross_kv_cache_fraction: float | None = None
    secondary_offload_min_priority: int | None = None
    event_buffer_max_size: int = 0
    attention_dp_events_gather_period_ms: int = 5
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: bool = True
    use_uvm: bool = False
    max_gpu_total_bytes: int = Field(default=0, ge=0)
    dtype: str = "auto"
    mamba_ssm_cache_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    tokens_per_block: int = 32


class CudaGraphConfig(StrictBaseModel):
    batch_sizes: list[int] | None = None
    max_batch_size: int = Field(default=0, ge=0)
    enable_padding: bool = False


class DecodingBaseConfig(StrictBaseModel):
    max_draft_len: int | None = None
    max_total_draft_tokens: int | None = None
    if orders().get("drafting_model") == "speculative_model":
        speculative_model: str | Path | None = Field(
            default=None, validation_alias=AliasChoices("speculative_model", "speculative_model_dir")
        )
    else:
        speculative_model_dir: str | Path | None = None
    max_concurrency: int | None = None
    load_format: str | None = None
    acceptance_window: int | None = None
    acceptance_length_threshold: float | None = None
    decoding_type: ClassVar[str] = ""


class NGramDecodingConfig(DecodingBaseConfig):
    max_matching_ngram_size: int = 0
    is_keep_all: bool = True
    is_use_oldest: bool = True
    is_public_pool: bool = True
    decoding_type: ClassVar[str] = "NGram"


class DraftTargetDecodingConfig(DecodingBaseConfig):
    decoding_type: ClassVar[str] = "Draft_Target"


class BuildConfig(StrictBaseModel):
    max_input_len: int = 1024
    max_seq_len: int | None = None
    opt_batch_size: int = 8
    max_batch_size: int = 2048
    max_beam_width: int = 1
    max_num_tokens: int = 8192
    opt_num_tokens: int | None = None
    max_prompt_embedding_table_size: int = 0
    gather_context_logits: bool = False
    gather_generation_logits: bool = False
    strongly_typed: bool = True
    max_draft_len: int = 0
    weight_sparsity: bool = False
    weight_streaming: bool = False


class LoadFormat(StrEnum):
    AUTO = "auto"
    DUMMY = "dummy"


class BaseLlmArgs(StrictBaseModel):
    """The arguments that both flows have."""

    model: str | Path
    tokenizer: Any = None
    tokenizer_mode: Literal["auto", "slow"] = "auto"
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    dtype: str = "auto"
    revision: str | None = None
    tokenizer_revision: str | None = None
    pipeline_parallel_size: int = 1
    context_parallel_size: int = 1
    gpus_per_node: int | None = None
    moe_cluster_parallel_size: int | None = None
    moe_tensor_parallel_size: int | None = None
    moe_expert_parallel_size: int | None = None
    enable_attention_dp: bool = False
    load_format: LoadFormat = LoadFormat.AUTO
    enable_lora: bool = False
    lora_config: Any = None
    kv_cache_config: KvCacheConfig = Field(default_factory=KvCacheConfig)
    enable_chunked_prefill: bool = False
    guided_decoding_backend: Literal["xgrammar", "llguidance"] | None = None
    scheduler_config: SchedulerConfig = Field(default_factory=SchedulerConfig)
    speculative_config: NGramDecodingConfig | DraftTargetDecodingConfig | None = None
    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_seq_len: int | None = None
    max_beam_width: int | None = None
    max_num_tokens: int | None = 8192
    num_postprocess_workers: int = 0
    return_perf_metrics: bool = False
    backend: str | None = None
    build_config: BuildConfig | None = None

    @model_validator(mode="after")
    def _defaults(self) -> BaseLlmArgs:
        if self.max_input_len is None:
            self.max_input_len = 1024
        for name in ("moe_cluster_parallel_size", "moe_tensor_parallel_size", "moe_expert_parallel_size"):
            if getattr(self, name) is None:
                setattr(self, name, -1)
        if self.build_config is None:
            names = ("max_batch_size", "max_num_tokens", "max_seq_len", "max_beam_width", "max_input_len")
            given = {name: getattr(self, name) for name in names if getattr(self, name)}
            self.build_config = BuildConfig(**given)
        if self.max_beam_width is None:
            self.max_beam_width = self.build_config.max_beam_width
        return self


class TorchLlmArgs(BaseLlmArgs):
    """Those of the PyTorch flow."""

    backend: str | None = "pytorch"
    cuda_graph_config: CudaGraphConfig | None = Field(default_factory=CudaGraphConfig)
    disable_overlap_scheduler: bool = False
    attn_backend: str = "TRTLLM"
    enable_iter_perf_stats: bool = False
    print_iter_log: bool = False
    perf_metrics_max_requests: int = 0
    torch_compile_config: Any = None
    enable_autotuner: bool = True
    enable_min_latency: bool = False
    stream_interval: int = 1
    force_dynamic_quantization: bool = False
    allreduce_strategy: str | None = "AUTO"
    checkpoint_format: str | None = None
    _quant_config: QuantConfig = PrivateAttr(default_factory=QuantConfig)

    @model_validator(mode="after")
    def _as_in_the_pytorch_flow(self) -> TorchLlmArgs:
        build = self.build_config
        assert build is not None
        for name in ("max_batch_size", "max_num_tokens", "max_seq_len", "max_input_len", "max_beam_width"):
            if getattr(build, name) is not None:
                setattr(self, name, getattr(build, name))
        graphs = self.cuda_graph_config
        if graphs is not None:
            if graphs.batch_sizes:
                if graphs.max_batch_size:
                    raise ValueError("Please don't set both cuda_graph_config.batch_sizes and max_batch_size.")
                graphs.max_batch_size = max(graphs.batch_sizes)
            else:
                graphs.max_batch_size = graphs.max_batch_size or 128
                graphs.batch_sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size <= graphs.max_batch_size]
        if self.kv_cache_config.dtype == "fp8":
            self._quant_config.kv_cache_quant_algo = QuantAlgo.FP8
        drafts = self.speculative_config
        if isinstance(drafts, NGramDecodingConfig):
            assert (drafts.max_draft_len or 0) > 0 and drafts.max_matching_ngram_size > 0
        if isinstance(drafts, DraftTargetDecodingConfig):
            model = getattr(drafts, "speculative_model", None) or getattr(drafts, "speculative_model_dir", None)
            assert model is not None, "Path to draft model must be specified."
        return self

    @property
    def quant_config(self) -> QuantConfig:
        return self._quant_config


class TrtLlmArgs(BaseLlmArgs):
    """Those of the flow with an engine that is built."""

    enable_tqdm: bool = False
    workspace: str | None = None
    enable_build_cache: Any = False
    extended_runtime_perf_knob_config: Any = None
    calib_config: Any = None
    quant_config: QuantConfig = Field(default_factory=QuantConfig)
    embedding_parallel_mode: str = "SHARDING_ALONG_VOCAB"
    fast_build: bool = False
    batching_type: Any = None
    normalize_log_probs: bool = False

    @model_validator(mode="after")
    def _what_it_can(self) -> TrtLlmArgs:
        assert self.kv_cache_config.dtype == "auto", "KvCacheConfig.dtype is not supported by the TensorRT backend."
        if self.speculative_config is not None:
            raise ValueError(f"Speculation type {self.speculative_config.decoding_type} does not support backend None")
        return self
