"""Inter-token latencies from columns of tokens, value by value."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lem_server.aggregation.energy.traces import Span
from lem_server.aggregation.errors import EvidenceInvalid
from lem_server.aggregation.latency.inter_token import TokenIntervals, intervals
from lem_server.aggregation.work.requests import RankRequests

Token = tuple[int, int, int]
"""Request, index and time in ns."""


def requests(*rows: tuple[int, int, bool]) -> RankRequests:
    """Requests from their ids, generated tokens and whether they finished."""
    ids, generated, finished = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    zeros = np.zeros(len(rows), dtype=np.int64)
    return RankRequests(
        process="rank-0",
        request_id=np.array(ids, dtype=np.int64),
        prompt_index=zeros,
        arrival_ns=zeros,
        released_ns=zeros,
        scheduled_ns=zeros,
        first_token_ns=zeros,
        last_token_ns=zeros,
        prompt_tokens=zeros,
        cached_prompt_tokens=zeros,
        generated_tokens=np.array(generated, dtype=np.int64),
        batch_id=zeros,
        finished=np.array(finished, dtype=np.bool_),
        first_error=None,
        cut_outputs=0,
    )


def found(of: RankRequests, tokens: Sequence[Token], span: Span | None = None) -> TokenIntervals:
    columns = np.array(tokens, dtype=np.int64).reshape(-1, 3)
    return intervals(of, columns[:, 0].copy(), columns[:, 1].copy(), columns[:, 2].copy(), span)


def test_the_last_token_of_a_request_and_the_first_of_the_next_are_no_neighbours() -> None:
    both = requests((0, 2, True), (1, 2, True))
    seen = found(both, [(0, 0, 10), (0, 1, 13), (1, 0, 100), (1, 1, 107)])
    assert seen.itl_ns.tolist() == [3, 7]
    assert (seen.miscounted, seen.stray, seen.in_span) == (0, 0, 0)


def test_tokens_may_come_in_any_order() -> None:
    both = requests((0, 2, True), (1, 3, True))
    seen = found(both, [(1, 2, 30), (0, 1, 13), (1, 0, 10), (0, 0, 11), (1, 1, 15)])
    assert seen.itl_ns.tolist() == [2, 5, 15]
    assert found(requests((0, 2, True)), [(0, 1, 13), (0, 0, 10)]).itl_ns.tolist() == [3]


@pytest.mark.parametrize("ids", [(3, 4, 5), (3, 5, 9)], ids=["without a gap", "with a gap"])
def test_tokens_of_unknown_requests_are_stray_whatever_their_number(ids: tuple[int, int, int]) -> None:
    known = requests(*((each, 1, True) for each in ids))
    tokens = [(each, 0, 10) for each in ids]
    seen = found(known, [(2, 0, 1), *tokens, (7, 0, 1), (20, 0, 1)])
    assert (seen.miscounted, seen.stray) == (0, 3)
    assert seen.itl_ns.tolist() == []


def test_a_request_whose_count_of_token_times_differs_is_miscounted_if_it_finished() -> None:
    four = requests((0, 2, True), (1, 1, True), (2, 5, False), (3, 0, True))
    seen = found(four, [(0, 0, 10), (1, 0, 20), (1, 1, 21), (2, 0, 5)])
    assert seen.miscounted == 2
    assert seen.itl_ns.tolist() == [1]


def test_without_any_token_the_finished_requests_with_tokens_are_miscounted() -> None:
    seen = found(requests((0, 2, True), (1, 1, True), (2, 0, True), (3, 3, False)), [])
    assert (seen.itl_ns.tolist(), seen.miscounted, seen.stray, seen.in_span) == ([], 2, 0, 0)


def test_without_any_request_every_token_is_stray() -> None:
    seen = found(requests(), [(0, 0, 10), (0, 1, 12)])
    assert (seen.itl_ns.tolist(), seen.miscounted, seen.stray, seen.in_span) == ([], 0, 2, 0)


def test_a_single_token_of_a_single_request_is_counted() -> None:
    seen = found(requests((7, 1, True)), [(7, 0, 10)], Span(0, 20))
    assert (seen.itl_ns.tolist(), seen.miscounted, seen.stray, seen.in_span) == ([], 0, 0, 1)


def test_tokens_of_failed_requests_alone_give_nothing() -> None:
    seen = found(requests((0, 2, False)), [(0, 0, 10), (0, 1, 12), (5, 0, 11)], Span(0, 100))
    assert (seen.itl_ns.tolist(), seen.miscounted, seen.stray, seen.in_span) == ([], 0, 1, 0)


def test_tokens_of_a_span_exclude_its_begin_and_include_its_end() -> None:
    one = requests((0, 4, True), (1, 1, False))
    tokens = [(0, 0, 10), (0, 1, 11), (0, 2, 20), (0, 3, 21), (1, 0, 15)]
    assert found(one, tokens, Span(10, 20)).in_span == 2
    assert found(one, tokens).in_span == 0


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        ([(0, -1, 10), (0, 0, 11)], "negative index"),
        ([(0, 0, 10), (0, 1, 11), (0, 1, 12)], "recorded twice"),
        ([(0, 1, 11), (0, 0, 10), (0, 1, 12)], "recorded twice"),
        ([(0, 0, 10), (0, 1, 9)], "run backwards"),
    ],
)
def test_contradictions_are_refused(tokens: list[Token], complaint: str) -> None:
    with pytest.raises(EvidenceInvalid, match=complaint):
        found(requests((0, 2, True)), tokens)


def test_two_tokens_may_share_a_time() -> None:
    assert found(requests((0, 2, True)), [(0, 0, 10), (0, 1, 10)]).itl_ns.tolist() == [0]
