"""Readings that can't be are in no figure: what is left gives the energy, the bound holds the truth, and it is found.

One GPU at 300 W, limit 700 W, a window of 10 s, samples every 50 ms: 3,000 J.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from factories.evidence import Evidence
from lem_domain.results.energy import RefusalKind
from lem_domain.results.figures import EnergyFigure, EnergyMethod
from lem_domain.results.findings import FindingCode, Severity
from lem_domain.results.run import RunResult
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.result import aggregate

Curve = Callable[[float], float]

TRUTH = 3000.0
TIMES = [number * 0.05 for number in range(281)]
"""14 s; the window is 2 to 12 s."""


def noisy(t: float) -> float:
    """300 W, and what a sensor's last digits show."""
    return 300 + 2 * np.sin(37 * t) + np.sin(911 * t)


def flat(t: float) -> float:
    return 300.0


def counted(t: float) -> float:
    """The counter of 300 W, renewed every 100 ms."""
    return 5000 + 300 * np.floor(t / 0.1 + 1e-6) * 0.1


def result_of(
    watts: Curve | None = flat, joules: Curve | None = None, end: float = 12.0, times: list[float] | None = None
) -> RunResult:
    evidence = Evidence()
    evidence.request(0, 2.0, [4.0, end])
    evidence.summaries["sampler"]["devices"] = [{"uuid": "GPU-0", "power_limit_w": 700.0}]
    evidence.power(times or TIMES, watts=watts, joules=joules)
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def holds(figure: EnergyFigure, truth: float = TRUTH) -> bool:
    assert figure.joules is not None, figure.reason
    assert figure.bound_j is not None
    return abs(figure.joules - truth) <= figure.bound_j


def kinds(result: RunResult) -> dict[RefusalKind, int]:
    (device,) = result.energy.devices
    return {one.kind: one.readings for one in device.refused}


def severities(result: RunResult) -> dict[FindingCode, Severity]:
    return {finding.code: finding.severity for finding in result.findings}


def test_plausible_readings_are_all_used() -> None:
    result = result_of(noisy, counted)
    assert result.findings == ()
    assert kinds(result) == {}
    assert result.energy.total.method is EnergyMethod.COUNTER
    assert holds(result.energy.total)
    assert '"refused"' not in result.model_dump_json()


class TestPower:
    def test_zero_watts_of_a_powered_gpu_are_no_reading(self) -> None:
        """M3: ten readings of 0 W in a row leave a gap, a larger bound and a finding."""
        whole = result_of(flat).energy.total
        result = result_of(lambda t: 0 if 6.02 < t < 6.53 else 300)
        total = result.energy.total
        assert holds(total) and total.joules == pytest.approx(TRUTH)
        assert (total.bound_j or 0) > (whole.bound_j or 0) + 10
        assert kinds(result) == {RefusalKind.POWER_NOT_POSITIVE: 10}
        assert severities(result)[FindingCode.IMPLAUSIBLE_READINGS] is Severity.WARNING

    def test_zero_watts_throughout_are_null_with_that_reason(self) -> None:
        """M19."""
        result = result_of(lambda _: 0)
        assert result.energy.total.joules is None
        assert result.efficiency.energy_per_output_token_j.value is None
        assert kinds(result) == {RefusalKind.POWER_NOT_POSITIVE: 281}
        found = severities(result)
        assert FindingCode.IMPLAUSIBLE_READINGS in found and FindingCode.ENERGY_UNAVAILABLE in found

    def test_power_far_above_the_limit_is_no_reading(self) -> None:
        result = result_of(lambda t: 1051 if 6.02 < t < 6.08 else 1049 if 8.02 < t < 8.08 else 300)
        assert kinds(result) == {RefusalKind.POWER_ABOVE_LIMIT: 1}
        assert result.energy.devices[0].peak_power_w.value == 1049

    @pytest.mark.parametrize(("before", "after"), [(700.0, 200.0), (200.0, 700.0)])
    def test_a_limit_that_was_changed_counts_with_its_highest_value(self, before: float, after: float) -> None:
        evidence = Evidence()
        evidence.request(0, 2.0, [4.0, 12.0])
        evidence.summaries["sampler"]["devices"] = [{"uuid": "GPU-0", "power_limit_w": 200.0}]
        detail = {"device_index": 0, "fact": "power_limit_w", "before": before, "after": after}
        evidence.event("sampler", "fact_changed", json.dumps(detail), 6.0)
        evidence.power(TIMES, watts=lambda t: noisy(t) + 100)
        stored = evidence.stored()
        assert kinds(aggregate(stored.inputs, stored.source)) == {}

    def test_with_a_counter_dropped_power_readings_are_a_note(self) -> None:
        result = result_of(lambda t: 0 if 6.02 < t < 6.53 else noisy(t), counted)
        assert result.verdict == "valid"
        assert severities(result) == {FindingCode.IMPLAUSIBLE_READINGS: Severity.NOTE}
        assert holds(result.energy.total)

    def test_a_reading_that_freezes_is_dropped_and_one_that_never_changes_is_not(self) -> None:
        frozen = result_of(lambda t: noisy(min(t, 5.0)) if t < 9 else noisy(t))
        assert kinds(frozen) == {RefusalKind.POWER_FROZEN: 79}
        assert kinds(result_of(flat)) == {}

    def test_a_gap_at_which_power_differs_is_in_the_bound(self) -> None:
        """What the dropped readings were before and after was 300 W; between them 500 W flowed."""
        result = result_of(lambda t: 0 if 6.02 < t < 6.53 else 300 + 200 * (3 < t < 3.4))
        assert holds(result.energy.total, TRUTH + 200 * 0.4 + 200 * 0.5)


