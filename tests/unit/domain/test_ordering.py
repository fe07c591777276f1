"""Orders: every experiment once per cycle, balanced places, and the same order wherever and whenever it is made."""

from __future__ import annotations

import math
from collections import Counter
from itertools import groupby, pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lem_domain.config.campaign import campaign_from_document
from lem_domain.config.expansion import expand
from lem_domain.config.ordering import Order, PlannedRun, order_runs, permutation
from lem_domain.errors import ConfigurationError

ORDERS = get_args(Order)
orders = st.sampled_from(ORDERS)
seeds = st.integers(0, 2**63 - 1)
CAMPAIGN = {"backend": "simulated", "model": "m", "sweep": {"output.max_tokens": list(range(1, 7))}}


def experiments_by_cycle(runs: tuple[PlannedRun, ...]) -> list[list[int]]:
    """What each cycle runs, in order; for orders that end one cycle before the next."""
    return [[run.experiment for run in of_cycle] for _, of_cycle in groupby(runs, key=lambda run: run.cycle)]


@given(experiments=st.integers(0, 20), cycles=st.integers(1, 12), order=orders, seed=seeds)
def test_every_order_runs_each_experiment_once_per_cycle(
    experiments: int, cycles: int, order: Order, seed: int
) -> None:
    runs = order_runs(experiments, cycles, order, seed)
    assert [run.position for run in runs] == list(range(experiments * cycles))
    assert Counter((run.experiment, run.cycle) for run in runs) == Counter(
        (experiment, cycle) for experiment in range(experiments) for cycle in range(1, cycles + 1)
    )


@given(experiments=st.integers(1, 12), cycles=st.integers(1, 6), order=orders, seed=seeds)
def test_an_order_is_the_same_whenever_it_is_made(experiments: int, cycles: int, order: Order, seed: int) -> None:
    assert order_runs(experiments, cycles, order, seed) == order_runs(experiments, cycles, order, seed)


@given(
    experiments=st.integers(1, 12),
    cycles=st.integers(1, 6),
    order=st.sampled_from([one for one in ORDERS if one != "grouped"]),
    seed=seeds,
)
def test_more_cycles_begin_with_the_same_ones(experiments: int, cycles: int, order: Order, seed: int) -> None:
    fewer = order_runs(experiments, cycles, order, seed)
    assert order_runs(experiments, cycles + 1, order, seed)[: len(fewer)] == fewer


def test_interleaved_goes_through_all_before_it_repeats() -> None:
    assert [(run.experiment, run.cycle) for run in order_runs(2, 2, "interleaved")] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert [(run.experiment, run.cycle) for run in order_runs(2, 2, "grouped")] == [(0, 1), (0, 2), (1, 1), (1, 2)]


@given(experiments=st.integers(1, 30), cycles=st.integers(1, 40), seed=seeds)
def test_in_a_latin_square_each_experiment_has_each_place_equally_often(
    experiments: int, cycles: int, seed: int
) -> None:
    rows = experiments_by_cycle(order_runs(experiments, cycles, "latin_square", seed))
    places = Counter((experiment, place) for row in rows for place, experiment in enumerate(row))
    often = {places[experiment, place] for experiment in range(experiments) for place in range(experiments)}
    assert often <= {cycles // experiments, math.ceil(cycles / experiments)}


@given(experiments=st.integers(2, 16), seed=seeds)
@settings(max_examples=50)
def test_in_whole_latin_squares_each_experiment_follows_each_other_one_equally_often(
    experiments: int, seed: int
) -> None:
    cycles = experiments if experiments % 2 == 0 else 2 * experiments
    rows = experiments_by_cycle(order_runs(experiments, cycles, "latin_square", seed))
    follows = Counter(pair for row in rows for pair in pairwise(row))
    assert len(follows) == experiments * (experiments - 1)
    assert set(follows.values()) == {cycles // experiments}


def test_shuffled_is_another_permutation_in_each_cycle_and_all_are_about_equally_frequent() -> None:
    rows = experiments_by_cycle(order_runs(3, 6000, "shuffled", 7))
    frequencies = Counter(map(tuple, rows))
    assert len(frequencies) == 6
    # Four standard deviations of a binomial count with p = 1/6: a fixed seed, so this holds for ever or never.
    assert all(abs(count - 1000) < 4 * math.sqrt(6000 * (1 / 6) * (5 / 6)) for count in frequencies.values())


def test_permutations_stay_what_they_are() -> None:
    """Golden values: a change here would give a stored seed another order."""
    assert permutation(6, "shuffled", 0, 1) == [4, 5, 1, 3, 0, 2]
    assert permutation(6, "shuffled", 7, 1) == [2, 3, 4, 5, 1, 0]
    assert [run.experiment for run in order_runs(4, 2, "latin_square", 7)] == [2, 0, 3, 1, 0, 1, 2, 3]


@pytest.mark.proves("execution.order", "execution.seed", on="server")
@pytest.mark.parametrize("order", ["shuffled", "latin_square"])
def test_a_seed_of_zero_is_a_seed(order: str) -> None:
    """Defect 34 of the predecessor: `--seed 0` was taken as no seed, so that every start had an order of its own."""

    def order_of(**execution: object) -> list[int]:
        spec = campaign_from_document({**CAMPAIGN, "execution": {"order": order, **execution}}, default_name="c")
        return [run.experiment for run in expand(spec).runs]

    assert order_of(seed=0) == order_of(seed=0) != order_of(seed=1)
    assert sorted(order_of(seed=0)) == list(range(6)) != order_of(seed=0)
    assert order_of() == order_of(seed=0)


def test_a_seed_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"execution\.seed"):
        campaign_from_document({**CAMPAIGN, "execution": {"seed": -1}}, default_name="c")
