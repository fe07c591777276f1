"""Power of simulated devices: the counter is the exact integral of what is shown as power."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lem_domain.backends.simulated import SimulatedPower
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.sampler.sources.simulated import SimulatedSource, energy_j, power_w

SHAPES = {
    "ramp": SimulatedPower(shape="ramp", peak_w=300, period_s=4),
    "sawtooth": SimulatedPower(shape="sawtooth", peak_w=20, period_s=0.7),
    "burst": SimulatedPower(shape="burst", peak_w=400, period_s=0.25, duty=0.2),
    "constant": None,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_energy_is_the_integral_of_power(shape: str) -> None:
    power, steps = SHAPES[shape], 40_000
    for seconds in (0.0, 0.1, 0.7, 3.9, 4.0, 10.3):
        width = seconds / steps
        summed = math.fsum(power_w(100, power, (step + 0.5) * width) * width for step in range(steps))
        assert energy_j(100, power, seconds) == pytest.approx(summed, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(
    ("shape", "seconds", "joules"),
    [
        ("ramp", 4, 800),
        ("ramp", 6, 1400),
        ("sawtooth", 1.4, 84),
        ("burst", 1, 160),
        ("burst", 0.05, 20),
        ("constant", 3, 300),
    ],
)
def test_known_integrals(shape: str, seconds: float, joules: float) -> None:
    assert energy_j(100, SHAPES[shape], seconds) == pytest.approx(joules)


def source_of(**simulated: Any) -> SimulatedSource:
    config = ExperimentConfig.model_validate({"backend": "simulated", "model": "m", "simulated": simulated})
    source = SimulatedSource(config, lambda: 0)
    source.open([Device(uuid="SIM-0", kind=DeviceKind.SIMULATED, name="s")])
    return source


@pytest.mark.proves("simulated.power_w", on="simulated")
def test_constant_power_and_its_counter() -> None:
    (sample,) = source_of(power_w=150).sample(2_000_000_000)
    assert (sample.power_mw, sample.energy_mj) == (150_000, 300_000)


@pytest.mark.proves(
    "simulated.power.shape",
    "simulated.power.peak_w",
    "simulated.power.period_s",
    "simulated.power.duty",
    on="simulated",
)
def test_a_burst_shows_in_power_and_in_the_counter() -> None:
    source = source_of(power_w=100, power={"shape": "burst", "peak_w": 400, "period_s": 1, "duty": 0.25})
    samples = [source.sample(at * 250_000_000)[0] for at in (0, 1, 2, 4, 5)]
    assert [sample.power_mw for sample in samples] == [400_000, 100_000, 100_000, 400_000, 100_000]
    assert [sample.energy_mj for sample in samples] == [0, 100_000, 125_000, 175_000, 275_000]
