"""Perplexity from the log-likelihoods that rank 0 summed over the reference text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from lem_domain.evidence.streams import rank_name
from lem_domain.results.figures import Figure
from lem_domain.results.run import QualityResult
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import finite_number

_DIGEST = re.compile(r"[0-9a-f]{64}")


def quality_result(summaries: Summaries, *, requested: bool) -> QualityResult | None:
    """Return exp(nats / tokens) from `quality` in rank 0's completion marker; None if it was not requested."""
    if not requested:
        return None
    record = summaries.get(rank_name(0), {}).get("quality")
    nats = finite_number(record.get("nats")) if isinstance(record, Mapping) else None
    tokens = record.get("tokens") if isinstance(record, Mapping) else None
    if not isinstance(record, Mapping) or nats is None or not isinstance(tokens, int) or tokens < 1:
        return QualityResult(perplexity=Figure(value=None, unit="1", reason="rank-0 reported no likelihood"), tokens=0)
    text, digest = record.get("text"), record.get("text_sha256")
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
