"""How likely a live model finds a text."""

from __future__ import annotations

import math

import torch

from lem_worker.backends.pytorch.model import LiveModel

_LONGEST = 1024
"""Tokens in one forward pass at most: the logits of all its places are held at once."""


@torch.inference_mode()
def negative_log_likelihood(live: LiveModel, text: str) -> tuple[float, int]:
    """-log p of the text's tokens in nats, summed, and the number of tokens that were predicted.

    The text is cut into stretches that fit the model's context, without overlap; the first token of each has nothing to
    be predicted from and is left out. The likelihoods are computed in float32 whatever the weights are in.
    """
    token_ids = live.token_ids(text, chat_template=False)
    context = getattr(live.model.config.get_text_config(), "max_position_embeddings", None)
    stretch = min(_LONGEST, context or _LONGEST)
    sums: list[float] = []
    predicted = 0
    for begin in range(0, len(token_ids), stretch):
        ids = torch.tensor([token_ids[begin : begin + stretch]], dtype=torch.long, device=live.device)
        if ids.shape[1] < 2:
            continue
        logits = live.model(input_ids=ids).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        sums.append(float(loss.double().sum()))
        predicted += int(loss.numel())
    return math.fsum(sums), predicted
