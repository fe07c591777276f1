"""When warm-up is over, and what it is sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_domain.config.measurement import WarmupConfig
from lem_worker.rank.prompts import (
    PreparedPrompt,
    batch_with_most_rows,
    batch_with_most_tokens,
    batches_of,
    warmup_requests,
)
from lem_worker.rank.warmup import POWER_CAP_TRENDS, PowerTrend, assess, coefficient_of_variation, warm_up

CONFIG = WarmupConfig(min_requests=5, max_requests=12, cv_threshold=0.05, window_size=5)


def test_too_few_latencies_say_nothing() -> None:
    assessment = assess([1.0] * 4, CONFIG)
    assert (assessment.finished, assessment.converged, assessment.cv) == (False, False, None)


def test_steady_latencies_end_it_at_once() -> None:
    assessment = assess([1.0, 1.01, 0.99, 1.0, 1.0], CONFIG)
    assert assessment.finished
    assert assessment.converged
    assert assessment.cv is not None
    assert assessment.cv < 0.05


@pytest.mark.proves("warmup.window_size", "warmup.cv_threshold", on="worker")
def test_only_the_last_window_counts() -> None:
    slow_start = [50.0, 9.0, 3.0]
    assert not assess([*slow_start, 1.0, 1.0], CONFIG).finished
    assert assess([*slow_start, 1.0, 1.0, 1.0, 1.0, 1.0], CONFIG).converged


@pytest.mark.proves("warmup.min_requests", on="worker")
def test_the_minimum_holds_even_when_steady() -> None:
    config = WarmupConfig(min_requests=10, max_requests=20, window_size=5)
    assert not assess([1.0] * 9, config).finished
    assert assess([1.0] * 10, config).converged


@pytest.mark.proves("warmup.max_requests", on="worker")
def test_the_cap_ends_it_unconverged() -> None:
    assessment = assess([1.0, 2.0] * 6, CONFIG)
    assert (assessment.finished, assessment.converged, assessment.batches) == (True, False, 12)


def test_a_cap_below_the_window_never_converges() -> None:
    config = WarmupConfig(min_requests=1, max_requests=2, window_size=5)
    assert assess([1.0, 1.0], config) == assess([1.0, 1.0], config)
    assert (assess([1.0, 1.0], config).finished, assess([1.0, 1.0], config).converged) == (True, False)


def test_the_variation_is_the_sample_standard_deviation_over_the_mean() -> None:
    assert coefficient_of_variation([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == pytest.approx(2.13809 / 5, rel=1e-4)
    assert coefficient_of_variation([0.0, 0.0]) == 0.0


def test_it_sends_until_steady_and_no_further() -> None:
    latencies = iter([9.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 77.0])
    assessment = warm_up(lambda: next(latencies), CONFIG)
    assert (assessment.converged, assessment.batches) == (True, 8)
    assert next(latencies) == 77.0


STEADY = [1.0] * 5


@pytest.mark.proves("warmup.power_slope", on="worker")
@pytest.mark.parametrize(
    ("trend", "converged"),
    [
        (PowerTrend(known=False, slope=None, trend_s=5), True),
        (PowerTrend(known=True, slope=None, trend_s=5), False),
        (PowerTrend(known=True, slope=0.3, trend_s=5), False),
        (PowerTrend(known=True, slope=-0.3, trend_s=5), False),
        (PowerTrend(known=True, slope=0.019, trend_s=5), True),
        (PowerTrend(known=True, slope=-0.019, trend_s=5), True),
    ],
)
def test_power_must_have_settled_too_where_someone_reports_it(trend: PowerTrend, converged: bool) -> None:
    assessment = assess(STEADY, CONFIG, trend)
    assert (assessment.finished, assessment.converged, assessment.power_slope) == (converged, converged, trend.slope)
    unconcerned = CONFIG.model_copy(update={"power_slope": None})
    assert assess(STEADY, unconcerned, trend).converged


@pytest.mark.parametrize("trend_s", [5.0, 50.0])
def test_the_cap_gives_power_the_time_that_a_trend_needs(trend_s: float) -> None:
    rising = PowerTrend(known=True, slope=0.3, trend_s=trend_s)
    many = [1.0] * 500
    cap_s = POWER_CAP_TRENDS * trend_s
    assert not assess(many, CONFIG, rising, cap_s - 1).finished
    assessment = assess(many, CONFIG, rising, cap_s)
    assert (assessment.finished, assessment.converged) == (True, False)


def test_power_that_ceases_to_be_reported_does_not_count_as_settled() -> None:
    trends = iter(
        [PowerTrend(known=True, slope=0.3, trend_s=5)] * 10 + [PowerTrend(known=True, slope=None, trend_s=5)] * 500
    )
    clock = iter(range(10_000))
    assessment = warm_up(lambda: 1.0, CONFIG, lambda: next(trends), lambda: next(clock))
    assert (assessment.converged, assessment.power_slope) == (False, None)


def test_it_continues_until_power_has_settled() -> None:
    trends = iter([PowerTrend(known=True, slope=slope, trend_s=5) for slope in [0.5] * 30 + [0.01]])
    assessment = warm_up(lambda: 1.0, CONFIG, lambda: next(trends), lambda: 0.0)
    assert (assessment.converged, assessment.batches) == (True, 31)


@given(st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=20, max_size=20))
def test_it_always_ends_between_minimum_and_cap(latencies: list[float]) -> None:
    source = iter(latencies)
    assessment = warm_up(lambda: next(source), CONFIG)
    assert CONFIG.min_requests <= assessment.batches <= CONFIG.max_requests


def test_the_largest_batch_is_sent_with_its_tokens_reversed() -> None:
    prompts = [
        PreparedPrompt(0, (1, 2)),
        PreparedPrompt(1, (3,)),
        PreparedPrompt(2, (4, 5, 6)),
        PreparedPrompt(3, (7,)),
    ]
    requests = warmup_requests(prompts, seed=0)
    assert [request.token_ids for request in batch_with_most_tokens(list(batches_of(requests, 2)))] == [(6, 5, 4), (7,)]


def test_the_largest_batch_has_the_most_places_and_the_fullest_the_most_rows() -> None:
    short = [PreparedPrompt(index, (1, 2)) for index in range(4)]
    divided = list(batches_of(warmup_requests([*short, PreparedPrompt(4, (3,) * 9)], seed=0), 4))
    assert [len(batch) for batch in divided] == [4, 1]
    assert batch_with_most_tokens(divided) is divided[1]
    assert batch_with_most_rows(divided) is divided[0]
