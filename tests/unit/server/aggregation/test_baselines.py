"""Power without requests, and net energy: gross less the ready power over the window, never clamped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest

from factories.evidence import Evidence, cpu, gpu
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.energy import Baseline
from lem_domain.results.figures import EnergyMethod
from lem_domain.results.method import MethodVersion
from lem_domain.results.run import RunResult
from lem_server.aggregation.result import aggregate

SAMPLES = [number * 0.05 for number in range(1201)]
"""A minute: idle 0 to 12 s, ready 15 to 25 s, the window 30 to 42 s, ready again 45 to 55 s."""


def step(idle: float, ready: float, busy: float, after: float) -> Callable[[float], float]:
    """Cumulative energy of power that stays at each level until 14, 28, 43 s and for ever."""

    def joules(t: float) -> float:
        spans = ((0, 14, idle), (14, 28, ready), (28, 43, busy), (43, math.inf, after))
        return sum(watts * max(0.0, min(t, end) - begin) for begin, end, watts in spans)

    return joules


def made(*contexts: str, **fields: object) -> Evidence:
    evidence = Evidence(**fields)  # type: ignore[arg-type]
    evidence.request(0, 30.0, [31.0, 36.0, 42.0])
    spans = {"idle": (0.0, 12.0), "ready": (15.0, 25.0), "ready_after": (45.0, 55.0)}
    for context in contexts or tuple(spans):
        evidence.baseline(context, *spans[context])
    return evidence


def result_of(evidence: Evidence) -> RunResult:
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def by_context(result: RunResult) -> dict[str, Baseline]:
    return {baseline.context: baseline for baseline in result.energy.baselines}


def test_baselines_and_net_energy_of_constant_powers() -> None:
    evidence = made(method=MethodVersion.M1)
    evidence.power(SAMPLES, joules=step(40, 60, 200, 61))
    result = result_of(evidence)
    found = by_context(result)
    assert [baseline.mean_power_w.value for baseline in found.values()] == pytest.approx([40, 60, 61], abs=0.01)
    assert list(found) == ["idle", "ready", "ready_after"]
    assert (found["ready"].duration_s, found["ready"].stationary) == (10, True)
    assert found["ready"].standard_error_w == pytest.approx(0, abs=0.01)
    net = result.energy.net
    assert net.joules == pytest.approx(200 * 12 - 60 * 12, abs=0.1)
    assert net.method is EnergyMethod.COUNTER
    gross, ready = result.energy.total.bound_j, found["ready"].bound_w
    assert gross is not None and ready is not None
    # The gross energy's bound, the baseline's, and the watt that lies between the two ready readings.
    assert net.bound_j == pytest.approx(gross + (ready + 1) * 12, abs=0.5)
    assert result.efficiency.net_energy_per_output_token_j.value == pytest.approx(1680 / 3, abs=0.1)


def test_negative_net_energy_is_not_clamped() -> None:
    evidence = made()
    evidence.power(SAMPLES, joules=step(40, 80, 50, 80))
    assert result_of(evidence).energy.net.joules == pytest.approx((50 - 80) * 12, abs=0.1)


def test_an_idle_baseline_of_an_earlier_attempt_keeps_its_age() -> None:
    evidence = made("ready")
    evidence.event(
        "sampler",
        "baseline_reused",
        json.dumps({"context": "idle", "parts": {"GPU-0": 41.5}, "age_s": 120.0, "taken_by": "att_1"}),
    )
    evidence.power(SAMPLES, joules=step(40, 60, 200, 60))
    idle = by_context(result_of(evidence))["idle"]
    assert (idle.mean_power_w.value, idle.age_s, idle.taken_by, idle.duration_s) == (41.5, 120.0, "att_1", None)


def test_without_a_ready_baseline_net_energy_is_null_with_a_reason() -> None:
    evidence = made("idle")
    evidence.power(SAMPLES, joules=step(40, 60, 200, 60))
    net = result_of(evidence).energy.net
    assert (net.joules, net.reason) == (None, "no ready baseline was recorded before the window")


def test_baselines_switched_off_are_the_reason() -> None:
    evidence = made("idle")
    evidence.config = ExperimentConfig.model_validate(
        {"backend": "simulated", "model": "test", "baseline": {"enabled": False}}
    )
    evidence.power(SAMPLES, joules=step(40, 60, 200, 60))
    assert "baseline.enabled" in str(result_of(evidence).energy.net.reason)


def test_a_ready_baseline_that_reaches_into_the_window_is_not_used() -> None:
    evidence = made("idle")
    evidence.baseline("ready", 25.0, 31.0)
    evidence.power(SAMPLES, joules=step(40, 60, 200, 60))
    assert result_of(evidence).energy.net.reason == "the ready baseline reaches into the window"


@pytest.mark.parametrize("at", [27.0, 44.0])
def test_a_counter_that_was_reset_between_baseline_and_window_does_no_harm(at: float) -> None:
    evidence = made()
    joules = step(40, 60, 200, 60)
    evidence.power(SAMPLES, joules=lambda t: joules(t) if t < at else joules(t) - joules(at))
    net = result_of(evidence).energy.net
    assert net.joules == pytest.approx((200 - 60) * 12, abs=0.1)


def test_parts_add_up_and_one_that_is_lacking_makes_the_baseline_null() -> None:
    evidence = made(devices=(gpu(0), gpu(1)))
    evidence.power(SAMPLES, joules=step(40, 60, 200, 60), device=0)
    evidence.power([time for time in SAMPLES if time > 26], joules=step(40, 60, 100, 60), device=1)
    result = result_of(evidence)
    ready = by_context(result)["ready"]
    assert [part.part for part in ready.parts] == ["GPU-0"]
    assert "GPU-1" in str(ready.mean_power_w.reason)
    assert result.energy.total.joules == pytest.approx(3600, abs=0.1)
    assert "GPU-1" in str(result.energy.net.reason)


def test_samples_that_begin_inside_the_idle_baseline_still_give_it() -> None:
    evidence = made()
    evidence.power([time for time in SAMPLES if time > 0.5], joules=step(40, 60, 200, 60))
    assert by_context(result_of(evidence))["idle"].mean_power_w.value == pytest.approx(40, abs=0.01)


def test_on_a_cpu_the_host_s_domains_have_the_baselines() -> None:
    evidence = made(devices=(cpu(),))
    evidence.host_power("package-0", SAMPLES, joules=step(10, 20, 90, 20), method="counter")
    evidence.host_power("core-0", SAMPLES, joules=step(5, 10, 70, 10), method="counter")
    evidence.host_power("dram-0", SAMPLES, joules=step(2, 3, 9, 3), method="counter")
    result = result_of(evidence)
    ready = by_context(result)["ready"]
    assert {part.part: round(part.mean_power_w, 6) for part in ready.parts} == {
        "core-0": 10,
        "dram-0": 3,
        "package-0": 20,
    }
    assert ready.mean_power_w.value == pytest.approx(23)
    assert result.energy.net.joules == pytest.approx((99 - 23) * 12)


def test_the_net_energy_s_bound_has_the_factor_of_the_difference_and_one_offset() -> None:
    evidence = made()
    evidence.power(SAMPLES, joules=step(40, 60, 200, 61))
    result = result_of(evidence)
    net, total, ready = result.energy.net, result.energy.total, by_context(result)["ready"]
    assert net.joules is not None and net.bound_parts is not None and total.bound_parts is not None
    assert net.bound_parts.sensor_gain == total.bound_parts.sensor_gain == pytest.approx(0.065)
    assert net.sensor_bound_j == pytest.approx(0.065 * net.joules + 5 * 12)
    # What the samples leave open of both, and the watt between the two ready readings.
    assert ready.bound_w is not None and ready.sensor_bound_w is not None
    open_w = ready.bound_w - ready.sensor_bound_w + 1
    assert net.bound_parts.sampling_j == pytest.approx(total.bound_parts.sampling_j + open_w * 12, abs=0.5)


def test_modelled_power_has_no_net_energy() -> None:
    """M23."""
    evidence = made(devices=(cpu(),))
    evidence.host_power("package", SAMPLES, joules=step(10, 20, 90, 20))
    net = result_of(evidence).energy.net
    assert net.joules is None
    assert "modelled" in str(net.reason)


def test_modelled_power_has_a_net_energy_without_a_bound() -> None:
    evidence = made(devices=(cpu(),), method=MethodVersion.M1)
    evidence.host_power("package", SAMPLES, joules=step(10, 20, 90, 20))
    net = result_of(evidence).energy.net
    assert (net.joules, net.method, net.bound_j) == (pytest.approx(70 * 12), EnergyMethod.MODELLED, None)


def test_the_standard_error_is_that_of_means_over_seconds() -> None:
    evidence = made()
    # Each second has its own power, in turn 55 and 65 W, and within it the readings swing by 20 W more.
    evidence.power(SAMPLES, watts=lambda t: (55 if int(t + 1e-9) % 2 else 65) + (10 if round(t * 20) % 2 else -10))
    ready = by_context(result_of(evidence))["ready"]
    assert ready.mean_power_w.value == pytest.approx(60, abs=1)
    assert ready.standard_error_w == pytest.approx(5 * math.sqrt(10 / 9) / math.sqrt(10), rel=0.15)


def test_a_record_of_another_shape_is_left_out() -> None:
    evidence = made("ready")
    evidence.phase("sampler", "baseline", "end", 26.0)
    evidence.baseline("lunch", 1.0, 2.0)
    for detail in (None, "[]", "nonsense", '{"parts": {"GPU-0": "much"}, "age_s": null}'):
        for kind in ("baseline_reused", "clock", "foreign_process"):
            evidence.event("sampler", kind, detail)
    evidence.summaries["sampler"]["devices"] = [3, {"uuid": 4}, {"index": 0}]
    evidence.power(SAMPLES, joules=step(40, 60, 200, 60))
    assert list(by_context(result_of(evidence))) == ["ready"]
