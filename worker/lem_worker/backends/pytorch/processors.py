"""Logits processors for the decoding keys: transformers' own, in the order of `generate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lem_domain.config.experiment import DecodingConfig


def make_processors(
    decoding: DecodingConfig,
    *,
    min_tokens: int,
    end_ids: Sequence[int],
    prompt_length: int,
    device: torch.device,
    paddings: Sequence[int] = (),
) -> LogitsProcessorList:
    """The processors of one batch; `paddings` is the number of padded positions before each row's prompt."""
    processors = LogitsProcessorList()
    if decoding.repetition_penalty is not None:
        ignored = torch.tensor(paddings, dtype=torch.long, device=device) if paddings else None
        processors.append(RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty, prompt_ignore_length=ignored))
    if min_tokens and end_ids:
        ends = torch.tensor(end_ids, dtype=torch.long, device=device)
        processors.append(MinNewTokensLengthLogitsProcessor(prompt_length, min_tokens, ends, device=str(device)))
    if decoding.temperature not in {0, 1}:
        processors.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k is not None:
        processors.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p is not None:
        processors.append(TopPLogitsWarper(decoding.top_p))
    if decoding.min_p is not None:
        processors.append(MinPLogitsWarper(decoding.min_p))
    return processors
