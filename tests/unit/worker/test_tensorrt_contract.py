"""The fake TensorRT-LLM against the API as it is published (LLM API of version 1.2): same names, same defaults, and
nothing unknown is taken. Where the real package is installed, `test_tensorrt_live.py` holds it to the same names."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import ValidationError

from factories.tensorrt_api import GENERATE_ASYNC, LLM_ARGUMENTS, LLM_EXPLICIT, MODELS, OUTPUTS, SAMPLING
from fakes import tensorrt_llm as fake
from fakes.tensorrt_llm import _tensorrt_engine as fake_engine
from fakes.tensorrt_llm import llmapi


def test_it_says_that_it_is_a_fake() -> None:
    assert "fake" in fake.__version__
    assert (fake.__doc__ or "").startswith("A FAKE")


def test_the_constructors_take_the_published_arguments() -> None:
    for constructor in (fake.LLM, fake_engine.LLM):
        parameters = list(inspect.signature(constructor).parameters)
        assert parameters[:-1] == list(LLM_EXPLICIT)
        assert parameters[-1] == "kwargs"
    assert set(LLM_ARGUMENTS) <= set(llmapi.TorchLlmArgs.model_fields)


def test_an_unknown_argument_raises(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="LLM got invalid argument: max_batchsize"):
        fake.LLM(model=tmp_path, max_batchsize=4)
    with pytest.raises(ValueError, match="specific to TensorRT backend"):
        fake.LLM(model=tmp_path, quant_config=llmapi.QuantConfig())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_configuration_models_have_the_published_fields_and_no_others(name: str) -> None:
    model = getattr(llmapi, name)
    for field, default in MODELS[name].items():
        assert model.model_fields[field].get_default(call_default_factory=True) == default
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model(no_such_field=1)


def test_sampling_has_the_published_parameters_and_defaults() -> None:
    parameters = inspect.signature(fake.SamplingParams).parameters
    assert {name: parameters[name].default for name in SAMPLING} == SAMPLING
    with pytest.raises(TypeError):
        fake.SamplingParams(no_such_parameter=1)  # type: ignore[call-arg]


def test_requests_take_and_give_the_published_names() -> None:
    parameters = list(inspect.signature(fake.LLM.generate_async).parameters)
    assert set(GENERATE_ASYNC) <= set(parameters)
    made = {
        "RequestOutput": llmapi.RequestOutput(1, [1], streaming=True, abort=lambda: None),
        "CompletionOutput": llmapi.CompletionOutput(index=0),
    }
    for name, members in OUTPUTS.items():
        assert [member for member in members if not hasattr(made[name], member)] == []
