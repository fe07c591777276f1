"""What the live PyTorch model says is in force, beside what was asked for."""

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

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.pytorch import PyTorchConfig
from lem_domain.wire.runs import EffectiveParameter
from lem_worker.backends.pytorch_decoding import Decoder
from lem_worker.backends.pytorch_model import LiveModel

_DECODING = {
    "top_k": (TopKLogitsWarper, "top_k"),
    "top_p": (TopPLogitsWarper, "top_p"),
    "min_p": (MinPLogitsWarper, "min_p"),
    "repetition_penalty": (RepetitionPenaltyLogitsProcessor, "penalty"),
}
"""The processor that carries out a decoding key, and its attribute."""


def parameters(
    config: ExperimentConfig, live: LiveModel, decoder: Decoder, *, rows: int
) -> tuple[EffectiveParameter, ...]:
    """Every parameter with its requested and effective value; `rows` is what a forward pass was seen to work on."""
    settings = config.pytorch or PyTorchConfig()
    decoding = config.decoding
    precision = str(next(live.model.parameters()).dtype).removeprefix("torch.")
    found = [
        _parameter("precision", None if config.precision == "auto" else config.precision, precision),
        _parameter("model.weights", config.model.weights, live.weights),
        # A branch or tag can't be compared with the commit that it stands for; that the hub resolved it is the proof.
        EffectiveParameter(
            name="model.revision",
            requested=config.model.revision,
            effective=live.commit,
            confirmed=config.model.revision is None or live.commit is not None,
        ),
        _parameter("device", None, str(live.device)),
        _parameter("output.mode", config.output.mode, "natural" if decoder.end_ids else "fixed"),
        _parameter("decoding.temperature", decoding.temperature, _temperature(decoder)),
    ]
    for key, (processor, attribute) in _DECODING.items():
        effective = _attribute(decoder.processors, processor, attribute)
        found.append(_parameter(f"decoding.{key}", getattr(decoding, key), effective))
    found += [
        _parameter("pytorch.batch_size", settings.batch_size, rows),
        _parameter("pytorch.attn_implementation", settings.attn_implementation, live.model.config._attn_implementation),
        _parameter("pytorch.num_threads", settings.num_threads, torch.get_num_threads()),
    ]
    return tuple(found)


def _parameter(name: str, requested: JsonValue, effective: JsonValue) -> EffectiveParameter:
    confirmed = requested is None or requested == effective
    return EffectiveParameter(name=name, requested=requested, effective=effective, confirmed=confirmed)


def _temperature(decoder: Decoder) -> float:
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
