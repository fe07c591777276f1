"""Which devices a run asks for, as its user writes it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lem_domain.config.devices import DevicesConfig
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import config_hash

DEVICE = {"uuid": "GPU-1", "kind": "gpu", "name": "NVIDIA H100 80GB HBM3"}


def test_named_devices_are_counted() -> None:
    assert DevicesConfig.model_validate({"uuids": ["a", "b"]}).count == 2


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"uuids": ["a", "b"], "count": 1}, "remove count"),
        ({"uuids": ["a", "a"]}, "name each once"),
        ({"uuids": ["a,b"]}, "pattern"),
        ({"kind": "[ab]*"}, "pattern"),
    ],
)
def test_what_makes_no_sense_is_refused(written: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DevicesConfig.model_validate(written)


@pytest.mark.parametrize(
    ("kind", "fits"), [("*h100*", True), ("gpu", True), ("cpu", False), ("NVIDIA ?100*", True), ("H100", False)]
)
def test_a_kind_is_a_pattern_of_the_name_or_the_kind_itself(kind: str, fits: bool) -> None:
    assert DevicesConfig(kind=kind).fit([DEVICE]) is fits


def test_a_pattern_escapes_what_sql_would_take_for_one() -> None:
    assert DevicesConfig(kind="a_b%c*d?e\\f").like_pattern == r"a\_b\%c%d_e\\f"


def test_a_resolved_choice_reads_as_itself() -> None:
    config = ExperimentConfig.model_validate({"model": "m", "devices": {"uuids": ["b", "a"], "kind": "gpu"}})
    again = ExperimentConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert config_hash(again) == config_hash(config)
    assert config_hash(config) != config_hash(ExperimentConfig.model_validate({"model": "m"}))
