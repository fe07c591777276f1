"""Batches of the PyTorch backend, whatever the requests: each request once, and every bound kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lem_domain.backends.pytorch import PyTorchConfig
from lem_worker.backends.pytorch.batching import MOST_SHAPES, Shape, batches, shapes
from lem_worker.rank.prompts import Request

NEW = 5

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)
settings = st.one_of(
    st.builds(PyTorchConfig, batch_size=st.integers(1, 9), batching=st.just("static")),
    st.builds(PyTorchConfig, batch_size=st.integers(1, 9), batching=st.just("length_sorted")),
    st.builds(
        PyTorchConfig,
        batch_size=st.integers(1, 9),
        batching=st.just("dynamic"),
        max_tokens_per_batch=st.integers(40 + NEW, 400),
    ),
)


@given(lengths, settings)
def test_every_request_is_in_one_batch_and_no_bound_is_broken(lengths: list[int], config: PyTorchConfig) -> None:
    requests = [Request(number, number, (1,) * length, 0) for number, length in enumerate(lengths)]
    made = list(batches(requests, config, max_new_tokens=NEW))
    sent = [request for batch in made for request in batch]
    assert sorted(request.request_id for request in sent) == list(range(len(lengths)))
    for batch in made:
        assert batch
        longest = max(len(request.token_ids) for request in batch)
        if config.max_tokens_per_batch is not None:
            assert len(batch) * (longest + NEW) <= config.max_tokens_per_batch
            assert len(batch) <= config.batch_size or config.batch_size == 1
        else:
            assert len(batch) <= config.batch_size
    if config.batching == "length_sorted":
        assert [len(request.token_ids) for request in sent] == sorted(lengths, reverse=True)
    else:
        assert sent == requests


@given(lengths, st.integers(1, 9))
def test_sorting_by_length_never_pads_more(lengths: list[int], size: int) -> None:
    requests = [Request(number, number, (1,) * length, 0) for number, length in enumerate(lengths)]

    def places(batching: str) -> int:
        config = PyTorchConfig.model_validate({"batch_size": size, "batching": batching})
        made = batches(requests, config, max_new_tokens=NEW)
        return sum(len(batch) * max(len(request.token_ids) for request in batch) for batch in made)

    assert places("length_sorted") <= places("static")


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), settings, st.integers(1, 12), st.data())
def test_whatever_waits_makes_a_batch_of_a_shape_that_was_met_before(
    lengths: list[int], config: PyTorchConfig, waiting: int, data: st.DataObject
) -> None:
    prompts = [Request(number, number, (1,) * length, 0) for number, length in enumerate(lengths)]
    met = {Shape.of(batch) for batch in shapes(prompts, config, max_new_tokens=NEW, waiting=waiting)}
    begin = data.draw(st.integers(0, len(prompts) - 1))
    arrived = [*prompts[begin:], *prompts * waiting][: data.draw(st.integers(1, waiting))]
    if config.batching == "length_sorted":  # what was passed over so far waits too
        arrived = data.draw(st.permutations(arrived))
    assert Shape.of(next(batches(arrived, config, max_new_tokens=NEW))) in met


def test_the_most_and_the_fewest_rows_are_met_first_and_of_many_shapes_a_part() -> None:
    prompts = [Request(number, number, (1,) * (number + 1), 0) for number in range(90)]
    found = shapes(prompts, PyTorchConfig(batch_size=32), max_new_tokens=NEW, waiting=1000)
    assert [Shape.of(batch) for batch in found[:2]] == [(32, 90, True), (1, 1, False)]
    assert MOST_SHAPES // 2 < len(found) <= MOST_SHAPES + 2
    assert {len(batch) for batch in found} == set(range(1, 33))
    for batch in found:
        assert [request.request_id for request in batch] == list(range(len(batch)))


def test_offline_every_shape_is_met_once_in_the_order_of_the_window() -> None:
    prompts = [Request(number, number, (1,) * length, 0) for number, length in enumerate((3, 3, 2, 3, 3, 3, 4))]
    found = shapes(prompts, PyTorchConfig(batch_size=2), max_new_tokens=NEW, waiting=None)
    assert [Shape.of(batch) for batch in found] == [(2, 3, False), (2, 3, True), (1, 4, False)]
