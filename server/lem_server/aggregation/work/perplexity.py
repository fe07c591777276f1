"""Perplexity from the log-likelihoods that rank 0 summed over the reference text."""

from __future__ import annotations

import math

from pydantic import Field

from lem_domain.evidence.streams import rank_name
from lem_domain.ids import Sha256
from lem_domain.results.figures import Figure
from lem_domain.results.run import QualityResult
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import Maybe, Recorded


class _Likelihood(Recorded):
    nats: float
    tokens: int = Field(ge=1)
    text: Maybe[str] = None
    text_sha256: Maybe[Sha256] = None


def quality_result(summaries: Summaries, *, requested: bool) -> QualityResult | None:
    """Return exp(nats / tokens) from `quality` in rank 0's completion marker; None if it was not requested."""
    if not requested:
        return None
    record = _Likelihood.of(summaries.get(rank_name(0), {}).get("quality"))
    if record is None:
        return QualityResult(perplexity=Figure(value=None, unit="1", reason="rank-0 reported no likelihood"), tokens=0)
    mean = record.nats / record.tokens
    likely = math.exp(mean) if 0 <= mean < 700 else None
    perplexity = Figure.of(likely, "1", f"the mean negative log-likelihood is {mean:g} nats per token")
    return QualityResult(perplexity=perplexity, tokens=record.tokens, text=record.text, text_sha256=record.text_sha256)
