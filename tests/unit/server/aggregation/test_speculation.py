"""Tokens guessed ahead, as the ranks counted them."""

from __future__ import annotations

import pytest
from pydantic.types import JsonValue

from lem_domain.results.run import SpeculationResult
from lem_server.aggregation.work.speculation import speculation_result


def test_the_counts_of_all_ranks_are_summed() -> None:
    summaries: dict[str, dict[str, JsonValue]] = {
        "rank-0": {"speculation": {"steps": 4, "drafted_tokens": 12, "accepted_tokens": 5}},
        "rank-1": {"speculation": {"drafted_tokens": 3, "accepted_tokens": 0}},
        "sampler": {},
    }
    assert speculation_result(["rank-0", "rank-1"], summaries) == SpeculationResult(
        drafted_tokens=15, accepted_tokens=5
    )


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"speculation": None},
        {"speculation": {"drafted_tokens": 3}},
        {"speculation": {"drafted_tokens": 3, "accepted_tokens": 4}},
        {"speculation": {"drafted_tokens": "3", "accepted_tokens": 1}},
    ],
)
def test_where_nothing_sensible_was_counted_nothing_is_said(told: dict[str, JsonValue]) -> None:
    assert speculation_result(["rank-0"], {"rank-0": told}) is None
