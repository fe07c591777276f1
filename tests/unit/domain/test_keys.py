"""Keys of the universal tier that are settled before a worker sees them."""

from __future__ import annotations

from typing import Any

import pytest

from lem_domain.arrivals import TraceError, parse_trace, trace_lines
from lem_domain.config.campaign import campaign_from_document
from lem_domain.config.expansion import expand
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.config.hashing import config_hash
from lem_domain.config.keys import key_paths
from lem_domain.config.presets import DECODING_PRESETS
from lem_domain.errors import ConfigurationError


def config(**document: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"model": "m", **document})


def refusal(**document: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        expand(campaign_from_document({"model": "m", **document}, default_name="x"))
    return "; ".join(found.message for found in caught.value.field_problems)


# --- decoding presets -------------------------------------------------------------------------------------------------


@pytest.mark.proves("decoding.preset", on="client")
@pytest.mark.parametrize("name", DECODING_PRESETS)
def test_a_decoding_preset_is_the_same_experiment_as_its_values(name: str) -> None:
    spelled = config(decoding=dict(DECODING_PRESETS[name]))
    for written in (name, {"preset": name}):
        named = config(decoding=written)
        assert named.decoding == spelled.decoding
        assert config_hash(named) == config_hash(spelled)
    assert "preset" not in config(decoding=name).model_dump()["decoding"]


def test_written_values_go_before_those_of_the_preset() -> None:
    decoding = config(decoding={"preset": "creative", "temperature": 0.5}).decoding
    assert (decoding.temperature, decoding.top_p, decoding.repetition_penalty) == (0.5, 0.9, 1.1)


def test_presets_differ_from_each_other() -> None:
    assert len({config_hash(config(decoding=name)) for name in DECODING_PRESETS}) == len(DECODING_PRESETS)


def test_a_preset_that_there_is_not_is_refused() -> None:
    assert "'creativ'" in refusal(decoding={"preset": "creativ"})
    assert "'creativ'" in refusal(decoding="creativ")


def test_a_preset_can_be_swept() -> None:
    plan = expand(
        campaign_from_document({"model": "m", "sweep": {"decoding.preset": ["greedy", "factual"]}}, default_name="x")
    )
    assert [one.config.decoding.temperature for one in plan.experiments] == [0, 0.3]


# --- what is allowed to differ ----------------------------------------------------------------------------------------


def test_only_what_there_is_can_be_allowed() -> None:
    assert "did you mean 'pytorch.batch_size'" in refusal(allow=["pytorch.bacth_size"])
    assert config(allow=["pytorch.batch_size", "output.mode"]).allow == ("pytorch.batch_size", "output.mode")


def test_every_key_has_a_path() -> None:
    paths = key_paths(ExperimentConfig)
    assert {"model", "model.id", "traffic.slo.ttft_ms", "simulated.fail.how", "prompts.synthetic.spread"} <= paths


# --- traffic, window, prompts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"traffic": {"mode": "open", "arrivals": "trace"}}, "set trace_file"),
        ({"traffic": {"mode": "open", "arrivals": "trace", "trace": "0" * 64, "rate_per_s": 1}}, "remove it"),
        ({"traffic": {"mode": "open", "rate_per_s": 1, "trace_file": "t"}}, "set both or remove it"),
        ({"traffic": {"trace_file": "t"}}, "set both or remove it"),
        ({"traffic": {"mode": "open", "rate_per_s": 0}}, "greater than 0"),
        ({"window": {"min_duration_s": 20, "max_duration_s": 10}}, "lower it"),
        ({"prompts": {"synthetic": {"prompt_tokens": 4, "spread": 4}}}, "keep it below prompt_tokens"),
        ({"prompts": {"synthetic": {"prompt_tokens": 500, "spread": 20}}}, "up to 520 tokens and input.max_tokens is"),
        ({"prompts": {"synthetic": {"prompt_tokens": 4}, "chat_template": True}}, "no effect on synthetic"),
        ({"prompts": {"synthetic": {"prompt_tokens": 4}, "builtin": "a"}}, "keep one source"),
        ({"prompts": {"huggingface": {"dataset": "d"}, "file": "a"}}, "keep one source"),
    ],
)
def test_what_has_no_effect_or_can_not_be_is_refused(document: dict[str, Any], says: str) -> None:
    assert says in refusal(**document)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no arrivals"),
        ("1\nx", "line 2"),
        ("2\n1", "line 2"),
        ("-1", "line 1"),
        ("inf", "line 1"),
        ("0\n0", "0 s"),
    ],
)
def test_a_trace_of_arrivals_is_checked(text: str, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        trace_lines(text)


def test_a_trace_is_a_time_a_line() -> None:
    assert parse_trace(trace_lines(" 0.5\n\n1\n1\n2.25\n")) == (0.5, 1.0, 1.0, 2.25)
