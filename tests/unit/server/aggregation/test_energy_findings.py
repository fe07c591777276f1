"""What contradicts an energy figure is found: by its numbers, at its limit, and not below it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from factories.evidence import Evidence, cpu, gpu, ns
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.evidence.streams import StreamName
from lem_domain.results.findings import Finding, FindingCode, Severity
from lem_domain.results.method import MethodVersion
from lem_domain.results.run import RunResult
from lem_server.aggregation.result import aggregate

TIMES = [number * 0.1 for number in range(701)]
"""70 s; the window is 30 to 42 s."""


def made(config: dict[str, Any] | None = None, **fields: Any) -> Evidence:
    resolved = ExperimentConfig.model_validate({"backend": "simulated", "model": "test", **(config or {})})
    evidence = Evidence(config=resolved, **fields)
    evidence.request(0, 30.0, [31.0, 36.0, 42.0])
    return evidence


def result_of(evidence: Evidence) -> RunResult:
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def only(evidence: Evidence, code: FindingCode) -> Finding:
    (finding,) = result_of(evidence).findings
    assert finding.code is code
    return finding


class TestDriverSlow:
    @staticmethod
    def taking(mean_ms: float, **samples: Any) -> Evidence:
        evidence = made({"energy": {"interval_ms": 50}})
        evidence.power(TIMES, **samples)
        evidence.summaries["sampler"]["rounds"] = [{"source": "nvml", "rounds": 9, "mean_ms": mean_ms}]
        evidence.summaries["sampler"]["devices"] = [{"uuid": "GPU-0", "driver": "580.65.06"}]
        return evidence

    def test_the_driver_is_named_and_an_interval_that_has_room(self) -> None:
        finding = only(self.taking(69.0, joules=lambda t: 100 * t), FindingCode.DRIVER_SLOW)
        assert finding.severity is Severity.NOTE, "the counters kept counting"
        assert finding.numbers == {"round_ms": 69, "interval_ms": 50}
        assert "580.65.06" in finding.message and "140" in finding.message

    def test_of_an_integral_it_is_a_warning(self) -> None:
        finding = only(self.taking(69.0, watts=lambda _: 100), FindingCode.DRIVER_SLOW)
        assert finding.severity is Severity.WARNING

    @pytest.mark.parametrize("rounds", [None, 7, [3], [{"source": "rapl", "mean_ms": 99}], [{"source": "nvml"}]])
    def test_without_such_a_record_there_is_none(self, rounds: Any) -> None:
        evidence = self.taking(39.9, joules=lambda t: 100 * t)
        assert result_of(evidence).findings == ()
        evidence.summaries["sampler"]["rounds"] = rounds
        assert result_of(evidence).findings == ()


class TestCountersOfTheHost:
    @staticmethod
    def gap(at: float, device: Any = None, domain: str = "package-0") -> Evidence:
        evidence = made(devices=(device or cpu(),))
        counters = {"package-0": lambda t: 40.0 * t, "psys": lambda t: 40.0 * t}
        counters[domain] = lambda t: 40.0 * t - 4000 * (t >= at)
        for name, counted in counters.items():
            evidence.host_power(name, TIMES, lambda _: 40, counted, method="counter")
        evidence.power(TIMES, joules=lambda t: 100 * t)
        detail = {"domain": domain, "reason": f"the counter of {domain} has a gap: it fell from 9 to 1 µJ: a reset."}
        evidence.event("sampler", "counter_gap", json.dumps(detail), at)
        return evidence

    @pytest.mark.parametrize("at", [29.9, 30.1, 36.0, 42.02, 42.3])
    def test_a_reset_in_the_window_is_found_with_its_reason(self, at: float) -> None:
        found = [one for one in result_of(self.gap(at)).findings if one.code is FindingCode.COUNTER_RESET]
        if not 30 < at < 42.1:
            assert found == []
            return
        [finding] = found
        assert (finding.severity, finding.numbers) == (Severity.WARNING, {"package-0.occurrences": 1})
        assert "it fell from 9 to 1 µJ" in finding.message

    @pytest.mark.parametrize(("device", "domain"), [(None, "psys"), (gpu(), "package-0")])
    def test_of_a_domain_that_is_not_in_the_figure_it_is_a_note(self, device: Any, domain: str) -> None:
        found = [
            one for one in result_of(self.gap(36, device, domain)).findings if one.code is FindingCode.COUNTER_RESET
        ]
        assert [one.severity for one in found] == [Severity.NOTE]

    def test_a_counter_that_repeats_another_one_is_named(self) -> None:
        evidence = made(devices=(cpu(),))
        evidence.host_power("package-0", TIMES, joules=lambda t: 40 * t, method="counter")
        evidence.host_power("repeated-package-0@intel-rapl:1", TIMES, joules=lambda t: 40 * t, method="counter")
        detail = {"domain": "repeated-package-0@intel-rapl:1", "repeats": "package-0"}
        evidence.event("sampler", "repeated_counter", json.dumps(detail), 1.0)
        result = result_of(evidence)
        [finding] = result.findings
        assert (finding.code, finding.severity) == (FindingCode.REPEATED_COUNTER, Severity.NOTE)
        assert finding.numbers == {"domains": 1}
        assert result.energy.total.joules == pytest.approx(480), "it counts once"

    @pytest.mark.parametrize("kind", ["counter_gap", "repeated_counter"])
    def test_what_has_another_shape_is_left_out(self, kind: str) -> None:
        evidence = made()
        evidence.power(TIMES, joules=lambda t: 100 * t)
        evidence.event("sampler", kind, json.dumps({"domain": 3}), 36.0)
        assert result_of(evidence).findings == ()


class TestNotSettled:
    @pytest.mark.parametrize("settled", [True, False, None])
    def test_a_condition_that_did_not_hold_is_found_with_its_reason(self, settled: bool | None) -> None:
        evidence = made({"settle": {"temperature_c": 50}})
        evidence.power(TIMES, joules=lambda t: 100 * t)
        detail = {"settled": settled, "reason": None if settled else "a device has 85 °C"}
        for edge, time, told in (("begin", 20.0, {}), ("end", 29.0, detail)):
            evidence.row(
                "sampler", StreamName.PHASES, phase="settle", edge=edge, time_ns=ns(time), detail=json.dumps(told)
            )
        findings = result_of(evidence).findings
        if settled is not False:
            assert findings == ()
            return
        [finding] = findings
        assert (finding.code, finding.severity) == (FindingCode.NOT_SETTLED, Severity.WARNING)
        assert "a device has 85 °C" in finding.message


class TestSensorDisagreement:
    """One counter of 100 W; its bound is 6.5 % and 5 W, 138 J of 1,200 J, besides what the samples leave open."""

    @staticmethod
    def of(read_w: float) -> tuple[RunResult, Finding | None]:
        evidence = made()
        evidence.power(TIMES, watts=lambda _: read_w, joules=lambda t: 100 * t)
        result = result_of(evidence)
        codes = {finding.code: finding for finding in result.findings}
        assert set(codes) <= {FindingCode.SENSOR_DISAGREEMENT}
        return result, codes.get(FindingCode.SENSOR_DISAGREEMENT)

    def test_what_the_samples_leave_open_is_no_contradiction(self) -> None:
        assert self.of(99.9)[1] is None

    def test_what_the_sensor_s_error_allows_is_a_note(self) -> None:
        result, finding = self.of(95)
        assert finding is not None and finding.severity is Severity.NOTE
        assert finding.numbers["GPU-0.widened_j"] == 0
        total = result.energy.total
        assert total.bound_parts is not None and total.bound_parts.disagreement_j == 0

    @pytest.mark.parametrize("read_w", [70, 130])
    def test_a_larger_one_widens_the_bound_until_it_holds_both(self, read_w: float) -> None:
        result, finding = self.of(read_w)
        assert finding is not None and finding.severity is Severity.WARNING
        assert result.verdict == "questionable"
        total, (device,) = result.energy.total, result.energy.devices
        assert total.joules is not None and total.bound_j is not None and total.bound_parts is not None
        assert device.integrated is not None and device.integrated.joules == pytest.approx(12 * read_w)
        assert total.bound_j == pytest.approx(abs(total.joules - device.integrated.joules))
        assert finding.numbers["GPU-0.widened_j"] == pytest.approx(total.bound_parts.disagreement_j)
        assert 200 < total.bound_parts.disagreement_j < 230


class TestSensorDisagreementByM1:
    def test_counter_and_integral_that_differ_are_both_shown(self) -> None:
        evidence = made(method=MethodVersion.M1)
        evidence.power(TIMES, watts=lambda _: 90, joules=lambda t: 100 * t)
        finding = only(evidence, FindingCode.SENSOR_DISAGREEMENT)
        assert finding.severity is Severity.WARNING
        assert finding.numbers == {
            "GPU-0.counter_j": pytest.approx(1200, abs=0.01),
            "GPU-0.integrated_j": pytest.approx(1080),
        }
        (device,) = result_of(evidence).energy.devices
        assert device.energy.joules == pytest.approx(1200, abs=0.01)
        assert device.integrated is not None
        assert (device.integrated.joules, device.integrated.bound_j) == (pytest.approx(1080), pytest.approx(60))

    def test_five_per_cent_apart_is_no_contradiction(self) -> None:
        evidence = made(method=MethodVersion.M1)
        evidence.power(TIMES, watts=lambda _: 95.1, joules=lambda t: 100 * t)
        assert result_of(evidence).findings == ()


class TestBaselines:
    @pytest.mark.parametrize(("after", "drifted"), [(62.0, False), (64.0, True), (56.0, True)])
    def test_drift_of_more_than_five_per_cent(self, after: float, drifted: bool) -> None:
        evidence = made()
        evidence.baseline("ready", 10, 20)
        evidence.baseline("ready_after", 50, 60)
        levels = ((0, 25, 60.0), (25, 45, 200.0), (45, 1000, after))
        evidence.power(TIMES, joules=lambda t: sum(w * max(0, min(t, end) - begin) for begin, end, w in levels))
        if not drifted:
            assert result_of(evidence).findings == ()
            return
        finding = only(evidence, FindingCode.BASELINE_DRIFT)
        assert finding.severity is Severity.WARNING
        assert finding.numbers == {
            "ready_w": pytest.approx(60, abs=0.1),
            "ready_after_w": pytest.approx(after, abs=0.1),
            "open_j": pytest.approx(12 * abs(after - 60), abs=2),
        }

    def test_drift_is_said_in_joules_and_is_in_the_bound_of_the_net_energy(self) -> None:
        """M22: 300 W at rest and at work, and 330 W at rest afterwards; a figure, and no cause."""
        evidence = made()
        evidence.baseline("ready", 10, 20)
        evidence.baseline("ready_after", 50, 60)
        levels = ((0, 45, 300.0), (45, 1000, 330.0))
        evidence.power(TIMES, joules=lambda t: sum(w * max(0, min(t, end) - begin) for begin, end, w in levels))
        result = result_of(evidence)
        codes = {finding.code: finding for finding in result.findings}
        assert set(codes) <= {FindingCode.BASELINE_DRIFT, FindingCode.NEGATIVE_NET_ENERGY}
        open_j = codes[FindingCode.BASELINE_DRIFT].numbers["open_j"]
        assert open_j == pytest.approx(12 * 30, rel=0.01)
        parts = result.energy.net.bound_parts
        assert parts is not None and parts.sampling_j >= open_j, "the same joules, once"

    def test_net_energy_that_may_be_zero_is_a_note(self) -> None:
        """M22: the same power at rest and at work says nothing of other users of the device."""
        evidence = made()
        evidence.baseline("ready", 10, 20)
        evidence.power(TIMES, joules=lambda t: 300.2 * t if t < 25 else 300 * t + 5)
        result = result_of(evidence)
        assert result.energy.net.joules is not None and result.energy.net.joules < 0
        finding = only(evidence, FindingCode.NEGATIVE_NET_ENERGY)
        assert finding.severity is Severity.NOTE
        assert "not distinguishable from zero" in finding.message
        assert finding.numbers["bound_j"] == pytest.approx(result.energy.net.bound_j)

    def test_negative_net_energy(self) -> None:
        evidence = made()
        evidence.baseline("ready", 10, 20)
        levels = ((0, 25, 80.0), (25, 1000, 50.0))
        evidence.power(TIMES, joules=lambda t: sum(w * max(0, min(t, end) - begin) for begin, end, w in levels))
        finding = only(evidence, FindingCode.NEGATIVE_NET_ENERGY)
        assert finding.numbers == {"net_j": pytest.approx(-360, abs=0.5), "gross_j": pytest.approx(600, abs=0.5)}


class TestModelled:
    def test_the_memory_s_constant_is_named_with_what_is_left_without_it(self) -> None:
        """M23: 20 W of memory, whatever the load, beside 5 W of a processor."""
        evidence = made(devices=(cpu(),))
        evidence.host_power("package", TIMES, joules=lambda t: 5 * t)
        evidence.host_power("dram", TIMES, joules=lambda t: 20 * t)
        finding = only(evidence, FindingCode.ENERGY_MODELLED)
        assert finding.numbers == {"package": pytest.approx(60), "dram": pytest.approx(240)}
        assert "240 J of 300 J are a constant" in finding.message
        assert "20 J per output token" in finding.message


class TestNotStationary:
    @pytest.mark.parametrize("counted", [True, False])
    def test_power_that_rises_by_a_tenth(self, counted: bool) -> None:
        evidence = made()
        watts = lambda t: 95 + 10 * (t - 30) / 12  # noqa: E731
        if counted:
            evidence.power(TIMES, joules=lambda t: 95 * t + 10 / 24 * (t - 30) ** 2 + 1000)
        else:
            evidence.power(TIMES, watts=watts)
        finding = only(evidence, FindingCode.NOT_STATIONARY)
        assert finding.severity is Severity.WARNING
        assert finding.numbers == {"power_change": pytest.approx(0.1, rel=0.02)}

    def test_power_that_rises_by_four_per_cent_is_level_enough(self) -> None:
        evidence = made()
        evidence.power(TIMES, watts=lambda t: 98 + 4 * (t - 30) / 12)
        assert result_of(evidence).findings == ()

    @pytest.mark.parametrize("method", list(MethodVersion))
    def test_nothing_falls_by_more_than_all_of_it(self, method: MethodVersion) -> None:
        """M33: a line through power that is high at first and then hardly any ends below zero."""
        evidence = made(method=method)
        evidence.power(TIMES, watts=lambda t: 500 if t < 32 else 10 + 0.001 * (round(t * 10) % 7))
        (finding,) = (one for one in result_of(evidence).findings if one.code is FindingCode.NOT_STATIONARY)
        assert finding.numbers == {"power_change": -1.0}

    def test_noise_is_no_trend(self) -> None:
        noise = np.random.default_rng(4).normal(0, 30, 701)
        evidence = made()
        evidence.power(TIMES, watts=lambda t: 150 + float(noise[round(t * 10)]))
        assert result_of(evidence).findings == ()

    @staticmethod
    def repeated(growth: float, repetitions: int = 12) -> Evidence:
        """Prompts of 0.2 and 0.8 s, whose latency grows by a part over all repetitions."""
        evidence = Evidence()
        number, time = 0, 30.0
        for repetition in range(repetitions):
            for prompt, seconds in ((0, 0.2), (1, 0.8)):
                latency = seconds * (1 + growth * repetition / repetitions)
                evidence.request(number, time, [time + latency / 2, time + latency], prompt=prompt)
                number, time = number + 1, time + latency
        evidence.power(TIMES, joules=lambda t: 100 * t)
        return evidence

    def test_latency_that_grows_over_the_repetitions(self) -> None:
        finding = only(self.repeated(0.3), FindingCode.NOT_STATIONARY)
        assert finding.numbers == {"latency_change": pytest.approx(0.26, abs=0.02)}

    def test_prompts_of_different_length_are_no_trend(self) -> None:
        assert result_of(self.repeated(0.0)).findings == ()

    def test_a_few_repetitions_show_no_trend(self) -> None:
        evidence = self.repeated(0.9, repetitions=4)
        assert FindingCode.NOT_STATIONARY not in {finding.code for finding in result_of(evidence).findings}


class TestSamplerOverload:
    @pytest.mark.parametrize(("counted", "severity"), [(True, Severity.NOTE), (False, Severity.WARNING)])
    def test_late_and_missed_ticks(self, counted: bool, severity: Severity) -> None:
        evidence = made()
        if counted:
            evidence.power(TIMES, joules=lambda t: 100 * t)
        else:
            evidence.power(TIMES, watts=lambda _: 100)
        evidence.summaries["sampler"] = {"ticks": 900, "late": 40, "missed": 100}
        finding = only(evidence, FindingCode.SAMPLER_OVERLOAD)
        assert finding.severity is severity
        assert finding.numbers == {"late_or_missed": pytest.approx(0.14)}

    def test_a_few_are_nothing(self) -> None:
        evidence = made()
        evidence.power(TIMES, joules=lambda t: 100 * t)
        evidence.summaries["sampler"] = {"ticks": 990, "late": 40, "missed": 10}
        assert result_of(evidence).findings == ()
