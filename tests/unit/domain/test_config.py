"""Configuration: strictness, sweeps, order, hashes."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_domain.config.campaign import CampaignSpec, campaign_from_document
from lem_domain.config.expansion import expand
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import canonical_json, config_hash
from lem_domain.config.presets import DECODING_PRESETS, DecodingPreset, builtin_presets
from lem_domain.errors import ConfigurationError

TINY = {"model": "builtin:tiny-llama"}


def problems(document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        expand(campaign_from_document(document, default_name="x"))
    return {found.pointer: found.message for found in caught.value.field_problems}


def test_two_lines_are_a_campaign() -> None:
    plan = expand(campaign_from_document({"model": "some/model", "backend": "pytorch"}, default_name="two-lines"))
    assert [experiment.config.model.id for experiment in plan.experiments] == ["some/model"]
    assert plan.experiments[0].display_name == "two-lines"


@pytest.mark.parametrize(
    ("document", "pointer", "says"),
    [
        ({"modle": "x"}, "/modle", "did you mean 'model'"),
        ({**TINY, "pytorch": {"bacth_size": 2}}, "/pytorch/bacth_size", "did you mean 'batch_size'"),
        ({**TINY, "output": {"max_tokens": "many"}}, "/output/max_tokens", "'many'"),
        ({**TINY, "output": {"max_tokens": 4, "min_tokens": 5, "mode": "natural"}}, "/output", "lower it"),
        ({**TINY, "decoding": {"top_k": 5}}, "/decoding", "no effect under greedy"),
        ({**TINY, "backend": "vlm"}, "/backend", "'vlm'"),
        ({**TINY, "simulated": {}}, "/simulated", "belongs to another backend"),
        ({**TINY, "prompts": {"builtin": "a", "file": "b"}}, "/prompts", "keep one source"),
        ({**TINY, "prompts": {"column": "a"}}, "/prompts", "set `file`"),
        ({"backend": "pytorch"}, "/model", "required"),
        ({"model": {"id": "x", "weights": "none"}}, "/model/weights", "'none'"),
        ({**TINY, "warmup": {"min_requests": 9, "max_requests": 3}}, "/warmup", "lower it"),
        (
            {**TINY, "backend": "simulated", "simulated": {"fail": {"at": "load", "how": "raise", "process": 3}}},
            "/simulated",
            "only 1 processes",
        ),
    ],
)
def test_bad_input_names_its_place_and_the_remedy(document: dict[str, object], pointer: str, says: str) -> None:
    found = problems(document)
    assert says in found[pointer]


def test_all_problems_are_reported_at_once() -> None:
    found = problems({"model": {"idd": 3}, "output": {"max_tokens": 0}, "limits": {"load_s": -1}})
    assert set(found) == {"/model/id", "/model/idd", "/output/max_tokens", "/limits/load_s"}


def test_a_sweep_is_checked_in_every_combination() -> None:
    found = problems({**TINY, "sweep": {"pytorch.batch_size": [1, 0, -2], "output.max_tokens": [4]}})
    assert list(found) == ["/pytorch/batch_size"]


def test_a_sweep_path_through_a_plain_value_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="plain value"):
        expand(campaign_from_document({**TINY, "output": 3, "sweep": {"output.max_tokens": [1]}}, default_name="x"))


def test_a_sweep_leaves_its_base_alone() -> None:
    spec = campaign_from_document(
        {**TINY, "pytorch": {"batch_size": 2}, "sweep": {"pytorch.batch_size": [1, 8]}}, default_name="x"
    )
    before = json.dumps(spec.experiment)
    plan = expand(spec)
    assert json.dumps(spec.experiment) == before
    assert [e.config.pytorch.batch_size for e in plan.experiments if e.config.pytorch] == [1, 8]
    assert [e.display_name for e in plan.experiments] == ["batch_size=1", "batch_size=8"]


def test_equal_combinations_are_one_experiment() -> None:
    plan = expand(campaign_from_document({**TINY, "sweep": {"output.max_tokens": [128, 64, 128]}}, default_name="x"))
    assert len(plan.experiments) == 2
    assert plan.duplicates == 1


def test_too_many_runs_are_refused_before_they_are_made() -> None:
    sweep = {"decoding.seed": list(range(1000)), "output.max_tokens": list(range(1, 1001))}
    with pytest.raises(ConfigurationError, match="1000000 runs"):
        expand(campaign_from_document({**TINY, "sweep": sweep}, default_name="x"))


def hash_of(**document: object) -> str:
    return config_hash(ExperimentConfig.model_validate(document))


def test_equal_spellings_have_equal_hashes() -> None:
    plain = hash_of(model="m")
    assert plain == hash_of(model={"id": "m"})
    assert plain == hash_of(model="m", backend="pytorch", pytorch={})
    assert plain == hash_of(model="m", output={"max_tokens": 128}, pytorch={"batch_size": 1})
    assert plain != hash_of(model="m", output={"max_tokens": 127})


def test_hashes_stay_what_they_are() -> None:
    """Golden values: a change here makes every stored experiment another one, so it needs a new HASH_VERSION."""
    assert hash_of(model="builtin:tiny-llama") == GOLDEN_PLAIN
    assert hash_of(model="builtin:tiny-llama", pytorch={"batch_size": 8}, output={"max_tokens": 32}) == GOLDEN_BATCH


@pytest.mark.parametrize(
    ("document", "digest"),
    [
        (
            {
                "model": "m",
                "backend": "vllm",
                "vllm": {"max_num_seqs": 8, "speculative_config": {"num_speculative_tokens": 3}},
                "precision": "bfloat16",
            },
            "c47c23720036eb60220408aa952536506e9c9a7363b90ca6f354938b83cbeb5b",
        ),
        (
            {
                "model": {"id": "m", "weights": "dummy"},
                "backend": "tensorrt",
                "tensorrt": {"tensor_parallel_size": 2, "kv_cache": {"dtype": "fp8"}},
                "devices": {"count": 2},
            },
            "4ceda24acc46bd9ac91c3bfc0ac06b0b6c040665fcd76a73e7d20d2f220f84dd",
        ),
        (
            {
                "model": "m",
                "backend": "simulated",
                "simulated": {"power_w": 50, "fail": {"at": "load", "how": "raise"}},
                "traffic": {"mode": "open", "rate_per_s": 0.1, "slo": {"ttft_ms": 200}},
            },
            "86f5196f236677f693fdef60dc8408f2f7aa93d759fce1c67e836f65533eb220",
        ),
        (
            {
                "model": "ü",
                "decoding": "creative",
                "prompts": {"synthetic": {"prompt_tokens": 9, "count": 4}},
                "warmup": {"power_slope": None},
                "energy": {"sources": ["rapl"]},
                "carbon": {"country": "FRA"},
                "allow": ["pytorch.batch_size"],
            },
            "7449d3b792191d932e560222346d7837ff5125f7486bcbd14820584b1939b4f5",
        ),
    ],
    ids=["vllm", "tensorrt", "simulated", "universal"],
)
def test_hashes_of_every_tier_stay_what_they_are(document: dict[str, object], digest: str) -> None:
    assert hash_of(**document) == digest
    whole = ExperimentConfig.model_validate(document).model_dump(mode="json")
    assert hash_of(**whole) == digest, "every default written out"


GOLDEN_PLAIN = "c62c49a78f23be2617c7fd8ef6d96de97a9a562250d26cd8e19390d08c676e5d"
GOLDEN_BATCH = "fb81d23055d40a83ed6aea07911dbda593af76b99ee2ae373fcb441d97962faf"


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_canonical_json_does_not_depend_on_key_order(value: object) -> None:
    def reverse(item: object) -> object:
        if not isinstance(item, dict):
            return item
        return {key: reverse(inner) for key, inner in reversed(list(item.items()))}

    assert canonical_json(value) == canonical_json(reverse(value))  # type: ignore[arg-type]


def test_a_name_for_decoding_means_the_same_as_a_preset_and_as_its_key() -> None:
    assert get_args(DecodingPreset) == tuple(DECODING_PRESETS)
    for name in DECODING_PRESETS:
        by_key = hash_of(model="m", decoding=name)
        assert by_key == hash_of(model="m", decoding={"preset": name})
        assert by_key == hash_of(model="m", **builtin_presets()[name].values)


def test_a_campaign_rejects_unknown_execution_keys() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'cycles'"):
        campaign_from_document({**TINY, "execution": {"cycle": 3}}, default_name="x")


def test_a_spec_survives_json() -> None:
    spec = campaign_from_document(
        {**TINY, "sweep": {"pytorch.batch_size": [1]}, "labels": {"a": "b"}}, default_name="x"
    )
    assert CampaignSpec.model_validate_json(spec.model_dump_json()) == spec
