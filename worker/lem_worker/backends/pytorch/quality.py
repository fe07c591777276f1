"""The likelihood of a text under a live model."""

from __future__ import annotations

import math

import torch

from lem_worker.backends.pytorch.model import LiveModel

_LONGEST = 1024
"""The most tokens of one forward pass, which holds the logits of all positions at once."""


@torch.inference_mode()
def negative_log_likelihood(live: LiveModel, text: str) -> tuple[float, int]:
    """Sum of -log p over the text's predicted tokens in nats, and their number.

    The text is cut into segments that fit the model's context, without overlap. The first token of a segment is not
    predicted. Likelihoods are computed in float32, whatever the format of the weights.
    """
    token_ids = live.token_ids(text, chat_template=False)
    context = getattr(live.model.config.get_text_config(), "max_position_embeddings", None)
    segment = min(_LONGEST, context or _LONGEST)
    sums: list[float] = []
    predicted = 0
    for begin in range(0, len(token_ids), segment):
        ids = torch.tensor([token_ids[begin : begin + segment]], dtype=torch.long, device=live.device)
        if ids.shape[1] < 2:
            continue
        logits = live.model(input_ids=ids).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        sums.append(float(loss.double().sum()))
        predicted += int(loss.numel())
    return math.fsum(sums), predicted
