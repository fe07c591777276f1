"""The TensorRT-LLM backend (LLM API 1.2): its configuration section, rules and descriptor.

TensorRT-LLM has two ways to run a model: its PyTorch flow, which is the default, and an engine that is built ahead of
time (`build_engine`). Some settings exist in one of them only; the wrong pair is refused here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Self

from pydantic import Field, model_validator

from lem_domain.backends.spec import BackendSpec, LaunchMode
from lem_domain.config.model_base import ConfigModel, EngineModel, extras, key

if TYPE_CHECKING:
    from lem_domain.config.experiment import ExperimentConfig


class TensorrtKvCache(EngineModel, prefix="kv_cache_config."):
    """The cache of keys and values."""

    free_gpu_memory_fraction: float | None = key(
        None, "Share of the memory that is free after loading which the cache may take.", gt=0, le=1, unit="1"
    )
    max_tokens: int | None = key(
        None, "Tokens that it holds at most; the smaller of this and the share of memory counts.", ge=1, unit="tokens"
    )
    enable_block_reuse: bool | None = key(None, "Requests with a common beginning share its blocks.")
    enable_partial_reuse: bool | None = key(
        None,
        "Blocks that match in part are reused too; how many prompt tokens came from the cache is recorded "
        "only without it.",
    )
    host_cache_size: int | None = key(None, "Host memory that blocks are moved to.", ge=0, unit="bytes")
    dtype: Literal["auto", "fp8"] | None = key(
        None, "Number format of the cache in the PyTorch flow; a built engine has `quantization.kv_cache`."
    )


class TensorrtScheduler(ConfigModel):
    """The scheduler."""

    capacity_policy: Literal["MAX_UTILIZATION", "GUARANTEED_NO_EVICT", "STATIC_BATCH"] | None = key(
        None,
        "Requests that are admitted: as many as fit now, only those sure to finish, or whole batches.",
        engine="scheduler_config.capacity_scheduler_policy",
    )
    context_chunking_policy: Literal["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"] | None = key(
        None,
        "Whose prompt is worked on first where prompts are cut into chunks.",
        engine="scheduler_config.context_chunking_policy",
    )


class TensorrtCudaGraph(EngineModel, prefix="cuda_graph_config."):
    """CUDA graphs of decode steps, in the PyTorch flow."""

    enabled: bool = key(True, "false turns them off.", engine="cuda_graph_config")
    batch_sizes: tuple[int, ...] | None = key(None, "Batch sizes that get a graph.", min_length=1, unit="requests")
    max_batch_size: int | None = key(
        None, "The engine chooses sizes up to this one; instead of `batch_sizes`.", ge=1, unit="requests"
    )
    enable_padding: bool | None = key(None, "A batch is filled up to the next size that has a graph.")

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        given = [
            name for name in ("batch_sizes", "max_batch_size", "enable_padding") if getattr(self, name) is not None
        ]
        if not self.enabled and given:
            raise ValueError(f"{', '.join(given)} has no effect without CUDA graphs; remove it or set enabled: true")
        if self.batch_sizes is not None and self.max_batch_size is not None:
            raise ValueError("batch_sizes and max_batch_size say the same thing in two ways; keep one")
        if self.batch_sizes is not None and (
            min(self.batch_sizes) < 1 or tuple(sorted(set(self.batch_sizes))) != self.batch_sizes
        ):
            raise ValueError("batch_sizes must be whole numbers from 1 on in rising order, each once; sort them")
        return self


class TensorrtSpeculation(EngineModel, prefix="speculative_config."):
    """Speculative decoding, in the PyTorch flow."""

    method: Literal["ngram", "draft_target"] = Field(
        description="Drafts from earlier text of the request, or by a smaller model.",
        json_schema_extra=extras(engine="speculative_config (NGramDecodingConfig, DraftTargetDecodingConfig)"),
    )
    max_draft_len: int = Field(
        ge=1, le=64, description="Tokens drafted at once.", json_schema_extra=extras(unit="tokens")
    )
    max_matching_ngram_size: int | None = key(
        None, "Longest sequence of tokens that is looked up (`ngram`).", ge=1, le=64, unit="tokens"
    )
    model: str | None = key(
        None,
        "Folder or hub id of the smaller model (`draft_target`).",
        min_length=1,
        max_length=512,
        engine="speculative_config.speculative_model_dir",
    )

    @model_validator(mode="after")
    def _what_the_method_needs(self) -> Self:
        needed, other = (
            ("max_matching_ngram_size", "model")
            if self.method == "ngram"
            else (
                "model",
                "max_matching_ngram_size",
            )
        )
        if getattr(self, needed) is None:
            raise ValueError(f"method {self.method} needs {needed}; set it")
        if getattr(self, other) is not None:
            raise ValueError(f"{other} has no effect with method {self.method}; remove it")
        return self


class TensorrtQuantization(ConfigModel):
    """How a built engine's weights and cache are quantised. A checkpoint that is quantised already needs none of it."""

    algorithm: Literal["FP8", "NVFP4", "W8A16", "W4A16", "W4A16_AWQ", "W4A8_AWQ", "W8A8_SQ_PER_CHANNEL"] = Field(
        description="Bits of weights (W) and activations (A), and the way there; AWQ and SQ calibrate first.",
        json_schema_extra=extras(engine="quant_config.quant_algo"),
    )
    kv_cache: Literal["FP8", "INT8"] | None = key(
        None, "Number format of the cache of keys and values.", engine="quant_config.kv_cache_quant_algo"
    )


