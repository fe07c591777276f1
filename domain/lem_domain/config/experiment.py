"""One experiment: the universal keys, which mean the same for every backend, and a section per backend.

A key is added only together with a test that proves its effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, create_model

from lem_domain.backends.registry import BACKENDS, BackendName, backend_spec
from lem_domain.config import experiment_rules
from lem_domain.config.devices import DevicesConfig
from lem_domain.config.footprint import CarbonConfig, CostConfig
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
from lem_domain.config.model_base import ConfigModel, Rule, key, not_above, refuse_if
from lem_domain.config.presets import DecodingPreset, decoding_presets_in_words, expand_decoding
from lem_domain.config.prompt_sources import HuggingFacePrompts, SyntheticPrompts
from lem_domain.ids import Sha256


class ModelConfig(ConfigModel):
    """The measured model."""

    id: str = Field(
        min_length=1,
        max_length=512,
        description="A Hugging Face Hub id, a folder on the worker's machine, or `builtin:smollm2-135m-instruct` / "
        "`builtin:tiny-llama`, which need no download.",
    )
    revision: str | None = key(None, "Branch, tag or commit on the Hub.", min_length=1, max_length=200)
    adapter: str | None = key(
        None,
        "A LoRA adapter that every request uses "
        f"({', '.join(spec.name for spec in BACKENDS if spec.loads_adapters)}): a Hub id, or a folder on the worker's "
        "machine.",
        min_length=1,
        max_length=512,
        engine="load_adapter, lora_request",
    )
    weights: Literal["checkpoint", "dummy"] = key(
        "checkpoint", "`dummy` gives the model random weights: its energy and speed without a checkpoint."
    )


def _several_sources(prompts: PromptsConfig) -> str | None:
    sources = ("builtin", "file", "dataset", "synthetic", "huggingface")
    given = [name for name in sources if getattr(prompts, name) is not None]
    return f"{' and '.join(given)} are set together; keep one source of prompts" if len(given) > 1 else None


class PromptsConfig(ConfigModel):
    """The prompts. At most one of `builtin`, `file`, `dataset`, `synthetic` and `huggingface`; none means
    the built-in set."""

    builtin: str | None = key(
        None, "Name of a built-in set; `lemctl datasets` lists them.", min_length=1, max_length=200
    )
    file: str | None = key(
        None,
        "A text file (one prompt per line) or a JSONL file, relative to the campaign file; `lemctl` "
        "uploads it and submits its digest instead.",
        min_length=1,
        max_length=1000,
    )
    column: str | None = key(
        None, "The JSONL file's column that holds the prompt (default `text`).", min_length=1, max_length=200
    )
    dataset: Sha256 | None = key(None, "Digest of an uploaded set of prompts.")
    synthetic: SyntheticPrompts | None = key(None, "Generated prompts of a given length.")
    huggingface: HuggingFacePrompts | None = key(None, "Prompts of a dataset on the Hub, read by the worker.")
    sample_size: int | None = key(None, "Number of prompts to use; unset uses all.", ge=1, le=1_000_000, unit="prompts")
    order: Literal["as_is", "shuffled", "longest_first"] = key(
        "as_is",
        "Order of sending. `longest_first` compares lengths in characters, which do not depend on the "
        "model; lengths of `synthetic` prompts in tokens.",
    )
    seed: int = key(0, "Seed of `shuffled`; sampling takes the first prompts after ordering.", ge=0)
    chat_template: bool = key(False, "Wrap each prompt in the model's chat template as a user turn.")

    rules: ClassVar[tuple[Rule, ...]] = (
        _several_sources,
        refuse_if(
            lambda prompts: prompts.column is not None and prompts.file is None,
            "column names a column of `file`; set `file` or remove column",
        ),
        refuse_if(
            lambda prompts: prompts.synthetic is not None and prompts.chat_template,
            "chat_template has no effect on synthetic prompts; remove it or choose another source",
        ),
    )


class InputConfig(ConfigModel):
    """Limits on the length of prompts."""

    max_tokens: int = key(512, "Longest prompt in tokens.", ge=1, le=1_000_000, unit="tokens")
    truncate: Literal["error", "left", "right"] = key(
        "error", "A longer prompt is an error, or is truncated on that side."
    )


class OutputConfig(ConfigModel):
    """Length of the output."""

    max_tokens: int = key(128, "Most tokens generated per request.", ge=1, le=100_000, unit="tokens")
    min_tokens: int = key(0, "Fewest tokens before the end of sequence.", ge=0, le=100_000, unit="tokens")
    mode: Literal["fixed", "natural"] = key(
        "fixed",
        "`fixed`: exactly max_tokens, the end of sequence is ignored (for comparisons); "
        "`natural`: generation stops at the model's end of sequence.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        not_above("min_tokens", "max_tokens"),
        refuse_if(
            lambda output: output.min_tokens > 0 and output.mode == "fixed",
            "min_tokens has no effect under mode fixed, which gives max_tokens; remove it or set mode: natural",
        ),
    )


def _sampling_under_greedy(decoding: DecodingConfig) -> str | None:
    given = [name for name in ("top_k", "top_p", "min_p") if getattr(decoding, name) is not None]
    if decoding.temperature > 0 or not given:
        return None
    return f"{', '.join(given)} has no effect under greedy decoding; set temperature above 0 or remove it"


class DecodingConfig(ConfigModel):
    """Choice of the next token. Greedy unless `temperature` is above 0."""

    preset: DecodingPreset | None = Field(
        default=None,
        exclude=True,
        description="A named set of values, which replaces the name; values written next to it take precedence. "
        f"{decoding_presets_in_words()}.",
    )
    temperature: float = key(0.0, "0 is greedy; above it, sampling.", ge=0, le=100, unit="1")
    top_k: int | None = key(None, "Sample from the k most likely tokens.", ge=1, unit="tokens")
    top_p: float | None = key(
        None, "Sample from the smallest set of tokens with this probability mass.", gt=0, le=1, unit="1"
    )
    min_p: float | None = key(
        None, "Drop tokens below this fraction of the most likely token's probability.", gt=0, le=1, unit="1"
    )
    repetition_penalty: float | None = key(
        None, "Divides the logits of tokens seen before (CTRL, arXiv:1909.05858).", gt=0, le=10, unit="1"
    )
    seed: int = key(0, "Seed of sampling.", ge=0, le=2**63 - 1)

    rules: ClassVar[tuple[Rule, ...]] = (_sampling_under_greedy,)


Section = TypeVar("Section", bound=ConfigModel)


def _model_from_text(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


class UniversalConfig(ConfigModel):
    """The keys of an experiment that mean the same for every backend."""

    backend: BackendName = key(BackendName("pytorch"), "The engine that runs the model.")
    model: Annotated[ModelConfig, BeforeValidator(_model_from_text, json_schema_input_type=str | ModelConfig)] = Field(
        description="The model; a text is its id."
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = key(
        "auto",
        "Number format of the weights; auto leaves it to the engine: the checkpoint's format, except that "
        "vLLM uses a 16-bit one for a float32 checkpoint.",
    )
    prompts: PromptsConfig = Field(default_factory=PromptsConfig, description="The prompts.")
    input: InputConfig = Field(default_factory=InputConfig, description="Prompt length.")
    output: OutputConfig = Field(default_factory=OutputConfig, description="Output length.")
    decoding: Annotated[
        DecodingConfig, BeforeValidator(expand_decoding, json_schema_input_type=DecodingPreset | DecodingConfig)
    ] = Field(default_factory=DecodingConfig, description="Choice of tokens; a text is a preset's name.")
    devices: DevicesConfig = Field(default_factory=DevicesConfig, description="Devices of a run.")
    traffic: TrafficConfig = Field(default_factory=TrafficConfig, description="How requests arrive.")
    window: WindowConfig = Field(default_factory=WindowConfig, description="The measured window.")
    warmup: WarmupConfig = Field(default_factory=WarmupConfig, description="Requests before the window.")
    baseline: BaselineConfig = Field(default_factory=BaselineConfig, description="Power without work.")
    settle: SettleConfig = Field(default_factory=SettleConfig, description="Wait between warm-up and window.")
    energy: EnergyConfig = Field(default_factory=EnergyConfig, description="Power and energy sources.")
    record: RecordConfig = Field(default_factory=RecordConfig, description="Recorded evidence.")
    limits: LimitsConfig = Field(default_factory=LimitsConfig, description="Time limits.")
    prefill_probe: bool = key(
        False,
        "After the window send the same prompts again for one output token each, in a separate window: "
        "energy of prefill, and of decode as the difference, even with continuous batching.",
    )
    quality: bool = key(False, "After the window measure the model's perplexity on a built-in text (PyTorch backend).")
    carbon: CarbonConfig | None = key(None, "Carbon per energy.")
    cost: CostConfig | None = key(None, "Price of energy.")
    allow: tuple[str, ...] = key(
        (),
        "Parameters by dotted path (as in `pytorch.batch_size`) whose effective value may differ from the "
        "requested one: the run then continues, and its result has a warning.",
        max_length=100,
    )

    rules: ClassVar[tuple[Rule, ...]] = experiment_rules.RULES

    def section(self, kind: type[Section]) -> Section:
        """The settings of a backend; all defaults where the experiment has no such section."""
        given = next((getattr(self, spec.name) for spec in BACKENDS if spec.section is kind), None)
        return given if isinstance(given, kind) else kind()

    @property
    def processes(self) -> int:
        """Number of ranks of an attempt."""
        spec = backend_spec(self.backend)
        return spec.processes(self.section(spec.section))


if TYPE_CHECKING:
    # The sections are known at run time only; typed code reads one by `section`.
    ExperimentConfig = UniversalConfig
else:
    ExperimentConfig = create_model(
        "ExperimentConfig",
        __base__=UniversalConfig,
        __module__=__name__,
        __doc__="One fully resolved experiment; equal ones have equal hashes (see `lem_domain.config.hashing`).",
        **{
            spec.name: (
                spec.section | None,
                key(None, f"Settings of the {spec.title} backend."),
            )
            for spec in BACKENDS
        },
    )
