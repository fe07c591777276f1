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

from lem_domain.backends.pytorch import PyTorchConfig, TorchCompileConfig
from lem_domain.wire.runs import EffectiveParameter
from lem_worker.backends.pytorch import quantization
from lem_worker.backends.pytorch.decoding import Decoder
from lem_worker.backends.pytorch.model import LiveModel
from lem_worker.backends.pytorch.speculation import SpeculativeDecoder
from lem_worker.backends.readback import compared, compared_keys, of_model, of_revision
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
        *compared_keys(
            "pytorch",
            settings,
            {
                "attn_implementation": live.model.config._attn_implementation,
                "use_cache": decoder.cache is not None,
                "cache_implementation": decoder.cache,
            },
        ),
        *_compilation(settings.torch_compile, live),
        *compared_keys("pytorch.quantization", settings.quantization, quantization.in_force(live.model)),
        *_speculation(job, settings, live, decoder),
        compared("pytorch.matmul_precision", settings.matmul_precision, torch.get_float32_matmul_precision()),
        compared("pytorch.num_threads", settings.num_threads, torch.get_num_threads()),
    )


def _universal(job: RankJob, live: LiveModel, decoder: Decoder | SpeculativeDecoder) -> list[EffectiveParameter]:
    config, decoding = job.config, job.config.decoding
    precision = str(next(live.model.parameters()).dtype).removeprefix("torch.")
    found = [
        *of_model(config, precision=precision, weights=live.weights),
        of_revision(config, live.commit),
        compared("model.adapter", config.model.adapter, live.adapter),
        compared("device", None, str(live.device)),
        compared("output.mode", config.output.mode, "natural" if decoder.end_ids else "fixed"),
        compared("decoding.temperature", decoding.temperature, _temperature(decoder)),
    ]
    for key, (processor, attribute) in _DECODING.items():
        effective = _attribute(decoder.processors, processor, attribute)
        found.append(compared(f"decoding.{key}", getattr(decoding, key), effective))
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
        compared("pytorch.batching", settings.batching, settings.batching if as_planned else None),
        compared(
            "pytorch.max_tokens_per_batch",
            settings.max_tokens_per_batch,
            settings.max_tokens_per_batch if dynamic and as_planned else None,
        ),
        compared("pytorch.num_processes", settings.num_processes, job.world_size),
    ]


def _compilation(wanted: TorchCompileConfig | None, live: LiveModel) -> list[EffectiveParameter]:
    found: dict[str, JsonValue] = {"enabled": False} if live.compiled is None else live.compiled.in_force()
    return [
        compared(
            f"pytorch.torch_compile.{key}",
            None if wanted is None or not (wanted.enabled or key == "enabled") else getattr(wanted, key),
            found.get(key),
        )
        for key in TorchCompileConfig.model_fields
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
        *compared_keys(
            "pytorch.assisted_decoding",
            assisted,
            {"model": model, "num_tokens": drafter.get("assisted_decoding.num_tokens")},
        ),
        compared("pytorch.prompt_lookup_tokens", settings.prompt_lookup_tokens, drafter.get("prompt_lookup_tokens")),
    ]


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
