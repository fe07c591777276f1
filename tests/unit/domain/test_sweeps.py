"""Sweeps: product, zip, include, exclude, axes of one backend, listed experiments; merged and refused; bounds."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_domain.config import expansion as expansion_module
from lem_domain.config.campaign import campaign_from_document
from lem_domain.config.combinations import Combinations, backends_in
from lem_domain.config.expansion import Plan, expand, preview
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.errors import ConfigurationError

BASE = {"backend": "simulated", "model": "builtin:tiny-llama"}


def plan(**document: Any) -> Plan:
    return expand(campaign_from_document({**BASE, **document}, default_name="x"))


def varied(**document: Any) -> list[dict[str, Any]]:
    return [one.varied for one in plan(**document).experiments]


def problems(**document: Any) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        plan(**document)
    return {one.pointer: one.message for one in caught.value.field_problems}


@pytest.mark.proves("sweep", on="domain")
def test_several_axes_give_every_combination_the_last_one_fastest() -> None:
    sweep = {"output.max_tokens": [1, 2], "decoding.seed": [5, 6]}
    assert [tuple(one.values()) for one in varied(sweep=sweep)] == [(1, 5), (1, 6), (2, 5), (2, 6)]


def test_paths_of_a_zip_group_change_together_and_multiply_with_the_rest() -> None:
    zipped = [{"output.max_tokens": [1, 2], "window.min_duration_s": [5, 6]}, {"decoding.seed": [7, 8]}]
    found = [tuple(one.values()) for one in varied(sweep={"input.max_tokens": [9], "zip": zipped})]
    assert found == [(9, 1, 5, 7), (9, 1, 5, 8), (9, 2, 6, 7), (9, 2, 6, 8)]


def test_rows_are_excluded_from_the_product_and_included_next_to_it() -> None:
    sweep = {
        "output.max_tokens": [1, 2],
        "decoding.seed": [5, 6],
        "exclude": [{"output.max_tokens": 1, "decoding.seed": 6}],
        "include": [{"output.max_tokens": 64}],
    }
    found = varied(sweep=sweep)
    assert [tuple(one.values()) for one in found] == [(1, 5), (2, 5), (2, 6), (64,)]


def test_an_exclude_may_name_what_the_base_says() -> None:
    listed = [{"name": "a"}, {"name": "b", "precision": "float32"}]
    sweep = {"output.max_tokens": [1, 2], "exclude": [{"precision": "float32", "output.max_tokens": 2}]}
    names = [one.display_name for one in plan(experiments=listed, sweep=sweep).experiments]
    assert names == ["a, max_tokens=1", "a, max_tokens=2", "b, max_tokens=1"]


def test_true_is_not_one() -> None:
    sweep = {"record.tokens": [True, False], "exclude": [{"record.tokens": 1}]}
    assert list(problems(sweep=sweep)) == ["/sweep/exclude/0"]


@pytest.mark.proves("experiments", on="domain")
def test_the_sweep_applies_to_every_listed_experiment() -> None:
    listed = [{"simulated": {"batch_size": 2}}, {"name": "slow", "simulated": {"decode_ms_per_token": 9}}]
    made = plan(simulated={"power_w": 50}, experiments=listed, sweep={"output.max_tokens": [1, 2]})
    settings = [one.config.simulated for one in made.experiments]
    assert [(one.batch_size, one.decode_ms_per_token, one.power_w) for one in settings if one] == [
        (2, 1, 50),
        (2, 1, 50),
        (1, 9, 50),
        (1, 9, 50),
    ]
    assert [one.display_name for one in made.experiments] == [
        "batch_size=2, max_tokens=1",
        "batch_size=2, max_tokens=2",
        "slow, max_tokens=1",
        "slow, max_tokens=2",
    ]


def test_an_axis_of_a_backend_is_varied_where_it_is_the_backend() -> None:
    found = plan(
        simulated={"power_w": 50},
        pytorch={"num_threads": 1},
        sweep={
            "pytorch.batch_size": [1, 8],
            "backend": ["pytorch", "simulated"],
            "output.max_tokens": [4, 5],
            "include": [{"backend": "pytorch", "pytorch.batch_size": 32}],
        },
    )
    assert found.duplicates == found.refused == 0
    configs = [one.config for one in found.experiments]
    rows = [(c.backend.value, c.pytorch.batch_size if c.pytorch else None, c.output.max_tokens) for c in configs]
    assert rows == [
        ("pytorch", 1, 4),
        ("pytorch", 1, 5),
        ("pytorch", 8, 4),
        ("pytorch", 8, 5),
        ("simulated", None, 4),
        ("simulated", None, 5),
        ("pytorch", 32, 128),
    ]
    assert all((c.simulated is None) == (c.backend == "pytorch") for c in configs)
    assert all(c.pytorch is None or c.pytorch.num_threads == 1 for c in configs)


def test_listed_experiments_may_differ_in_their_backend() -> None:
    listed = [{"backend": "pytorch"}, {}]
    sweep = {"pytorch.batch_size": [1, 8], "simulated.batch_size": [2]}
    made = plan(experiments=listed, sweep=sweep)
    assert [one.config.backend.value for one in made.experiments] == ["pytorch", "pytorch", "simulated"]


@pytest.mark.parametrize(
    ("document", "pointer", "says"),
    [
        ({"sweep": {"output.max_tokens": []}}, "/sweep/output.max_tokens", "has no values"),
        ({"sweep": {"a..b": [1]}}, "/sweep/a..b", "is no path"),
        ({"sweep": {"zip": [{"output.max_tokens": 4}]}}, "/sweep/zip/0", "lists of equal length"),
        ({"sweep": {"zip": [{"output.max_tokens": [4], "decoding.seed": [1, 2]}]}}, "/sweep/zip/0", "has 2"),
        ({"sweep": {"include": [3]}}, "/sweep/include/0", "maps paths to values"),
        ({"sweep": {"include": [{"decoding.seed": 1}] * 201}}, "/sweep/include", "the limit is 200"),
        ({"sweep": {f"a.{place}": [1] for place in range(101)}}, "/sweep", "the limit is 100"),
        ({"sweep": {"output": [{}], "output.max_tokens": [1]}}, "/sweep/output.max_tokens", "keep one"),
        ({"sweep": {"pytorch.batch_size": [1]}}, "/sweep/pytorch.batch_size", "the campaign's is 'simulated'"),
        ({"output": 3, "sweep": {"output.max_tokens": [1]}}, "/sweep/output.max_tokens", "plain value"),
        ({"sweep": {"output.max_tokns": [1]}}, "/sweep/output.max_tokns", "did you mean 'output.max_tokens'?"),
        ({"sweep": {"exclude": [{"output.max_tokns": 1}]}}, "/sweep/exclude/0", "did you mean 'output.max_tokens'?"),
        ({"sweep": {"zip": [{"precision.x": [1]}]}}, "/sweep/zip/0", "did you mean 'precision'?"),
        ({"output": {"mode": "x"}, "sweep": {"output.max_tokens": []}}, "/output/mode", "'fixed' or 'natural'"),
        ({"experiments": [{}, {"outptu": 1}], "sweep": {"a": []}}, "/experiments/1/outptu", "did you mean 'output'?"),
        ({"output": {"mode": "x"}, "sweep": {"decoding.seed": [1], "exclude": [{"decoding.seed": 2}]}},
         "/output/mode", "'fixed' or 'natural'"),
        ({"experiments": [{"output": {"max_tokens": 3}}], "sweep": {"output.max_tokens": [1]}},
         "/experiments/0/output/max_tokens", "swept as output.max_tokens"),
        ({"experiments": [{"name": ""}]}, "/experiments/0/name", "1 to 200"),
        ({"experiments": [{"name": "a"}, {}, {"name": "a", "output": {"max_tokens": 1}}]},
         "/experiments/2/name", "experiment 1 of the list"),
        ({"experiments": [{}, {"output": {"max_tokens": 0}}]}, "/experiments/1/output/max_tokens", "greater than"),
        ({"sweep": {"pytorch.batch_size": [1], "backend": ["simulated"]}}, "/sweep/pytorch.batch_size", "add the"),
        ({"pytorch": {}, "sweep": {"backend": ["simulated", "vlm"]}}, "/pytorch", "remove it"),
    ],
)  # fmt: skip
def test_what_could_not_mean_anything_is_refused_with_its_place(
    document: dict[str, Any], pointer: str, says: str
) -> None:
    assert says in problems(**document)[pointer]


def test_a_model_that_is_swept_or_listed_as_text_is_its_id() -> None:
    for varied in ({"sweep": {"model": ["a", "b"]}}, {"experiments": [{"model": "a"}, {"model": {"id": "b"}}]}):
        made = plan(**{"model": {"id": "x", "weights": "dummy"}, **varied})
        models = [one.config.model for one in made.experiments]
        assert [(one.id, one.weights) for one in models] == [("a", "dummy"), ("b", "dummy")]


def test_nothing_left_is_reported() -> None:
    with pytest.raises(ConfigurationError, match="every combination of the sweep is excluded"):
        plan(sweep={"decoding.seed": [1], "exclude": [{"decoding.seed": 1}]})


def test_merged_combinations_say_what_they_are_the_same_as() -> None:
    made = plan(sweep={"output.max_tokens": [128, 64], "include": [{"decoding.seed": 0}]})
    assert made.duplicates == 1
    assert [tuple(one) for one in made.merged] == [("seed=0", "max_tokens=128")]


@pytest.mark.proves("on_refused", on="domain")
def test_refused_combinations_stop_the_campaign_or_are_left_out() -> None:
    sweep = {"output.max_tokens": [4, 0], "output.min_tokens": [0, 8]}
    assert set(problems(sweep=sweep)) == {"/output", "/output/max_tokens"}
    made = plan(sweep=sweep, on_refused="skip")
    assert (len(made.experiments), made.refused) == (1, 3)
    assert [one.display_name for one in made.refusals] == [
        "max_tokens=4, min_tokens=8",
        "max_tokens=0, min_tokens=0",
        "max_tokens=0, min_tokens=8",
    ]
    with pytest.raises(ConfigurationError):
        plan(sweep={"output.max_tokens": [0]}, on_refused="skip")


def test_values_in_names_are_as_files_have_them() -> None:
    made = plan(
        sweep={
            "record.tokens": [True, False],
            "simulated.fail": [None, {"at": "load", "how": "raise"}],
            "prompts.dataset": ["0123456789ab" + "0" * 52],
        }
    )
    assert [one.display_name for one in made.experiments] == [
        "tokens=true, fail=null, dataset=0123456789ab",
        'tokens=true, fail={"at": "load", "how": "raise"}, dataset=0123456789ab',
        "tokens=false, fail=null, dataset=0123456789ab",
        'tokens=false, fail={"at": "load", "how": "raise"}, dataset=0123456789ab',
    ]


def test_what_differs_from_the_defaults_is_the_whole_configuration() -> None:
    document = {"warmup": {"power_slope": None}, "devices": {"uuids": ["SIM-1"]}, "energy": {"sources": ["simulated"]}}
    whole = ExperimentConfig.model_validate({**BASE, **document})
    (planned,) = plan(**document).experiments
    assert planned.config == whole


# --- bounds -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.sampled_from(["pytorch", "simulated"]), min_size=1, max_size=3),
    st.integers(0, 3),
)
def test_the_number_is_known_without_making_them(lengths: list[int], backends: list[str], included: int) -> None:
    paths = ("output.max_tokens", "pytorch.batch_size", "simulated.batch_size", "decoding.seed")
    sweep: dict[str, Any] = {path: list(range(1, n + 1)) for path, n in zip(paths, lengths, strict=False)}
    sweep["backend"] = backends
    sweep["include"] = [{"pytorch.batch_size": 9, "backend": "pytorch"}] * included
    used = {*backends, *(["pytorch"] if included else [])}
    sweep = {
        path: values for path, values in sweep.items() if path.partition(".")[0] not in {"pytorch", "simulated"} - used
    }
    spec = campaign_from_document({**BASE, "sweep": sweep}, default_name="x")
    combinations = Combinations(spec)
    assert combinations.count() == len(list(combinations))
    assert combinations.backends == backends_in({**BASE, "sweep": sweep}) - ({"simulated"} - used)


@pytest.mark.parametrize("count", [200, 2_000])
def test_however_many_combinations_no_more_than_a_few_are_held_at_once(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is made, checked and let go; what stays of it is a short text, a digest and what is varied."""
    living: weakref.WeakSet[ExperimentConfig] = weakref.WeakSet()
    most = made = 0

    def counted(model: type[ExperimentConfig], document: dict[str, Any]) -> ExperimentConfig:
        nonlocal most, made
        config = model.model_validate(document)
        ids = {id(one) for one in living}
        assert id(config) not in ids
        most, made = max(most, len(ids) + 1), made + 1
        return config

    monkeypatch.setattr(expansion_module, "model_or_problems", counted)
    gc.collect()
    spec = campaign_from_document({**BASE, "sweep": {"decoding.seed": list(range(count))}}, default_name="x")
    planned = preview(spec)
    assert (made, most, len(planned.experiments)) == (count, 1, count)
    assert max(len(one.document) for one in planned.experiments) < 200


def test_a_hundred_thousand_combinations_are_the_limit() -> None:
    seeds = list(range(1000))
    spec = campaign_from_document(
        {**BASE, "sweep": {"decoding.seed": seeds, "output.max_tokens": list(range(1, 101))}}, default_name="x"
    )
    assert Combinations(spec).count() == 100_000
    with pytest.raises(ConfigurationError, match="100100 runs; the limit is 100000"):
        plan(sweep={"decoding.seed": [*seeds, 1000], "output.max_tokens": list(range(1, 101))})
