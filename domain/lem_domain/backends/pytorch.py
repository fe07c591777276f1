"""The PyTorch backend (transformers 5): its configuration section, rules and descriptor.

The names are the engine's own. docs/backends.md lists the options of transformers and torch that are not offered, with
the reasons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Self

from pydantic import Field, model_validator

from lem_domain.backends.spec import BackendSpec, LaunchMode
from lem_domain.config.model_base import ConfigModel, extras, key

if TYPE_CHECKING:
    from lem_domain.config.experiment import ExperimentConfig

Dtype = Literal["float32", "float16", "bfloat16"]


class TorchCompileConfig(ConfigModel):
    """torch.compile of the model's forward pass, before the window."""

    enabled: bool = key(True, "Compile the model's forward pass.", engine="torch.compile")
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = key(
        None,
        "How much time the compiler spends on optimisation; of the inductor backend only.",
        engine="torch.compile(mode)",
    )
    backend: Literal["inductor", "eager", "aot_eager"] | None = key(
        None,
        "The compiler of the captured graph; `eager` and `aot_eager` capture it and compile nothing.",
        engine="torch.compile(backend)",
    )
    fullgraph: Literal[True] | None = key(
        None, "Fail where the forward pass can't be captured as one graph.", engine="torch.compile(fullgraph)"
    )
    dynamic: bool | None = key(
        None,
        "Compile once for all shapes (true), for each shape (false), or as torch finds best (unset).",
        engine="torch.compile(dynamic)",
    )

    @model_validator(mode="after")
    def _mode_needs_inductor(self) -> Self:
        if self.mode is not None and self.backend not in {None, "inductor"}:
            raise ValueError(
                f"mode {self.mode} is an option of the inductor backend and backend is {self.backend}; "
                "remove mode or set backend: inductor"
            )
        given = [name for name in ("mode", "backend", "fullgraph", "dynamic") if getattr(self, name) is not None]
        if not self.enabled and given:
            raise ValueError(f"enabled is false, so {', '.join(given)} would do nothing; remove it or enable it")
        return self


class QuantizationConfig(ConfigModel):
    """Weights in fewer bits, made from the checkpoint while it loads."""

    load_in_8bit: bool = key(
        False, "8-bit weights by bitsandbytes (LLM.int8(), arXiv:2208.07339).", engine="BitsAndBytesConfig.load_in_8bit"
    )
    load_in_4bit: bool = key(
        False, "4-bit weights by bitsandbytes (QLoRA, arXiv:2305.14314).", engine="BitsAndBytesConfig.load_in_4bit"
    )
    compute_dtype: Dtype | None = key(
        None, "Number format that 4-bit weights are multiplied in.", engine="BitsAndBytesConfig.bnb_4bit_compute_dtype"
    )
    quant_type: Literal["fp4", "nf4"] | None = key(
        None, "The 4-bit number format.", engine="BitsAndBytesConfig.bnb_4bit_quant_type"
    )
    torchao: Literal["int8_weight_only", "int8_dynamic_activation_int8_weight", "float8_weight_only"] | None = key(
        None, "A scheme of torchao.", engine="TorchAoConfig.quant_type"
    )

    @model_validator(mode="after")
    def _one_scheme(self) -> Self:
        chosen = [name for name in ("load_in_8bit", "load_in_4bit", "torchao") if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} are both set; keep one of them")
        if not chosen:
            raise ValueError("no scheme is set; set load_in_8bit, load_in_4bit or torchao, or remove quantization")
        four = [name for name in ("compute_dtype", "quant_type") if getattr(self, name) is not None]
        if four and not self.load_in_4bit:
            raise ValueError(f"{', '.join(four)} belongs to load_in_4bit; set that or remove it")
        return self


class AssistedDecodingConfig(ConfigModel):
    """A smaller model drafts tokens, and the measured model checks several of them in one pass."""

    model: str = Field(
        min_length=1,
        max_length=512,
        description="Hub id, folder or built-in name of the drafting model, which must share the tokenizer.",
        json_schema_extra=extras(engine="generate(assistant_model)"),
    )
    num_tokens: int | None = key(
        None,
        "Tokens drafted in each step, always so many; unset lets transformers adapt it.",
        ge=1,
        le=64,
        unit="tokens",
        engine="GenerationConfig.num_assistant_tokens",
    )


