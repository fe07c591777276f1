"""Draft tokens of speculative decoding in the window, as the ranks counted them."""

from __future__ import annotations

from collections.abc import Sequence

from lem_domain.results.run import SpeculationResult
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import Recorded


class _Drafts(Recorded):
    drafted_tokens: int
    accepted_tokens: int


def speculation_result(ranks: Sequence[str], summaries: Summaries) -> SpeculationResult | None:
    """Sum `speculation` of the ranks' completion markers; None if no rank drafted tokens."""
    counts = [
        drafts
        for rank in ranks
        if (drafts := _Drafts.of(summaries.get(rank, {}).get("speculation"))) is not None
        and 0 <= drafts.accepted_tokens <= drafts.drafted_tokens
    ]
    if not counts:
        return None
    return SpeculationResult(
        drafted_tokens=sum(drafts.drafted_tokens for drafts in counts),
        accepted_tokens=sum(drafts.accepted_tokens for drafts in counts),
    )