class TensorrtConfig(EngineModel):
    """Settings of the TensorRT-LLM backend. Unset means unset: the engine's own default applies."""

    tensor_parallel_size: int | None = key(None, "Devices that share every layer.", ge=1, le=64, unit="devices")
    pipeline_parallel_size: int | None = key(
        None, "Stages of layers, each on separate devices.", ge=1, le=64, unit="devices"
    )
    moe_tensor_parallel_size: int | None = key(None, "Devices that share every expert.", ge=1, le=64, unit="devices")
    moe_expert_parallel_size: int | None = key(
        None, "Parts that the experts are divided into.", ge=1, le=64, unit="devices"
    )
    max_batch_size: int | None = key(None, "Requests in flight at most.", ge=1, le=65_536, unit="requests")
    max_input_len: int | None = key(None, "Longest prompt.", ge=1, unit="tokens")
    max_seq_len: int | None = key(None, "Longest prompt with its answer.", ge=2, unit="tokens")
    max_num_tokens: int | None = key(None, "Tokens of all requests in one step at most.", ge=1, unit="tokens")
    max_beam_width: int | None = key(
        None, "Beams that the engine has room for; decoding uses one.", ge=1, le=64, unit="beams"
    )
    enable_chunked_prefill: bool | None = key(None, "Long prompts are worked on in parts, between decode steps.")
    kv_cache: TensorrtKvCache = Field(default_factory=TensorrtKvCache, description="The cache of keys and values.")
    scheduler: TensorrtScheduler = Field(default_factory=TensorrtScheduler, description="Which requests work together.")
    cuda_graph: TensorrtCudaGraph | None = Field(default=None, description="CUDA graphs of decode steps.")
    speculative: TensorrtSpeculation | None = Field(default=None, description="Speculative decoding.")
    build_engine: bool = key(
        False,
        "Compile the model into a TensorRT engine first, instead of running it in the PyTorch flow.",
        engine="tensorrt_llm._tensorrt_engine.LLM",
    )
    quantization: TensorrtQuantization | None = Field(default=None, description="Quantisation of a built engine.")
    engine_cache_dir: str | None = key(
        None,
        "Folder on the worker's machine where built engines are kept, each under a key of all that shapes "
        "it. Unset builds for every run.",
        min_length=1,
        max_length=1024,
        engine="LLM.save, LLM(model=<engine>)",
    )
    force_rebuild: bool = key(False, "Rebuild the engine and replace the one in `engine_cache_dir`.", engine="LLM.save")

    @property
    def devices_needed(self) -> int:
        """Accelerators that the parallel sizes take up."""
        return (self.tensor_parallel_size or 1) * (self.pipeline_parallel_size or 1)

    @model_validator(mode="after")
    def _settings_of_the_flow(self) -> Self:
        if self.build_engine:
            wrong = [name for name in ("cuda_graph", "speculative") if getattr(self, name) is not None]
            wrong += ["kv_cache.dtype"] if self.kv_cache.dtype is not None else []
            if wrong:
                raise ValueError(f"{', '.join(wrong)} belongs to the PyTorch flow; remove it or build_engine")
            return self
        wrong = [name for name in ("quantization", "engine_cache_dir") if getattr(self, name) is not None]
        wrong += ["force_rebuild"] if self.force_rebuild else []
        if wrong:
            raise ValueError(f"{', '.join(wrong)} needs a built engine; set build_engine: true or remove it")
        return self

    @model_validator(mode="after")
    def _rebuild_needs_a_cache(self) -> Self:
        if self.force_rebuild and self.engine_cache_dir is None:
            raise ValueError("force_rebuild has no effect without engine_cache_dir; set it or remove force_rebuild")
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.max_input_len is not None and self.max_seq_len is not None and self.max_input_len >= self.max_seq_len:
            raise ValueError(
                f"max_input_len {self.max_input_len} leaves nothing of max_seq_len {self.max_seq_len} for the answer; "
                "lower it"
            )
        return self

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        given = (self.moe_tensor_parallel_size, self.moe_expert_parallel_size)
        if None not in given and (given[0] or 1) * (given[1] or 1) != (self.tensor_parallel_size or 1):
            raise ValueError(
                f"moe_tensor_parallel_size {given[0]} times moe_expert_parallel_size {given[1]} must be "
                f"tensor_parallel_size {self.tensor_parallel_size or 1}; change one of them"
            )
        return self