class PyTorchConfig(ConfigModel):
    """Settings of the PyTorch backend (transformers 5). Unset means unset: the engine's own default applies."""

    batch_size: int = key(
        1,
        "Most requests that are decoded together, in lockstep. Under dynamic batching, 1 (the default) "
        "leaves max_tokens_per_batch as the only bound.",
        ge=1,
        le=4096,
        unit="requests",
        engine="rows of input_ids",
    )
    batching: Literal["static", "dynamic", "length_sorted"] = key(
        "static",
        "How requests that wait become batches. static: in their order, batch_size at a time; dynamic: in "
        "their order, as many as fit into max_tokens_per_batch; length_sorted: the longest prompts first, so that "
        "rows of like length share a batch and little is padded.",
        engine="rows of input_ids",
    )
    max_tokens_per_batch: int | None = key(
        None,
        "Of dynamic batching: most tokens of a batch, rows times (longest prompt + output.max_tokens).",
        ge=1,
        le=100_000_000,
        unit="tokens",
        engine="size of input_ids and of what is generated",
    )
    num_processes: int = key(
        1,
        "Data parallel: processes with a copy of the model each, among which the prompts are divided. "
        "More than one are started by `accelerate launch`.",
        ge=1,
        le=64,
        unit="processes",
        engine="accelerate launch --num_processes",
    )
    attn_implementation: Literal["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"] | None = (
        key(
            None,
            "The attention kernel family. flash_attention_2 and 3 need an NVIDIA GPU and their packages; "
            "a worker without them refuses them.",
            engine="attn_implementation",
        )
    )
    use_cache: bool = key(
        True,
        "Keep keys and values of earlier tokens; without, every step computes the whole sequence again.",
        engine="use_cache",
    )
    cache_implementation: Literal["dynamic", "static"] | None = key(
        None,
        "How keys and values are kept: growing with the sequence (dynamic, when unset), or allocated at "
        "once for its greatest length (static).",
        engine="cache_implementation",
    )
    torch_compile: TorchCompileConfig | None = key(None, "Compilation of the model.", engine="torch.compile")
    quantization: QuantizationConfig | None = key(None, "Weights in fewer bits.", engine="quantization_config")
    assisted_decoding: AssistedDecodingConfig | None = key(
        None, "Speculation with a drafting model; one request at a time.", engine="generate(assistant_model)"
    )
    prompt_lookup_tokens: int | None = key(
        None,
        "Speculation from the prompt itself: most tokens copied from an earlier position; one request at a time.",
        ge=1,
        le=64,
        unit="tokens",
        engine="GenerationConfig.prompt_lookup_num_tokens",
    )
    matmul_precision: Literal["highest", "high", "medium"] | None = key(
        None,
        "What float32 products may be computed in: float32, TensorFloat-32 or bfloat16, where the processor has it.",
        engine="torch.set_float32_matmul_precision",
    )
    num_threads: int | None = key(
        None, "CPU threads inside one operator.", ge=1, le=1024, unit="threads", engine="torch.set_num_threads"
    )

    @property
    def speculates(self) -> bool:
        """Whether several tokens of a request may come in one step."""
        return self.assisted_decoding is not None or self.prompt_lookup_tokens is not None

    @property
    def compiles(self) -> bool:
        """Whether the model is compiled."""
        return self.torch_compile is not None and self.torch_compile.enabled

    @model_validator(mode="after")
    def _batches_can_be_made(self) -> Self:
        if (self.batching == "dynamic") != (self.max_tokens_per_batch is not None):
            if self.batching == "dynamic":
                raise ValueError("batching dynamic needs a limit; set max_tokens_per_batch")
            raise ValueError(
                f"max_tokens_per_batch belongs to dynamic batching and batching is {self.batching}; "
                "remove it or set batching: dynamic"
            )
        return self

    @model_validator(mode="after")
    def _cache_is_used(self) -> Self:
        if not self.use_cache and self.cache_implementation is not None:
            raise ValueError(
                f"use_cache is false, so there is no {self.cache_implementation} cache; remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _speculation_fits(self) -> Self:
        if not self.speculates:
            return self
        if self.assisted_decoding is not None and self.prompt_lookup_tokens is not None:
            raise ValueError("assisted_decoding and prompt_lookup_tokens are both set; keep one way of speculation")
        name = "assisted_decoding" if self.assisted_decoding is not None else "prompt_lookup_tokens"
        if self.batching != "static" or self.batch_size > 1:
            raise ValueError(f"{name} works on one request at a time; remove batching and set batch_size to 1")
        if not self.use_cache or self.cache_implementation == "static":
            raise ValueError(f"{name} needs a dynamic cache; remove use_cache and cache_implementation")
        if self.compiles:
            raise ValueError(f"{name} can't be combined with torch_compile; remove one of them")
        return self


def _more_processes_than_gpus(config: ExperimentConfig) -> str | None:
    size = config.section(PyTorchConfig).num_processes
    if not config.devices.leases_gpus or size <= config.devices.count:
        return None
    return (
        f"pytorch.num_processes {size} needs as many GPUs and devices.count leases {config.devices.count}; "
        f"set devices.count: {size}"
    )


SPEC: Final = BackendSpec(
    name="pytorch",
    title="PyTorch",
    section=PyTorchConfig,
    implementation="lem_worker.backends.pytorch.backend:PyTorchBackend",
    extra="pytorch",
    sequences_key="batch_size",
    install_hint="install llm-energy-measurement[pytorch] in this worker's environment",
    modules=("torch", "transformers"),
    distributions=("torch",),
    launch_mode=LaunchMode.ACCELERATE,
    image="Dockerfile.pytorch",
    processes=lambda settings: settings.num_processes,
    assistant_model=lambda settings: settings.assisted_decoding and settings.assisted_decoding.model,
    rules=(_more_processes_than_gpus,),
    presets={"throughput": {"batch_size": 32}, "latency": {"batch_size": 1}},
    loads_adapters=True,
    scores_quality=True,
)
