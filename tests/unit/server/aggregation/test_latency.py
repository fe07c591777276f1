"""Token counts, rates and latencies from requests and token times of several processes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from factories.evidence import Evidence
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.method import MethodVersion
from lem_domain.results.run import RunResult
from lem_server.aggregation.errors import EvidenceInvalid
from lem_server.aggregation.latency.distributions import distribution_ms
from lem_server.aggregation.result import aggregate

TWO_RANKS = ("rank-0", "rank-1", "sampler")


def result_of(evidence: Evidence) -> RunResult:
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def test_the_definitions_of_one_request() -> None:
    evidence = Evidence()
    evidence.request(0, 1.0, [1.5, 1.6, 1.8, 2.2], scheduled=1.1, prompt_tokens=7, cached=3)
    result = result_of(evidence)
    speed = result.speed
    assert speed.ttft_ms.mean == pytest.approx(500)
    assert speed.queue_ms.mean == pytest.approx(100)
    assert (speed.itl_ms.count, speed.itl_ms.min, speed.itl_ms.max) == (3, pytest.approx(100), pytest.approx(400))
    assert speed.tpot_ms.mean == pytest.approx(700 / 3)
    assert speed.e2e_ms.mean == pytest.approx(1200)
    assert speed.output_rate_tok_s.value == pytest.approx(4 / 1.2)
    assert speed.total_rate_tok_s.value == pytest.approx(11 / 1.2)
    assert speed.request_rate_per_s.value == pytest.approx(1 / 1.2)
    assert (result.work.generated_tokens, result.work.prompt_tokens, result.work.cached_prompt_tokens) == (4, 7, 3)


def test_processes_add_up_over_the_union_of_their_windows() -> None:
    evidence = Evidence(processes=TWO_RANKS)
    evidence.request(0, 0.0, [1.0, 4.0], rank=0)
    evidence.request(0, 2.0, [3.0, 6.0], rank=1)  # the same number in another process is another request
    evidence.request(1, 3.0, [4.0, 10.0], rank=1)
    result = result_of(evidence)
    assert result.window.duration_s == 10
    assert result.window.processes == 2
    assert result.window.overlap == pytest.approx(0.2)
    assert result.work.generated_tokens == 6
    assert result.speed.output_rate_tok_s.value == pytest.approx(0.6)  # not the mean of 0.5 and 0.5
    assert result.speed.itl_ms.count == 3


def test_interleaved_tokens_are_grouped_by_request() -> None:
    evidence = Evidence()
    for request_id in range(3):
        times = [1 + step + request_id * 0.01 for step in range(4)]
        evidence.request(request_id, 0.5, times, record_tokens=False)
    for step in range(4):
        for request_id in (2, 0, 1):
            evidence.token(request_id, step, 1 + step + request_id * 0.01)
    itl = result_of(evidence).speed.itl_ms
    assert (itl.count, itl.min, itl.max, itl.sd) == (9, 1000, 1000, 0)


def test_requests_numbered_with_holes_are_matched() -> None:
    evidence = Evidence()
    evidence.request(1000, 0, [1, 2])
    evidence.request(5, 0, [1, 1.5])
    assert result_of(evidence).speed.itl_ms.mean == pytest.approx(750)


def test_tokens_of_one_speculative_step_share_a_time() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 1.0, 1.0, 1.3])
    itl = result_of(evidence).speed.itl_ms
    assert (itl.count, itl.min, itl.max) == (3, 0, pytest.approx(300))


def test_a_single_token_has_neither_itl_nor_tpot() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0])
    speed = result_of(evidence).speed
    for distribution in (speed.itl_ms, speed.tpot_ms):
        assert (distribution.count, distribution.mean) == (0, None)
        assert distribution.reason == "no finished request has two tokens with times"
    assert speed.ttft_ms.count == 1
    assert speed.ttft_ms.sd is None


def test_failed_requests_are_counted_but_not_timed() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 2.0])
    evidence.request(1, 0.0, [5.0, 9.0], error="out of blocks")
    evidence.request(2, 0.0, error="out of blocks")
    result = result_of(evidence)
    assert (result.work.requests, result.work.failed_requests, result.work.generated_tokens) == (3, 2, 2)
    assert result.window.duration_s == 9
    assert result.speed.e2e_ms.count == 1
    assert result.speed.itl_ms.count == 1
    assert result.speed.request_rate_per_s.value == pytest.approx(1 / 9)
    (finding,) = [finding for finding in result.findings if finding.code == "failed_requests"]
    assert "out of blocks" in finding.message


def test_a_request_that_generates_nothing_is_finished_all_the_same() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 2.0])
    evidence.request(1, 0.5, [])
    result = result_of(evidence)
    assert (result.work.requests, result.work.failed_requests) == (2, 0)
    assert result.speed.ttft_ms.count == 1


def test_cached_tokens_are_null_unless_every_request_reports_them() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 2.0], cached=4)
    evidence.request(1, 0.0, [1.0, 2.0])
    assert result_of(evidence).work.cached_prompt_tokens is None


def test_itl_is_null_when_one_rank_has_no_token_times() -> None:
    evidence = Evidence(processes=TWO_RANKS)
    evidence.request(0, 0.0, [1.0, 2.0], rank=0)
    evidence.request(0, 0.0, [1.0, 2.0], rank=1, record_tokens=False)
    speed = result_of(evidence).speed
    assert speed.itl_ms.reason == "no token times were recorded by rank-1"
    assert speed.tpot_ms.count == 2


def test_a_rank_without_tokens_needs_no_token_times() -> None:
    """M25: the ITL is of what there is; `m1` made it null."""
    evidence = Evidence(processes=TWO_RANKS)
    evidence.request(0, 0.0, [1.0, 2.0], rank=0)
    evidence.request(0, 0.0, [], rank=1)
    assert result_of(evidence).speed.itl_ms.mean == pytest.approx(1000)
    evidence.method = MethodVersion.M1
    assert result_of(evidence).speed.itl_ms.reason == "no token times were recorded by rank-1"


def test_lost_and_stray_token_times_are_noticed() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 2.0, 3.0, 4.0], record_tokens=False)
    for index in (0, 1, 3):
        evidence.token(0, index, 1.0 + index)
    evidence.token(9, 0, 1.0)
    result = result_of(evidence)
    assert (result.speed.itl_ms.count, result.speed.itl_ms.max) == (1, 1000)  # no value across the hole
    (finding,) = [finding for finding in result.findings if finding.code == "missing_evidence"]
    assert finding.numbers == {"miscounted_requests": 1, "stray_tokens": 1}


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [([3.0, 2.0], "last token before its first"), ([0.5, 2.0], "first token before its arrival")],
)
def test_times_that_run_backwards_are_refused(tokens: list[float], complaint: str) -> None:
    evidence = Evidence()
    evidence.request(0, 1.0, tokens)
    with pytest.raises(EvidenceInvalid, match=complaint):
        result_of(evidence)


def test_a_token_or_request_that_is_there_twice_is_refused() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 2.0])
    evidence.token(0, 1, 2.0)
    with pytest.raises(EvidenceInvalid, match="a token of rank-0 is recorded twice"):
        result_of(evidence)
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 2.0], record_tokens=False)
    evidence.request(0, 0.0, [1.0, 2.0], record_tokens=False)
    with pytest.raises(EvidenceInvalid, match="request 0 of rank-0 is recorded twice"):
        result_of(evidence)


def test_without_a_single_token_there_is_no_window() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, error="broken")
    with pytest.raises(EvidenceInvalid, match="no request got a token"):
        result_of(evidence)


@pytest.mark.proves("traffic.slo.ttft_ms", "traffic.slo.tpot_ms", on="server")
@pytest.mark.parametrize(
    ("slo", "good"),
    [
        ({"ttft_ms": 100}, 2),
        ({"tpot_ms": 50}, 3),
        ({"ttft_ms": 100, "tpot_ms": 50}, 1),
        ({"ttft_ms": 99.9, "tpot_ms": 50}, 0),
        ({"ttft_ms": 1000, "tpot_ms": 1000}, 4),
    ],
)
def test_goodput_counts_requests_within_the_limits(slo: dict[str, float], good: int) -> None:
    evidence = Evidence(
        config=ExperimentConfig.model_validate({"backend": "simulated", "model": "test", "traffic": {"slo": slo}})
    )
    evidence.request(0, 0.0, [0.1, 0.15])  # 100 ms, 50 ms per token
    evidence.request(1, 0.0, [0.1, 0.9])  # 100 ms, 800 ms
    evidence.request(2, 0.0, [0.2, 0.25])  # 200 ms, 50 ms
    evidence.request(3, 0.0, [0.3])  # 300 ms, a single token
    evidence.request(4, 0.0, [0.01, 0.02], error="broken")
    evidence.request(5, 0.0, [0.5, 10.0], error="broken")
    goodput = result_of(evidence).speed.goodput_per_s
    assert goodput.value == pytest.approx(good / 10)


def test_goodput_without_limits_is_null() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0])
    assert result_of(evidence).speed.goodput_per_s.reason == "no limits are set; set traffic.slo"


def test_under_open_traffic_latency_counts_from_the_planned_arrival() -> None:
    evidence = Evidence()
    evidence.request(0, 1.0, [1.5, 11.0], released=1.2)
    result = result_of(evidence)
    assert result.speed.ttft_ms.mean == pytest.approx(500)
    assert result.window.duration_s == pytest.approx(9.8)


@given(arrays(np.int64, st.integers(1, 400), elements=st.integers(0, 10**12)))
def test_distributions_are_numpy_s(values: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    found = distribution_ms(values.copy(), "")
    percentiles = np.percentile(values / 1e6, [50, 90, 95, 99])
    assert [found.p50, found.p90, found.p95, found.p99] == pytest.approx(list(percentiles), rel=1e-12)
    assert found.mean == pytest.approx(float(np.mean(values / 1e6)), rel=1e-12)
    assert (found.min, found.max) == (values.min() / 1e6, values.max() / 1e6)
    if len(values) > 1:
        assert found.sd == pytest.approx(float(np.std(values / 1e6, ddof=1)), rel=1e-9, abs=1e-9)


@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=6), min_size=1, max_size=4), min_size=1, max_size=3
    ),
    st.integers(1, 5),
)
def test_itl_percentiles_are_those_of_the_concatenation(steps: list[list[list[int]]], chunk_rows: int) -> None:
    evidence = Evidence(processes=(*(f"rank-{rank}" for rank in range(len(steps))), "sampler"), chunk_rows=chunk_rows)
    expected: list[float] = []
    for rank, requests in enumerate(steps):
        for request_id, deltas in enumerate(requests):
            times = [1 + total / 1000 for total in np.cumsum(deltas).tolist()]
            evidence.request(request_id, 0.5, times, rank=rank)
            expected += [1000 * (after - before) for before, after in pairwise(times)]
    itl = result_of(evidence).speed.itl_ms
    assert itl.count == len(expected)
    if expected:
        percentiles = np.percentile(expected, [50, 90, 95, 99]).tolist()
        assert [itl.p50, itl.p90, itl.p95, itl.p99] == pytest.approx(percentiles, abs=1e-5)