class TestCounter:
    def test_one_that_stops_gives_way_to_the_integral(self) -> None:
        """M4: it follows for 5 s and then does not move."""
        result = result_of(noisy, lambda t: counted(min(t, 7.0)))
        total = result.energy.total
        assert total.method is EnergyMethod.INTEGRATED and holds(total)
        assert severities(result)[FindingCode.COUNTER_STALLED] is Severity.WARNING
        assert "did not move" in str(result.energy.devices[0].counter_reason)

    def test_one_that_stops_and_no_power_readings_give_null(self) -> None:
        result = result_of(None, lambda t: counted(min(t, 7.0)))
        assert result.energy.total.joules is None
        assert FindingCode.COUNTER_STALLED in severities(result)

    @pytest.mark.parametrize("later", [100_000.0, 1_000.0])
    def test_one_that_never_moves_is_named(self, later: float) -> None:
        """M31: the integral is right, and that the counter is dead is said."""
        result = result_of(noisy, lambda _: later)
        assert result.energy.total.method is EnergyMethod.INTEGRATED and holds(result.energy.total)
        assert FindingCode.COUNTER_STALLED in severities(result)
        assert "never moves" in str(result.energy.devices[0].counter_reason)

    def test_a_slow_counter_that_catches_up_has_not_stopped(self) -> None:
        slow = lambda t: counted(t) if not 5 <= t < 8 else counted(4.95)  # noqa: E731
        result = result_of(noisy, slow)
        assert kinds(result) == {}
        assert result.energy.total.method is EnergyMethod.COUNTER and holds(result.energy.total)

    def test_the_time_since_the_last_update_is_in_the_bound(self) -> None:
        """M16: it stops for the last 0.8 s, eight of its periods; nothing is wrong yet, and 240 J are open."""
        result = result_of(noisy, lambda t: counted(min(t, 11.2)), times=TIMES[:252])
        total = result.energy.total
        assert total.method is EnergyMethod.COUNTER
        assert (total.joules or 0) < TRUTH - 200 and holds(total)
        assert total.bound_parts is not None and total.bound_parts.sampling_j > 230
        assert FindingCode.SENSOR_DISAGREEMENT not in severities(result)

    def test_the_time_since_the_last_update_is_in_the_bound_without_readings(self) -> None:
        total = result_of(None, lambda t: counted(min(t, 11.2)), times=TIMES[:252]).energy.total
        assert total.method is EnergyMethod.COUNTER and holds(total)

    @pytest.mark.parametrize("leap_j", [2.0**40 / 1e3, 1000.0])
    @pytest.mark.parametrize("readings", [True, False])
    def test_one_that_leaps_is_continued_over_the_step(self, leap_j: float, readings: bool) -> None:
        """M5: more than limit × time can give."""
        result = result_of(noisy if readings else None, lambda t: counted(t) + leap_j * (t > 6.02))
        total = result.energy.total
        assert total.method is EnergyMethod.COUNTER and holds(total)
        assert (total.bound_j or 0) < 0.15 * TRUTH
        assert list(kinds(result)) == [RefusalKind.COUNTER_LEAP]
        assert severities(result)[FindingCode.IMPLAUSIBLE_READINGS] is Severity.WARNING

    @pytest.mark.parametrize("wrong_j", [2.0**40 / 1e3, 0.0, 1.0])
    def test_one_sample_that_is_far_off_is_left_out(self, wrong_j: float) -> None:
        result = result_of(noisy, lambda t: wrong_j if 6.02 < t < 6.08 else counted(t))
        assert result.energy.total.joules == pytest.approx(TRUTH, abs=1)
        assert sum(kinds(result).values()) == 1

    @pytest.mark.parametrize("readings", [True, False])
    def test_one_that_goes_back_is_continued_over_the_step(self, readings: bool) -> None:
        result = result_of(noisy if readings else None, lambda t: counted(t) if t < 6.02 else counted(t) - counted(6))
        total = result.energy.total
        assert total.method is EnergyMethod.COUNTER and holds(total)
        assert total.joules == pytest.approx(TRUTH, abs=60)
        assert list(kinds(result)) == [RefusalKind.COUNTER_RESET]
        assert severities(result)[FindingCode.COUNTER_RESET] is Severity.WARNING

    def test_a_wrap_of_32_bits_is_no_reset(self) -> None:
        begin = 2**32 / 1e3 - 1500
        result = result_of(noisy, lambda t: (begin + counted(t) - 5000) % (2**32 / 1e3))
        assert result.energy.total.joules == pytest.approx(TRUTH, abs=1)
        assert result.findings == ()

    @pytest.mark.parametrize("factor", [1000.0, 0.001])
    def test_one_in_another_unit_is_refused(self, factor: float) -> None:
        """M17: 300 kW is above the limit, and 0.3 W is not what the readings show."""
        result = result_of(noisy, lambda t: counted(t) * factor)
        assert result.energy.total.method is EnergyMethod.INTEGRATED and holds(result.energy.total)
        assert RefusalKind.COUNTER_UNIT in kinds(result)
        assert result.energy.devices[0].counter_reason
        assert FindingCode.IMPLAUSIBLE_READINGS in severities(result)
        assert FindingCode.SENSOR_DISAGREEMENT not in severities(result)

    def test_one_far_above_the_limit_without_readings_is_null(self) -> None:
        result = result_of(None, lambda t: counted(t) * 1000)
        assert result.energy.total.joules is None
        assert "power limit" in str(result.energy.total.reason)

    @pytest.mark.parametrize("always", [True, False])
    def test_all_ones_are_not_available(self, always: bool) -> None:
        """M18: 2^63 - 1, the most that the evidence holds."""
        evidence = Evidence()
        evidence.request(0, 2.0, [4.0, 12.0])
        for number, t in enumerate(TIMES):
            evidence.power([t], watts=noisy, joules=counted)
            if always or number % 10 == 0:
                evidence.rows["sampler", "power"]["energy_mj"][-1] = 2**63 - 1  # type: ignore[index]
        stored = evidence.stored()
        result = aggregate(stored.inputs, stored.source)
        total = result.energy.total
        assert total.method is (EnergyMethod.INTEGRATED if always else EnergyMethod.COUNTER) and holds(total)
        assert list(kinds(result)) == [RefusalKind.COUNTER_OUT_OF_RANGE]


