"""Rules between keys: each refuses with its remedy, and all problems of a configuration are told at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lem_domain.config.campaign import campaign_from_document
from lem_domain.config.expansion import expand
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.validation import model_or_problems
from lem_domain.errors import ConfigurationError

OPEN = {"mode": "open", "rate_per_s": 1}


def told(**document: Any) -> list[tuple[str, str]]:
    """Place and message of every problem."""
    with pytest.raises(ConfigurationError) as caught:
        expand(campaign_from_document(document, default_name="x"))
    return [(found.pointer, found.message) for found in caught.value.field_problems]


@pytest.mark.parametrize(
    ("document", "place", "says"),
    [
        (
            {"simulated": {}},
            "/simulated",
            "section 'simulated' belongs to another backend than 'pytorch'; remove it",
        ),
        ({"simulated": {}, "vllm": {}}, "/vllm", "section 'vllm' and section 'simulated' belong to another backend"),
        ({"output": {"max_tokens": 2, "min_tokens": 3, "mode": "natural"}}, "/output", "above max_tokens 2; lower it"),
        ({"output": {"min_tokens": 3}}, "/output", "no effect under mode fixed"),
        ({"decoding": {"top_p": 0.5}}, "/decoding", "top_p has no effect under greedy decoding; set temperature"),
        ({"decoding": {"preset": "standard", "temperature": 0}}, "/decoding", "top_p has no effect under greedy"),
        ({"traffic": {"mode": "open"}}, "/traffic", "needs rate_per_s; set it"),
        ({"traffic": {"mode": "open", "rate_per_s": 0}}, "/traffic/rate_per_s", "greater than 0"),
        ({"traffic": {"mode": "closed"}}, "/traffic", "needs concurrency; set it"),
        ({"traffic": {"concurrency": 3}}, "/traffic", "concurrency has no effect under traffic.mode offline"),
        ({"traffic": {"arrivals": "trace"}}, "/traffic", "no effect without mode: open"),
        ({"traffic": {"slo": {}}}, "/traffic/slo", "ttft_ms"),
        ({"window": {"min_duration_s": 9, "max_duration_s": 3}}, "/window", "above max_duration_s 3; lower it"),
        ({"warmup": {"min_requests": 9, "max_requests": 3}}, "/warmup", "above max_requests 3; lower it"),
        ({"baseline": {"min_s": 9, "max_s": 3}}, "/baseline", "above max_s 3; lower it"),
        ({"baseline": {"enabled": False, "required": True}}, "/baseline/required", "remove one of them"),
        ({"window": {"repeat": "drained"}}, "/window/repeat", "no effect on backend 'pytorch'"),
        (
            {"backend": "vllm", "window": {"repeat": "drained"}, "traffic": {"mode": "closed", "concurrency": 2}},
            "/window/repeat",
            "no effect under traffic.mode closed; remove it",
        ),
        (
            {"record": {"power": False}, "energy": {"required": True}},
            "/record/power",
            "energy.required needs it; set it",
        ),
        ({"record": {"power": False}, "prefill_probe": True}, "/record/power", "prefill_probe needs it; set it on"),
        ({"backend": "simulated", "quality": True}, "/quality", "set backend: pytorch"),
        ({"backend": "tensorrt", "precision": "float32"}, "/precision", "does not run in float32; set precision to"),
        (
            {"backend": "tensorrt", "devices": {"count": 2}},
            "/tensorrt/tensor_parallel_size",
            "set devices.count: 1, or change the parallel sizes",
        ),
        (
            {"backend": "vllm", "vllm": {"tensor_parallel_size": 4}, "devices": {"count": 2}},
            "/vllm/tensor_parallel_size",
            "vllm.tensor_parallel_size 4 needs as many GPUs and devices.count leases 2; set devices.count: 4",
        ),
        (
            {"backend": "vllm", "vllm": {"tensor_parallel_size": 2}, "devices": {"kind": "gpu"}},
            "/vllm/tensor_parallel_size",
            "leases 1; set devices.count: 2",
        ),
        (
            {"pytorch": {"num_processes": 2}, "devices": {"uuids": ["GPU-8f6d4b2e"]}},
            "/pytorch/num_processes",
            "leases 1; set devices.count: 2",
        ),
        (
            {"pytorch": {"num_processes": 3}, "devices": {"count": 2}},
            "/pytorch/num_processes",
            "leases 2; set devices.count: 3",
        ),
        ({"carbon": {}}, "/carbon", "set either gco2e_per_kwh or country"),
        ({"carbon": {"gco2e_per_kwh": 1, "country": "FRA"}}, "/carbon", "set either gco2e_per_kwh or country"),
        (
            {
                "backend": "simulated",
                "simulated": {"num_processes": 3},
                "traffic": {"mode": "closed", "concurrency": 2},
            },
            "/traffic/concurrency",
            "3 processes",
        ),
    ],
)
def test_what_can_not_be_together_is_refused_with_its_remedy(document: dict[str, Any], place: str, says: str) -> None:
    found = told(model="m", **document)
    assert [at for at, message in found if says in message] == [place], found


@pytest.mark.parametrize(
    "document",
    [
        {"backend": "vllm", "vllm": {"tensor_parallel_size": 2}},
        {"backend": "vllm", "vllm": {"tensor_parallel_size": 2}, "devices": {"kind": "cpu"}},
        {"pytorch": {"num_processes": 2}, "devices": {"kind": "*Xeon*"}},
        {"backend": "vllm", "vllm": {"tensor_parallel_size": 2}, "devices": {"count": 2}},
        {"pytorch": {"num_processes": 2}, "devices": {"count": 4}},
        {"pytorch": {"num_processes": 2}},
    ],
)
def test_processes_on_the_cpu_and_on_as_many_gpus_are_accepted(document: dict[str, Any]) -> None:
    """On the CPU the processes share its cores; whether it is one is known to the worker alone."""
    assert len(expand(campaign_from_document({"model": "m", **document}, default_name="x")).experiments) == 1


def test_every_problem_of_one_validation_is_reported_at_once() -> None:
    """Invalid values, and the rules of every section whose values are valid."""
    found = told(
        model="m",
        precision="float8",
        simulated={"batch_size": 0},
        output={"max_tokens": 2, "min_tokens": 3},
        decoding={"top_k": 3, "temprature": 1},
        traffic={"concurrency": 2, "rate_per_s": 1},
    )
    assert sorted(place for place, _ in found) == [
        "/decoding/temprature",
        "/output",
        "/output",
        "/precision",
        "/simulated/batch_size",
        "/traffic",
    ]
    said = " | ".join(message for _, message in found)
    assert all(word in said for word in ("'float8'", "'temperature'", "min_tokens 3", "concurrency", "rate_per_s"))


def test_every_rule_between_sections_is_reported_at_once() -> None:
    found = told(
        model="m", simulated={}, record={"power": False}, prefill_probe=True, quality=True, allow=["pytorch.bacth_size"]
    )
    assert sorted(place for place, _ in found) == ["/allow", "/record/power", "/simulated"]
    assert "did you mean 'pytorch.batch_size'" in " ".join(message for _, message in found)


def test_a_rule_that_reads_a_key_with_a_problem_is_not_asked() -> None:
    found = told(model="m", output={"max_tokens": "many", "min_tokens": 200, "mode": "natural"})
    assert [place for place, _ in found] == ["/output/max_tokens"]
    found = told(model="m", traffic={"mode": "open", "rate_per_s": "fast"})
    assert [place for place, _ in found] == ["/traffic/rate_per_s"]


def test_a_missing_model_hides_no_rule_of_a_section() -> None:
    found = told(backend="pytorch", window={"min_duration_s": 9, "max_duration_s": 3})
    assert [place for place, _ in found] == ["/model", "/window"]


def test_all_of_several_rules_are_reported() -> None:
    with pytest.raises(ValidationError, match=r"lower it; min_tokens has no effect under mode fixed"):
        ExperimentConfig.model_validate({"model": "m", "output": {"max_tokens": 2, "min_tokens": 3}})


@given(
    st.dictionaries(
        st.sampled_from(sorted(ExperimentConfig.model_fields)),
        st.recursive(
            st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["max_tokens", "mode", "preset", "fail", "uuids", "slo", "x"]), inner)
            ),
            max_leaves=6,
        ),
    )
)
def test_whatever_is_written_is_a_configuration_or_problems(document: dict[str, Any]) -> None:
    try:
        model_or_problems(ExperimentConfig, document)
    except ConfigurationError as error:
        assert error.field_problems
