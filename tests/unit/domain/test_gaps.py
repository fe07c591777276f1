"""RunGaps: which of them holds between two runs, how long it lasts, and what a campaign takes at least."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_domain.config.campaign import campaign_from_document
from lem_domain.config.gaps import ExperimentCycle, GapConfig, RunGaps, least_duration
from lem_domain.config.ordering import order_runs
from lem_domain.errors import ConfigurationError

MINUTE, FIVE = GapConfig(seconds=60), GapConfig(seconds=300)
COOLING = GapConfig(temperature_c=45, max_seconds=300)
BOTH = RunGaps(config=MINUTE, cycle=FIVE)
A1, B1, A2, B2 = ExperimentCycle("A", 1), ExperimentCycle("B", 1), ExperimentCycle("A", 2), ExperimentCycle("B", 2)


def test_another_experiment_another_cycle_and_another_attempt_have_their_gaps() -> None:
    assert BOTH.between(A1, B1) == (MINUTE,)
    assert BOTH.between(A1, A2) == (FIVE,)
    assert BOTH.between(A1, A1) == (MINUTE,)
    assert RunGaps(None, FIVE).between(A1, B1) == ()
    assert RunGaps(MINUTE, None).between(B1, A2) == (MINUTE,)


def test_gaps_do_not_add_up_and_the_time_gone_by_counts() -> None:
    """Defect 33 of the predecessor: both gaps were slept one after the other, in full, whatever the time since."""
    due = BOTH.between(B1, A2)
    assert [max(gap.remaining_s(elapsed, None) for gap in due) for elapsed in (0, 100, 300, 9000)] == [300, 200, 0, 0]
    assert BOTH.least_s(B1, A2) == 300


@pytest.mark.parametrize("order", ["interleaved", "grouped", "shuffled", "latin_square"])
def test_a_cycle_gap_is_where_a_cycle_changes_in_every_order(order: str) -> None:
    """Defect 32 of the predecessor: a cycle was said to be over by position modulo the number of configurations, which
    is wrong for grouped runs, and after a resume."""
    runs = order_runs(3, 4, order)  # type: ignore[arg-type]
    changes = [after for before, after in pairwise(runs) if before.cycle != after.cycle]
    least = least_duration(runs, [0.0] * 3, RunGaps(None, FIVE))
    assert least.gaps_s == 300 * len(changes)
    assert len(changes) == (11 if order == "grouped" else 3)


def test_a_gap_by_cooling_ends_when_the_device_is_cool_or_after_its_bound() -> None:
    assert COOLING.remaining_s(0, 45) == 0
    assert COOLING.remaining_s(10, 46) == 290
    assert COOLING.remaining_s(300, 90) == 0
    assert COOLING.remaining_s(10, None) == 290


@given(gap=st.sampled_from([MINUTE, COOLING]), elapsed=st.floats(0, 1e5), temperature=st.none() | st.floats(0, 120))
def test_a_gap_never_lasts_longer_the_later_it_is(gap: GapConfig, elapsed: float, temperature: float | None) -> None:
    now, later = gap.remaining_s(elapsed, temperature), gap.remaining_s(elapsed + 1, temperature)
    assert 0 <= later <= now <= 300


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ({}, "needs seconds"),
        ({"seconds": 5, "temperature_c": 40, "max_seconds": 9}, "by time or by cooling"),
        ({"temperature_c": 40}, "needs max_seconds"),
        ({"max_seconds": 40}, "set temperature_c too"),
        ({"seconds": 0}, "greater than 0"),
        ({"second": 5}, "did you mean 'seconds'"),
    ],
)
def test_a_gap_that_says_too_little_or_too_much_is_refused(gap: dict[str, float], words: str) -> None:
    document: dict[str, Any] = {"model": "m", "backend": "simulated", "execution": {"cycle_gap": gap}}
    with pytest.raises(ConfigurationError, match=words):
        campaign_from_document(document, default_name="c")


def test_the_least_duration_counts_windows_and_gaps_by_time() -> None:
    runs = order_runs(2, 2, "interleaved")
    assert least_duration(runs, [10.0, 20.0], BOTH) == (60.0, 60 + 300 + 60)
    assert least_duration(runs, [10.0, 20.0], RunGaps(COOLING, COOLING)) == (60.0, 0.0)
    assert least_duration(runs, [10.0, 20.0], RunGaps(None, None)).total_s == 60.0
