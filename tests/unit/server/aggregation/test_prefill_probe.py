"""Prefill by a probe in a window of its own, and decode as the difference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from factories.evidence import Evidence, gpu, ns
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.method import MethodVersion
from lem_domain.results.run import RunResult
from lem_domain.wire.workers import Device
from lem_server.aggregation.result import aggregate

BUSY_W, PROBE_W, REST_W = 200.0, 300.0, 50.0
WINDOW = (1.0, 11.0)
PROBE = (12.0, 14.0)


def power(t: float) -> float:
    if WINDOW[0] <= t < WINDOW[1]:
        return BUSY_W
    return PROBE_W if PROBE[0] <= t < PROBE[1] else REST_W


def energy(t: float) -> float:
    """The integral of `power`."""
    edges = sorted({0.0, *(edge for edge in (*WINDOW, *PROBE) if edge < t), t})
    return sum(power(begin) * (end - begin) for begin, end in itertools.pairwise(edges))


def made(
    told: dict[str, Any] | None, *, batches: bool = False, devices: tuple[Device, ...] = (gpu(0),), **config: Any
) -> Evidence:
    """Two requests of 100 prompt tokens each over the window, continuously batched."""
    evidence = Evidence(
        devices=devices,
        config=ExperimentConfig.model_validate({"backend": "simulated", "model": "m", "prefill_probe": True, **config}),
    )
    for number in range(2):
        begin = WINDOW[0] + 5 * number
        tokens = [begin + 1, begin + 3, begin + 5]
        evidence.request(number, begin, tokens, prompt_tokens=100, batch=number if batches else None)
    evidence.power([0.02 * step for step in range(750)], joules=energy)
    if told is not None:
        evidence.summaries["rank-0"]["prefill_probe"] = told
    return evidence


def told(**changes: Any) -> dict[str, Any]:
    numbers = {
        "begin_ns": ns(PROBE[0]),
        "end_ns": ns(PROBE[1]),
        "requests": 4,
        "prompt_tokens": 400,
    }
    return {**numbers, **changes}


def result_of(evidence: Evidence) -> RunResult:
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def test_a_device_that_no_one_sampled_leaves_no_prefill_energy() -> None:
    evidence = made(told(), devices=(gpu(0), gpu(1)))
    result = result_of(evidence)
    probe = result.energy.probe
    assert probe is not None
    for figure in (result.energy.total, probe.energy, probe.prefill, result.energy.phases.prefill.energy):
        assert figure.joules is None
        assert "GPU-1: no power was sampled" in str(figure.reason)
    assert result.efficiency.energy_per_prompt_token_j.value is None


@pytest.mark.proves("prefill_probe", on="server")
def test_decode_is_the_windows_energy_minus_the_probes_scaled_to_its_prompt_tokens() -> None:
    result = result_of(made(told()))
    probe = result.energy.probe
    assert probe is not None
    assert probe.energy.joules == pytest.approx(600, abs=1)
    assert probe.prefill.joules == pytest.approx(300, abs=1)
    assert probe.decode.joules == pytest.approx(2000 - 300, abs=2)
    split = result.energy.phases
    assert split.method == "probe"
    assert split.prefill.energy == probe.prefill
    assert split.decode.energy == probe.decode
    assert split.prefill.time_s.value is None
    assert result.efficiency.energy_per_prompt_token_j.value == pytest.approx(1.5, abs=0.01)


def test_the_bound_of_the_difference_is_the_sum_of_both() -> None:
    evidence = made(told())
    evidence.method = MethodVersion.M1
    result = result_of(evidence)
    probe = result.energy.probe
    assert probe is not None
    assert probe.prefill.bound_j is not None
    assert probe.energy.bound_j is not None
    assert result.energy.total.bound_j is not None
    assert probe.prefill.bound_j == pytest.approx(probe.energy.bound_j / 2)
    assert probe.decode.bound_j == pytest.approx(result.energy.total.bound_j + probe.prefill.bound_j)


def test_the_meters_bound_of_the_probe_is_not_that_of_the_window_s_prefill() -> None:
    probe = result_of(made(told())).energy.probe
    assert probe is not None and probe.energy.bound_j is not None
    assert (probe.prefill.bound_j, probe.decode.bound_j) == (None, None)
    assert "batches may have other sizes" in str(probe.prefill.bound_reason)
    assert probe.decode.bound_reason == probe.prefill.bound_reason


def test_batches_in_lockstep_report_their_phases_themselves() -> None:
    result = result_of(made(told(), batches=True))
    assert result.energy.phases.method == "lockstep"
    assert result.energy.probe is not None


def test_a_probe_above_the_window_leaves_nothing_for_decode() -> None:
    probe = result_of(made(told(prompt_tokens=10))).energy.probe
    assert probe is not None
    assert probe.decode.joules is None
    assert "nothing is left for decode" in (probe.decode.reason or "")


@pytest.mark.parametrize("said", [None, {}, told(end_ns=0), told(requests="4"), told(prompt_tokens=0)])
def test_a_probe_that_was_not_reported_is_none(said: dict[str, Any] | None) -> None:
    result = result_of(made(said))
    assert result.energy.probe is None
    assert result.energy.phases.prefill.energy.joules is None