def _float32(config: ExperimentConfig) -> str | None:
    if config.precision != "float32":
        return None
    return "TensorRT-LLM does not run in float32; set precision to float16, bfloat16 or auto"


def _parallel_sizes_are_not_the_devices(config: ExperimentConfig) -> str | None:
    settings = config.section(TensorrtConfig)
    if settings.devices_needed == config.devices.count:
        return None
    return (
        f"tensorrt.tensor_parallel_size {settings.tensor_parallel_size or 1} times "
        f"tensorrt.pipeline_parallel_size {settings.pipeline_parallel_size or 1} works on "
        f"{settings.devices_needed} devices and devices.count leases {config.devices.count}; "
        f"set devices.count: {settings.devices_needed}, or change the parallel sizes"
    )


def _sequences_too_long(config: ExperimentConfig) -> str | None:
    limit = config.section(TensorrtConfig).max_seq_len
    longest = config.input.max_tokens + config.output.max_tokens
    # With `truncate: error` the prompts decide, which are known only to the rank.
    if limit is None or config.input.truncate == "error" or longest <= limit:
        return None
    return (
        f"input.max_tokens {config.input.max_tokens} and output.max_tokens {config.output.max_tokens} are together "
        f"above tensorrt.max_seq_len {limit}; raise it or lower one of them"
    )


SPEC: Final = BackendSpec(
    name="tensorrt",
    title="TensorRT-LLM",
    section=TensorrtConfig,
    implementation="lem_worker.backends.tensorrt.backend:TensorrtBackend",
    extra="tensorrt",
    # Its pins exclude those of the other engines, and its packages are on NVIDIA's own index.
    sequences_key="max_batch_size",
    is_continuous=True,
    install_hint="run the worker in NVIDIA's image (Dockerfile.trt), or `pip install "
    "'llm-energy-measurement[tensorrt]' --extra-index-url https://pypi.nvidia.com` into a separate environment on a "
    "machine with an NVIDIA GPU of compute capability 8.0 or newer, and start the worker from there",
    modules=("tensorrt_llm",),
    distributions=("tensorrt-llm",),
    launch_mode=LaunchMode.ENGINE_MANAGED,
    image="Dockerfile.trt",
    rules=(
        _float32,
        _parallel_sizes_are_not_the_devices,
        _sequences_too_long,
    ),
    presets={"throughput": {"max_batch_size": 256}, "latency": {"max_batch_size": 1}},
)
