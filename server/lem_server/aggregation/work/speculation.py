"""Draft tokens of speculative decoding in the window, as the ranks counted them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic.types import JsonValue

from lem_domain.results.run import SpeculationResult
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import finite_number


def speculation_result(ranks: Sequence[str], summaries: Summaries) -> SpeculationResult | None:
    """Sum `speculation` of the ranks' completion markers; None if no rank drafted tokens."""
    counts = [found for rank in ranks if (found := _counts(summaries.get(rank, {}))) is not None]
    if not counts:
        return None
    return SpeculationResult(
        drafted_tokens=sum(drafted for drafted, _ in counts), accepted_tokens=sum(accepted for _, accepted in counts)
    )


def _counts(summary: Mapping[str, JsonValue]) -> tuple[int, int] | None:
    """Read one marker; the worker writes it freely, so an entry of another shape is ignored."""
    counted = summary.get("speculation")
    if not isinstance(counted, Mapping):
        return None
    drafted, accepted = finite_number(counted.get("drafted_tokens")), finite_number(counted.get("accepted_tokens"))
    if drafted is None or accepted is None or not 0 <= accepted <= drafted:
        return None
    return int(drafted), int(accepted)
