"""The effective configuration of a live PyTorch model."""

from __future__ import annotations

import torch
from pydantic.types import JsonValue
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lem_domain.backends.pytorch import PyTorchConfig, QuantizationConfig, TorchCompileConfig
from lem_domain.wire.runs import EffectiveParameter
from lem_worker.backends.pytorch import quantization
from lem_worker.backends.pytorch.decoding import Decoder
from lem_worker.backends.pytorch.model import LiveModel
from lem_worker.backends.pytorch.speculation import SpeculativeDecoder
from lem_worker.process.protocol import RankJob

_DECODING = {
    "top_k": (TopKLogitsWarper, "top_k"),
    "top_p": (TopPLogitsWarper, "top_p"),
    "min_p": (MinPLogitsWarper, "min_p"),
    "repetition_penalty": (RepetitionPenaltyLogitsProcessor, "penalty"),
}
"""The processor of each decoding key, and its attribute."""


def parameters(
    job: RankJob, live: LiveModel, decoder: Decoder | SpeculativeDecoder, *, rows: int, expected_rows: int
) -> tuple[EffectiveParameter, ...]:
    """Every parameter with its requested and effective value.

    `rows` is the number that a forward pass worked on; `expected_rows` is the number of the largest planned batch.
    """
    settings = job.config.section(PyTorchConfig)
    return (
        *_universal(job, live, decoder),
        *_batching(job, settings, rows=rows, expected_rows=expected_rows),
        _parameter("pytorch.attn_implementation", settings.attn_implementation, live.model.config._attn_implementation),
        *_cache(settings, decoder),
        *_compilation(settings.torch_compile, live),
        *_quantization(settings.quantization, live),
        *_speculation(job, settings, live, decoder),
        _parameter("pytorch.matmul_precision", settings.matmul_precision, torch.get_float32_matmul_precision()),
        _parameter("pytorch.num_threads", settings.num_threads, torch.get_num_threads()),
    )


def _universal(job: RankJob, live: LiveModel, decoder: Decoder | SpeculativeDecoder) -> list[EffectiveParameter]:
    config, decoding = job.config, job.config.decoding
    precision = str(next(live.model.parameters()).dtype).removeprefix("torch.")
    found = [
        _parameter("precision", None if config.precision == "auto" else config.precision, precision),
        _parameter("model.weights", config.model.weights, live.weights),
        # A branch or tag can't be compared with its commit; the proof is that the hub resolved it.
        EffectiveParameter(
            name="model.revision",
            requested=config.model.revision,
            effective=live.commit,
            confirmed=config.model.revision is None or live.commit is not None,
        ),
        _parameter("model.adapter", config.model.adapter, live.adapter),
        _parameter("device", None, str(live.device)),
        _parameter("output.mode", config.output.mode, "natural" if decoder.end_ids else "fixed"),
        _parameter("decoding.temperature", decoding.temperature, _temperature(decoder)),
    ]
    for key, (processor, attribute) in _DECODING.items():
        effective = _attribute(decoder.processors, processor, attribute)
        found.append(_parameter(f"decoding.{key}", getattr(decoding, key), effective))
    return found


def _batching(job: RankJob, settings: PyTorchConfig, *, rows: int, expected_rows: int) -> list[EffectiveParameter]:
    """The batching keys, judged by the rows that the live model got.

    Under dynamic batching the batch size is an upper bound, and the rows follow from the limit on tokens.
    """
    dynamic = settings.batching == "dynamic"
    as_planned = rows == expected_rows
    within = settings.batch_size == 1 or rows <= settings.batch_size
    return [
        EffectiveParameter(
            name="pytorch.batch_size",
            requested=None if dynamic and settings.batch_size == 1 else settings.batch_size,
            effective=rows,
            confirmed=as_planned and within if dynamic else rows == settings.batch_size,
        ),
        _parameter("pytorch.batching", settings.batching, settings.batching if as_planned else None),
        _parameter(
            "pytorch.max_tokens_per_batch",
            settings.max_tokens_per_batch,
            settings.max_tokens_per_batch if dynamic and as_planned else None,
        ),
        _parameter("pytorch.num_processes", settings.num_processes, job.world_size),
    ]


def _cache(settings: PyTorchConfig, decoder: Decoder | SpeculativeDecoder) -> list[EffectiveParameter]:
    return [
        _parameter("pytorch.use_cache", settings.use_cache, decoder.cache is not None),
        _parameter("pytorch.cache_implementation", settings.cache_implementation, decoder.cache),
    ]


def _compilation(wanted: TorchCompileConfig | None, live: LiveModel) -> list[EffectiveParameter]:
    found: dict[str, JsonValue] = {"enabled": False} if live.compiled is None else live.compiled.in_force()
    return [
        _parameter(
            f"pytorch.torch_compile.{key}",
            None if wanted is None or not (wanted.enabled or key == "enabled") else getattr(wanted, key),
            found.get(key),
        )
        for key in TorchCompileConfig.model_fields
    ]


def _quantization(wanted: QuantizationConfig | None, live: LiveModel) -> list[EffectiveParameter]:
    found = quantization.in_force(live.model)
    return [
        _parameter(f"pytorch.quantization.{key}", None if wanted is None else getattr(wanted, key), found[key])
        for key in QuantizationConfig.model_fields
    ]


def _speculation(
    job: RankJob, settings: PyTorchConfig, live: LiveModel, decoder: Decoder | SpeculativeDecoder
) -> list[EffectiveParameter]:
    drafter = decoder.drafter if isinstance(decoder, SpeculativeDecoder) else {}
    assisted = settings.assisted_decoding
    model = drafter.get("assisted_decoding.model")
    if assisted is not None and live.assistant is not None and model == job.assistant_path:
        model = assisted.model  # the configured name; the engine knows only its folder
    return [
        _parameter("pytorch.assisted_decoding.model", None if assisted is None else assisted.model, model),
        _parameter(
            "pytorch.assisted_decoding.num_tokens",
            None if assisted is None else assisted.num_tokens,
            drafter.get("assisted_decoding.num_tokens"),
        ),
        _parameter("pytorch.prompt_lookup_tokens", settings.prompt_lookup_tokens, drafter.get("prompt_lookup_tokens")),
    ]


def _parameter(name: str, requested: JsonValue, effective: JsonValue) -> EffectiveParameter:
    confirmed = requested is None or requested == effective
    return EffectiveParameter(name=name, requested=requested, effective=effective, confirmed=confirmed)


def _temperature(decoder: Decoder | SpeculativeDecoder) -> float:
    if not decoder.samples:
        return 0.0
    temperature = _attribute(decoder.processors, TemperatureLogitsWarper, "temperature")
    return 1.0 if temperature is None else temperature


def _attribute(processors: LogitsProcessorList, kind: type, name: str) -> float | None:
    for processor in processors:
        if isinstance(processor, kind):
            value: float = getattr(processor, name)
            return value
    return None
