"""What speculation did in the window, from what the ranks counted of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic.types import JsonValue

from lem_domain.results.run import SpeculationResult
from lem_server.aggregation.inputs import Summaries
from lem_server.aggregation.json_values import finite_number


def speculation_result(ranks: Sequence[str], summaries: Summaries) -> SpeculationResult | None:
    """From `speculation` in the ranks' completion markers, summed; None where no rank guessed tokens at all."""
    told = [found for rank in ranks if (found := _counts(summaries.get(rank, {}))) is not None]
    if not told:
        return None
    return SpeculationResult(
        drafted_tokens=sum(drafted for drafted, _ in told), accepted_tokens=sum(accepted for _, accepted in told)
    )


def _counts(summary: Mapping[str, JsonValue]) -> tuple[int, int] | None:
    """The summary is the worker's own free account: an entry of another shape is left out."""
    counted = summary.get("speculation")
    if not isinstance(counted, Mapping):
        return None
    drafted, accepted = finite_number(counted.get("drafted_tokens")), finite_number(counted.get("accepted_tokens"))
    if drafted is None or accepted is None or not 0 <= accepted <= drafted:
        return None
    return int(drafted), int(accepted)
