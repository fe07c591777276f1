"""What of modelled energy is a constant of its model: shown by itself, and energy per token without it."""

from __future__ import annotations

import pytest

from factories.evidence import Evidence, cpu
from lem_client.render import explain
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.figures import EnergyMethod
from lem_domain.results.method import MethodVersion
from lem_domain.results.run import RunResult
from lem_server.aggregation.result import aggregate

SAMPLES = [number * 0.1 for number in range(140)]


def result_of(
    domains: dict[str, tuple[float, str]], method: MethodVersion = MethodVersion.M2, *, power: bool = True
) -> RunResult:
    """Four tokens in 10 s on a CPU; each domain is a power in W and a method."""
    config = ExperimentConfig.model_validate({"backend": "simulated", "model": "test", "record": {"power": power}})
    evidence = Evidence(config=config, devices=(cpu(),), method=method)
    evidence.request(0, 1.0, [2.0, 4.0, 6.0, 11.0])
    for name, (watts, how) in domains.items():
        evidence.host_power(name, SAMPLES, joules=lambda t, watts=watts: watts * t, method=how)  # type: ignore[misc]
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def test_modelled_memory_is_a_constant_and_the_rest_follows_the_load() -> None:
    result = result_of({"package": (2.0, "modelled"), "dram": (20.0, "modelled")})
    energy = result.energy
    assert energy.constant.joules == pytest.approx(200)
    assert energy.constant_includes == ("dram",)
    assert energy.without_constant.joules == pytest.approx(20)
    assert energy.without_constant.method is EnergyMethod.MODELLED
    assert energy.without_constant.bound_j is None
    assert result.efficiency.energy_per_output_token_j.value == pytest.approx(220 / 4)
    assert result.efficiency.energy_per_output_token_without_constant_j.value == pytest.approx(20 / 4)
    (finding,) = [one for one in result.findings if one.code == "energy_modelled"]
    assert "200 J of 220 J are a constant" in finding.message
    assert "5 J per output token" in finding.message
    shown = "\n".join(explain.result(result))
    assert "  constant           200 J of 220 J (91%): the memory (dram)" in shown
    assert "  the rest           20.0 J, estimated by a model" in shown


def test_the_rest_is_measured_where_the_package_has_a_counter() -> None:
    result = result_of({"package-0": (30.0, "counter"), "dram": (20.0, "modelled")})
    assert result.energy.total.method is EnergyMethod.MODELLED
    rest = result.energy.without_constant
    assert rest.joules == pytest.approx(300)
    assert rest.method is EnergyMethod.COUNTER
    assert rest.bound_j is not None
    assert result.efficiency.energy_per_output_token_without_constant_j.value == pytest.approx(300 / 4)


def test_measured_memory_is_no_constant() -> None:
    result = result_of({"package-0": (30.0, "counter"), "dram-0": (5.0, "counter")})
    for figure in (result.energy.constant, result.energy.without_constant):
        assert (figure.joules, figure.reason) == (None, "no part of the energy is a constant of a model")
    per_token = result.efficiency.energy_per_output_token_without_constant_j
    assert (per_token.value, per_token.reason) == (None, "no part of the energy is a constant of a model")
    assert result.energy.constant_includes == ()
    assert "  the rest  " not in "\n".join(explain.result(result))


def test_a_model_of_the_package_alone_has_no_constant() -> None:
    assert result_of({"package": (2.0, "modelled")}).energy.constant.joules is None


def test_memory_alone_leaves_nothing() -> None:
    energy = result_of({"dram": (20.0, "modelled")}).energy
    assert energy.constant.joules == pytest.approx(200)
    assert (energy.without_constant.joules, energy.without_constant.reason) == (
        None,
        "all of the energy is a constant of a model",
    )


def test_without_energy_it_has_the_reason_of_the_total() -> None:
    energy = result_of({}, power=False).energy
    assert energy.total.reason == energy.constant.reason == energy.without_constant.reason == "record.power is off"


def test_a_result_by_m1_has_the_fields_that_it_always_had() -> None:
    result = result_of({"package": (2.0, "modelled"), "dram": (20.0, "modelled")}, MethodVersion.M1)
    written = result.model_dump(mode="json")
    assert not {"constant", "constant_includes", "without_constant"} & set(written["energy"])
    assert "energy_per_output_token_without_constant_j" not in written["efficiency"]
    assert RunResult.model_validate(written) == result
