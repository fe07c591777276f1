"""Perplexity from what rank 0 summed up over the held text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from lem_domain.evidence.streams import rank_name
from lem_domain.results.run import Figure, QualityResult
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import finite_number

_DIGEST = re.compile(r"[0-9a-f]{64}")


def quality_result(summaries: Summaries, *, asked: bool) -> QualityResult | None:
    """exp(nats / tokens) of `quality` in rank 0's completion marker; None where it was not asked for."""
    if not asked:
        return None
    told = summaries.get(rank_name(0), {}).get("quality")
    nats = finite_number(told.get("nats")) if isinstance(told, Mapping) else None
    tokens = told.get("tokens") if isinstance(told, Mapping) else None
    if not isinstance(told, Mapping) or nats is None or not isinstance(tokens, int) or tokens < 1:
        return QualityResult(perplexity=Figure(value=None, unit="1", reason="rank-0 told no likelihood"), tokens=0)
    text, digest = told.get("text"), told.get("text_sha256")
    mean = nats / tokens
    perplexity = (
        Figure(value=math.exp(mean), unit="1")
        if 0 <= mean < 700
        else Figure(value=None, unit="1", reason=f"the mean negative log-likelihood is {mean:g} nats per token")
    )
    return QualityResult(
        perplexity=perplexity,
        tokens=tokens,
        text=text if isinstance(text, str) else None,
        text_sha256=digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None,
    )