class TestPartTimeSensor:
    @pytest.mark.parametrize(
        ("name", "counter", "severity"),
        [
            ("NVIDIA H100 80GB HBM3", False, Severity.WARNING),
            ("NVIDIA H100 80GB HBM3", True, Severity.NOTE),
            ("NVIDIA B200", False, Severity.NOTE),
            ("NVIDIA L40S", False, None),
        ],
    )
    def test_it_is_found_by_its_model(self, name: str, counter: bool, severity: Severity | None) -> None:
        """M27: whether a counter sees all of the time is not known, and nothing says so as a fact."""
        evidence = Evidence(devices=(Device(uuid="GPU-0", kind=DeviceKind.GPU, name=name),))
        evidence.request(0, 2.0, [4.0, 12.0])
        evidence.power(TIMES, watts=noisy, joules=counted if counter else None)
        stored = evidence.stored()
        result = aggregate(stored.inputs, stored.source)
        assert severities(result).get(FindingCode.PART_TIME_SENSOR) is severity
        parts = result.energy.total.bound_parts
        assert parts is not None and (parts.coverage_j > 0) is (severity is not None)


class TestUnknownAge:
    @pytest.mark.parametrize("seconds", [0.3, 0.4, 0.5])
    @pytest.mark.parametrize("sampled_ms", [5, 10, 20])
    def test_short_windows_hold_the_truth(self, seconds: float, sampled_ms: int) -> None:
        """M20: a sensor that shows the mean of the last 100 ms, renewed every 100 ms, and no counter."""
        random = np.random.default_rng(round(1000 * seconds) + sampled_ms)
        inside = 0
        for _ in range(40):
            levels = random.uniform(80, 400, 400)
            until = np.concatenate(([0.0], np.cumsum(levels * 0.05)))

            def energy(t: float, until: np.ndarray = until) -> float:  # type: ignore[type-arg]
                return float(np.interp(t, np.arange(401) * 0.05, until))

            phase = random.uniform(0, 0.1)

            def shown(t: float, energy: Curve = energy, phase: float = phase) -> float:
                last = np.floor((t - phase) / 0.1) * 0.1 + phase
                return (energy(last) - energy(last - 0.1)) / 0.1

            times = [1 + number * sampled_ms / 1e3 for number in range(round(4000 / sampled_ms))]
            evidence = Evidence()
            evidence.request(0, 2.0, [2.1, 2.0 + seconds])
            evidence.power(times, watts=shown)
            stored = evidence.stored()
            total = aggregate(stored.inputs, stored.source).energy.total
            inside += holds(total, energy(2.0 + seconds) - energy(2.0))
        assert inside >= 38
