"""What the cycles of one experiment show together: drift, and the conditions of a publication."""

from __future__ import annotations

from typing import Any

import pytest

from factories.evidence import Evidence
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.findings import FindingCode
from lem_domain.results.run import RunResult
from lem_domain.wire.runs import EffectiveConfig, EffectiveParameter
from lem_server.aggregation.findings.cycles import Cycle, drift_between
from lem_server.aggregation.publication import publication_conditions
from lem_server.aggregation.result import aggregate
from lem_server.aggregation.summaries import CycleTally

GOOD = Cycle(
    mean_power_w=300,
    start_temperature_c=50,
    energy_per_output_token_j=1,
    steady_s=70,
    has_baselines=True,
    warnings=0,
)


def with_powers(*watts: float | None, **changes: Any) -> list[Cycle]:
    return [GOOD._replace(mean_power_w=power, **changes) for power in watts]


def test_power_that_drifts_from_cycle_to_cycle_is_found_with_its_size() -> None:
    (found,) = drift_between(with_powers(300, 302, 306, 307, 312))
    assert found.code is FindingCode.CYCLES_DRIFT
    assert found.numbers["power_change"] == pytest.approx(11.6 / 305.4, rel=1e-3)
    assert (found.numbers["first_c"], found.numbers["last_c"]) == (50, 50)
    assert "energy_change_per_c" not in found.numbers, "all began at the same temperature"


def test_the_energy_of_a_token_is_fitted_against_the_start_temperature() -> None:
    cycles = [
        GOOD._replace(mean_power_w=300 + 4 * n, start_temperature_c=50 + n, energy_per_output_token_j=1 + 0.003 * n)
        for n in range(5)
    ]
    (found,) = drift_between(cycles)
    assert found.numbers["energy_change_per_c"] == pytest.approx(0.003 / 1.006)


@pytest.mark.parametrize(
    "cycles",
    [
        with_powers(300, 310, 320, 330),
        with_powers(300, 301, 302, 303, 304),
        with_powers(300, 330, 290, 325, 310),
        with_powers(300, 310, None, 330, 340),
        [],
    ],
    ids=["four cycles", "below 2 %", "spread without trend", "one without power", "none"],
)
def test_less_is_no_drift(cycles: list[Cycle]) -> None:
    assert drift_between(cycles) == ()


def met(cycles: list[Cycle]) -> dict[str, bool]:
    return {condition.name: condition.met for condition in publication_conditions(cycles)}


def test_five_good_cycles_meet_every_condition() -> None:
    assert set(met([GOOD] * 5).values()) == {True}


@pytest.mark.parametrize(
    ("cycles", "missing"),
    [
        ([GOOD] * 4, {"cycles"}),
        ([*[GOOD] * 4, GOOD._replace(steady_s=59.9)], {"steady_state"}),
        ([*[GOOD] * 4, GOOD._replace(steady_s=None)], {"steady_state"}),
        ([*[GOOD] * 4, GOOD._replace(start_temperature_c=54.1)], {"start_temperature"}),
        ([*[GOOD] * 4, GOOD._replace(start_temperature_c=None)], {"start_temperature"}),
        ([*[GOOD] * 4, GOOD._replace(has_baselines=False)], {"baselines"}),
        ([*[GOOD] * 4, GOOD._replace(warnings=1)], {"findings"}),
        ([], {"cycles", "steady_state", "start_temperature", "baselines", "findings"}),
    ],
)
def test_each_condition_that_one_cycle_misses_is_not_met(cycles: list[Cycle], missing: set[str]) -> None:
    assert {name for name, fulfilled in met(cycles).items() if not fulfilled} == missing


def one(start_c: int) -> RunResult:
    """A run of 60 s at batch size 1, at 100 W."""
    evidence = Evidence(
        config=ExperimentConfig.model_validate({"backend": "simulated", "model": "m"}),
        effective_config=EffectiveConfig(
            engine="simulated",
            parameters=(EffectiveParameter(name="simulated.batch_size", requested=1, effective=1, confirmed=True),),
        ),
    )
    evidence.request(0, 0.0, [1.0 + number for number in range(62)], scheduled=0.0, batch=0)
    times = [0.1 * number - 14 for number in range(900)]
    evidence.power(times, joules=lambda t: 100 * t + 10_000, temperature_c=lambda t: start_c + int(t > 0.05))
    evidence.baseline("ready", -13, -1)
    evidence.baseline("ready_after", 63, 75)
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def test_what_is_compared_comes_from_the_results() -> None:
    result = one(47)
    assert result.telemetry.devices[0].temperature_start_c.value == 47
    cycle = Cycle.of(result)
    assert cycle.mean_power_w == pytest.approx(100)
    assert (cycle.start_temperature_c, cycle.steady_s, cycle.has_baselines) == (47, 62, True)
    tally = CycleTally()
    for _ in range(5):
        tally.add(result)
    assert {condition.name for condition in tally.summary().publication if condition.met} >= {
        "cycles",
        "steady_state",
        "start_temperature",
        "baselines",
    }


def test_a_run_without_temperatures_has_none_at_its_start() -> None:
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0, 12.0])
    evidence.power([0.1 * number - 1 for number in range(150)], joules=lambda t: 100 * t + 1000)
    stored = evidence.stored()
    (device,) = aggregate(stored.inputs, stored.source).telemetry.devices
    assert device.temperature_start_c.value is None and device.temperature_start_c.reason
