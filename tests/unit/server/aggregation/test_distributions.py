"""Distributions, latencies and goodput from columns, value by value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from lem_domain.config.measurement import SloConfig
from lem_domain.results.run import WindowResult
from lem_server.aggregation.errors import EvidenceInvalid
from lem_server.aggregation.evidence_reader import NULL
from lem_server.aggregation.latency.distributions import distribution, goodput_per_s, since_arrival_ms, tpot_ms
from lem_server.aggregation.work.flops import ModelShape, flops_between, request_flops
from lem_server.aggregation.work.requests import RankRequests
from lem_server.aggregation.work.windows import process_window, union_window

MS = 1_000_000
WINDOW = WindowResult(begin_ns=0, end_ns=2_000_000_000, duration_s=2.0, processes=1, overlap=1.0)


def rank(finished: Sequence[bool], **columns: Sequence[int]) -> RankRequests:
    """Requests from the columns that matter; the others are 0."""
    count = len(finished)
    given = {name: np.array(values, dtype=np.int64) for name, values in columns.items()}
    names = ("prompt_index", "arrival_ns", "released_ns", "scheduled_ns", "first_token_ns", "last_token_ns")
    counts = ("request_id", "prompt_tokens", "cached_prompt_tokens", "generated_tokens", "batch_id")
    zeros: Mapping[str, np.ndarray] = {name: np.zeros(count, dtype=np.int64) for name in (*names, *counts)}
    return RankRequests(
        process="rank-0",
        finished=np.array(finished, dtype=np.bool_),
        first_error=None,
        cut_outputs=0,
        **{**zeros, **given},
    )


def test_every_figure_of_a_distribution() -> None:
    found = distribution(np.array([9000, 1000, 4000, 2000]), "s", 1e3, "none")
    assert found.model_dump(exclude={"reason"}) == pytest.approx(
        {
            "unit": "s",
            "count": 4,
            "mean": 4.0,
            "sd": (38 / 3) ** 0.5,  # squares of -3, -2, 0 and 5
            "min": 1.0,
            "p50": 3.0,
            "p90": 7.5,  # position 2.7 of 0 to 3
            "p95": 8.25,
            "p99": 8.85,
            "max": 9.0,
        }
    )


def test_two_values_have_a_deviation_and_one_has_none() -> None:
    assert distribution(np.array([1.0, 3.0]), "s", 1.0, "none").sd == pytest.approx(2**0.5)
    one = distribution(np.array([3.0]), "s", 1.0, "none")
    assert (one.sd, one.p50, one.p99, one.max) == (None, 3, 3, 3)


def test_latencies_are_of_finished_requests_with_that_time() -> None:
    made = rank([True, True, False], arrival_ns=[MS] * 3, first_token_ns=[4 * MS, NULL, 9 * MS])
    found = since_arrival_ms([made], lambda of: of.first_token_ns, "none")
    assert (found.count, found.mean) == (1, 3)


def test_tpot_needs_both_times_and_two_tokens() -> None:
    made = rank(
        [True, True, True, True, False],
        first_token_ns=[0, NULL, 0, 0, 0],
        last_token_ns=[6 * MS, 9 * MS, NULL, 9 * MS, 9 * MS],
        generated_tokens=[3, 3, 3, 1, 3],
    )
    found = tpot_ms([made])
    assert (found.count, found.mean) == (1, 3)


def test_a_limit_is_kept_at_itself() -> None:
    made = rank([True, True, True, False], arrival_ns=[MS] * 4, first_token_ns=[6 * MS, 6 * MS + 1, NULL, 2 * MS])
    assert goodput_per_s([made], SloConfig(ttft_ms=5), WINDOW).value == 0.5


def test_goodput_by_tpot() -> None:
    """Two intervals of 5 ms keep it, two of 5.5 ms miss it; without two timed tokens there is none to miss."""
    made = rank(
        [True] * 5,
        first_token_ns=[0, 0, NULL, 0, 0],
        last_token_ns=[10 * MS, 11 * MS, 99 * MS, 99 * MS, NULL],
        generated_tokens=[3, 3, 3, 1, 3],
    )
    assert goodput_per_s([made], SloConfig(tpot_ms=5), WINDOW).value == 2
    two = rank([True, True], last_token_ns=[5 * MS, 6 * MS], generated_tokens=[2, 2])
    assert goodput_per_s([two], SloConfig(tpot_ms=5), WINDOW).value == 0.5
    assert goodput_per_s([two], None, WINDOW).value is None


def test_a_window_is_from_the_first_release_to_the_last_token() -> None:
    made = rank([True, False, True], released_ns=[20, 10, 5], last_token_ns=[50, 90, NULL])
    assert process_window(made) == (5, 90)
    assert process_window(rank([True], last_token_ns=[NULL])) is None


def test_the_overlap_is_of_all_processes() -> None:
    found = union_window([(0, 6_000_000_000), (2_000_000_000, 8_000_000_000), (1_000_000_000, 8_000_000_000)])
    assert (found.begin_ns, found.end_ns, found.duration_s, found.processes, found.overlap) == (
        0,
        8_000_000_000,
        8,
        3,
        0.5,
    )
    assert union_window([(0, 10), (20, 30)]).overlap == 0
    assert union_window([(0, 1)]).overlap == 1
    for nothing in ([], [(3, 3)]):
        with pytest.raises(EvidenceInvalid):
            union_window(nothing)


def test_the_arithmetic_of_requests() -> None:
    """10 weights, 2 layers of width 3. The first: tokens 3 to 6 of 6; the second: 1 to 2; the others do nothing."""
    made = rank(
        [True, True, True, False],
        prompt_tokens=[5, 2, 7, 7],
        generated_tokens=[2, 1, 0, 7],
        cached_prompt_tokens=[2, NULL, 0, 0],
    )
    shape = ModelShape(matmul_parameters=10, layers=2, attention_width=3)
    assert request_flops(made, shape) == 2 * 10 * (4 + 2) + 4 * 2 * 3 * (3 + 4 + 5 + 6 + 1 + 2)
    between = flops_between(shape, np.array([2.0, 0.0]), np.array([6.0, 2.0]))
    assert between.tolist() == [2 * 10 * 4 + 24 * 18, 2 * 10 * 2 + 24 * 3]
