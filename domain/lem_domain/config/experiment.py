"""The universal tier: one experiment, with the keys that mean the same for every backend.

Every key stands here only with a test that proves that it takes effect.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from lem_domain.config.devices import DevicesConfig
from lem_domain.config.measurement import (
    BaselineConfig,
    EnergyConfig,
    LimitsConfig,
    RecordConfig,
    SettleConfig,
    TrafficConfig,
    WarmupConfig,
    WindowConfig,
)
from lem_domain.config.model_base import ConfigModel, unit
from lem_domain.config.pytorch import PyTorchConfig
from lem_domain.config.simulated import SimulatedConfig
from lem_domain.config.tensorrt import TensorrtConfig
from lem_domain.config.vllm import VllmConfig
from lem_domain.ids import Sha256

__all__ = [
    "BackendName",
    "BaselineConfig",
    "DecodingConfig",
    "DevicesConfig",
    "EnergyConfig",
    "ExperimentConfig",
    "InputConfig",
    "LimitsConfig",
    "ModelConfig",
    "OutputConfig",
    "PromptsConfig",
    "RecordConfig",
    "SettleConfig",
    "TrafficConfig",
    "WarmupConfig",
    "WindowConfig",
]


class BackendName(StrEnum):
    """The engines. A backend joins this list when its worker exists."""

    PYTORCH = "pytorch"
    TENSORRT = "tensorrt"
    VLLM = "vllm"
    SIMULATED = "simulated"


class ModelConfig(ConfigModel):
    """Which model is measured."""

    id: str = Field(
        min_length=1,
        max_length=512,
        description="A hub id, a folder on the worker's machine, or `builtin:smollm2-135m-instruct` / "
        "`builtin:tiny-llama`, which need no download.",
    )
    revision: str | None = Field(
        default=None, min_length=1, max_length=200, description="Branch, tag or commit on the hub."
    )
    weights: Literal["checkpoint", "dummy"] = Field(
        default="checkpoint",
        description="`dummy` gives the model's shape random weights: energy and speed without its checkpoint.",
    )


class PromptsConfig(ConfigModel):
    """Which prompts are sent. At most one of `builtin`, `file` and `dataset`; none means the built-in set."""

    builtin: str | None = Field(
        default=None, min_length=1, max_length=200, description="Name of a built-in set; `lemctl datasets` lists them."
    )
    file: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="A text file (one prompt per line) or JSONL file beside the campaign file; `lemctl` uploads it "
        "and submits its digest instead.",
    )
    column: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="The JSONL file's column that holds the prompt (default `text`).",
    )
    dataset: Sha256 | None = Field(default=None, description="Digest of an uploaded set of prompts.")
    sample_size: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Use only so many prompts; unset uses all.",
        json_schema_extra=unit("prompts"),
    )
    order: Literal["as_is", "shuffled", "longest_first"] = Field(
        default="as_is", description="The order they are sent in."
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of `shuffled`; sampling takes the first prompts after ordering."
    )
    chat_template: bool = Field(
        default=False, description="Wrap each prompt in the model's chat template as a user turn."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("builtin", "file", "dataset") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both set; keep one source of prompts")
        if self.column is not None and self.file is None:
            raise ValueError("column names a column of `file`; set `file` or remove column")
        return self


class InputConfig(ConfigModel):
    """What happens to long prompts."""

    max_tokens: int = Field(
        default=512, ge=1, le=1_000_000, description="Longest prompt in tokens.", json_schema_extra=unit("tokens")
    )
    truncate: Literal["error", "left", "right"] = Field(
        default="error", description="A longer prompt is an error, or loses tokens at that side."
    )


class OutputConfig(ConfigModel):
    """How much is generated."""

    max_tokens: int = Field(
        default=128,
        ge=1,
        le=100_000,
        description="Most tokens generated per request.",
        json_schema_extra=unit("tokens"),
    )
    min_tokens: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="No end of sequence before so many tokens.",
        json_schema_extra=unit("tokens"),
    )
    mode: Literal["fixed", "natural"] = Field(
        default="fixed",
        description="`fixed`: exactly max_tokens, the end of sequence is ignored (for comparisons); "
        "`natural`: the model ends when it ends.",
    )

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}; lower it")
        return self


class DecodingConfig(ConfigModel):
    """How the next token is chosen. Greedy unless `temperature` is above 0."""

    temperature: float = Field(
        default=0.0, ge=0, le=100, description="0 is greedy; above it, sampling.", json_schema_extra=unit("1")
    )
    top_k: int | None = Field(
        default=None, ge=1, description="Sample from the k most likely tokens only.", json_schema_extra=unit("tokens")
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Sample from the smallest set of this probability mass.",
        json_schema_extra=unit("1"),
    )
    min_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Drop tokens below this fraction of the likeliest token's probability.",
        json_schema_extra=unit("1"),
    )
    repetition_penalty: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Divides the logits of tokens seen before (CTRL, arXiv:1909.05858).",
        json_schema_extra=unit("1"),
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Seed of the sampling.")

    @model_validator(mode="after")
    def _sampling_needs_temperature(self) -> Self:
        if self.temperature == 0:
            given = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name) is not None]
            if given:
                raise ValueError(
                    f"{', '.join(given)} has no effect under greedy decoding; set temperature above 0 or remove it"
                )
        return self


def _model_from_text(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


class ExperimentConfig(ConfigModel):
    """One fully resolved experiment; equal ones have equal hashes (see `lem_domain.config.hashing`)."""

    backend: BackendName = Field(default=BackendName.PYTORCH, description="The engine that runs the model.")
    model: Annotated[ModelConfig, BeforeValidator(_model_from_text)] = Field(
        description="The model; a plain text is its id."
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="Number format of the weights; auto leaves it to the engine: the checkpoint's own, but vLLM takes "
        "a 16-bit one for a float32 checkpoint.",
    )
    prompts: PromptsConfig = Field(default_factory=PromptsConfig, description="The prompts.")
    input: InputConfig = Field(default_factory=InputConfig, description="Prompt length.")
    output: OutputConfig = Field(default_factory=OutputConfig, description="Output length.")
    decoding: DecodingConfig = Field(default_factory=DecodingConfig, description="Choice of tokens.")
    devices: DevicesConfig = Field(default_factory=DevicesConfig, description="Devices of a run.")
    traffic: TrafficConfig = Field(default_factory=TrafficConfig, description="How requests arrive.")
    window: WindowConfig = Field(default_factory=WindowConfig, description="The measured window.")
    warmup: WarmupConfig = Field(default_factory=WarmupConfig, description="Before the window.")
    baseline: BaselineConfig = Field(default_factory=BaselineConfig, description="Power without work.")
    settle: SettleConfig = Field(default_factory=SettleConfig, description="Waiting for a cool device.")
    energy: EnergyConfig = Field(default_factory=EnergyConfig, description="Power and energy sources.")
    record: RecordConfig = Field(default_factory=RecordConfig, description="Evidence kept.")
    limits: LimitsConfig = Field(default_factory=LimitsConfig, description="Time limits.")
    pytorch: PyTorchConfig | None = Field(default=None, description="Settings of the PyTorch backend.")
    tensorrt: TensorrtConfig | None = Field(default=None, description="Settings of the TensorRT-LLM backend.")
    vllm: VllmConfig | None = Field(default=None, description="Settings of the vLLM backend.")
    simulated: SimulatedConfig | None = Field(default=None, description="Settings of the simulated backend.")

    @model_validator(mode="after")
    def _only_own_section(self) -> Self:
        for name in BackendName:
            if name is not self.backend and getattr(self, name.value) is not None:
                raise ValueError(
                    f"section {name.value!r} belongs to another backend than {self.backend.value!r}; "
                    f"remove it or set backend: {name.value}"
                )
        return self

    @model_validator(mode="after")
    def _tensorrt_can(self) -> Self:
        if self.backend is not BackendName.TENSORRT:
            return self
        if self.precision == "float32":
            raise ValueError("TensorRT-LLM does not run in float32; set precision to float16, bfloat16 or auto")
        settings = self.tensorrt or TensorrtConfig()
        if settings.devices_needed != self.devices.count:
            raise ValueError(
                f"tensorrt.tensor_parallel_size {settings.tensor_parallel_size or 1} times "
                f"tensorrt.pipeline_parallel_size {settings.pipeline_parallel_size or 1} works on "
                f"{settings.devices_needed} devices and devices.count leases {self.devices.count}; "
                f"set devices.count: {settings.devices_needed}, or change the parallel sizes"
            )
        longest = self.input.max_tokens + self.output.max_tokens
        if settings.max_seq_len is not None and self.input.truncate != "error" and longest > settings.max_seq_len:
            raise ValueError(
                f"input.max_tokens {self.input.max_tokens} and output.max_tokens {self.output.max_tokens} are together "
                f"above tensorrt.max_seq_len {settings.max_seq_len}; raise it or lower one of them"
            )
        return self

    @property
    def processes(self) -> int:
        """How many ranks an attempt of this experiment has."""
        return self.simulated.num_processes if self.backend is BackendName.SIMULATED and self.simulated else 1
