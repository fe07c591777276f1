"""What happened to devices and clocks during the window is found; what happened outside is not held against it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from factories.evidence import Evidence, gpu, ns
from lem_domain.results.findings import Finding, FindingCode, Severity
from lem_domain.results.run import CheckName, RunResult
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.result import aggregate

TIMES = [number * 0.1 for number in range(701)]
"""70 s; the window is 30 to 42 s."""


def made(power: bool = True, **fields: Any) -> Evidence:
    evidence = Evidence(**fields)
    evidence.request(0, 30.0, [31.0, 36.0, 42.0])
    if power:
        for device in range(len(evidence.devices)):
            evidence.power(TIMES, joules=lambda t: 100 * t, device=device)
    return evidence


def with_readings(**readings: Any) -> Evidence:
    evidence = made(power=False)
    evidence.power(TIMES, joules=lambda t: 100 * t, **readings)
    return evidence


def result_of(evidence: Evidence) -> RunResult:
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def only(evidence: Evidence, code: FindingCode) -> Finding:
    (finding,) = result_of(evidence).findings
    assert finding.code is code
    return finding


class TestThrottled:
    @pytest.mark.parametrize(
        ("mask", "reason", "severity"),
        [
            (0x04, "sw_power_cap", Severity.NOTE),
            (0x08, "hw_slowdown", Severity.WARNING),
            (0x20, "sw_thermal_slowdown", Severity.WARNING),
            (0x40, "hw_thermal_slowdown", Severity.WARNING),
            (0x80, "hw_power_brake_slowdown", Severity.WARNING),
        ],
    )
    def test_a_quarter_of_the_window(self, mask: int, reason: str, severity: Severity) -> None:
        finding = only(with_readings(throttle_reasons=lambda t: mask if 33 <= t < 36 else 0x01), FindingCode.THROTTLED)
        assert finding.severity is severity
        assert finding.numbers == {f"GPU-0.{reason}": pytest.approx(0.25, abs=0.01)}

    def test_heat_goes_before_the_power_cap(self) -> None:
        finding = only(with_readings(throttle_reasons=lambda t: 0x24), FindingCode.THROTTLED)
        assert finding.numbers == {"GPU-0.sw_thermal_slowdown": 1.0}

    @pytest.mark.parametrize("mask", [0x01, 0x02, 0x10, 0x100])
    def test_rest_and_chosen_clocks_are_no_throttling(self, mask: int) -> None:
        assert result_of(with_readings(throttle_reasons=lambda _: mask)).findings == ()

    def test_throttling_outside_the_window_is_not_held_against_it(self) -> None:
        evidence = with_readings(throttle_reasons=lambda t: 0x40 if t < 29.5 or t > 42.5 else 0)
        assert result_of(evidence).findings == ()

    def test_the_driver_s_counters_see_what_is_between_two_looks(self) -> None:
        """60 ms of every 200 ms, and the sampled bits never."""
        counted = {
            "thermal_violation_ns": lambda t: int(3e8 * t),
            "power_violation_ns": lambda t: int(5e8 * t),
            "throttle_reasons": lambda t: 0,
        }
        result = result_of(with_readings(**counted))
        assert result.telemetry.devices[0].violated == {"power": pytest.approx(0.5), "thermal": pytest.approx(0.3)}
        [finding] = result.findings
        assert (finding.code, finding.severity) == (FindingCode.THROTTLED, Severity.WARNING)
        assert finding.numbers == {"GPU-0.thermal_violation": pytest.approx(0.3)}

    def test_the_power_cap_by_counter_is_a_note(self) -> None:
        finding = only(with_readings(power_violation_ns=lambda t: int(5e8 * t)), FindingCode.THROTTLED)
        assert (finding.severity, finding.numbers) == (Severity.NOTE, {"GPU-0.power_violation": pytest.approx(0.5)})

    def test_a_counter_that_does_not_cover_the_window_or_falls_says_nothing(self) -> None:
        for read in (lambda t: int(3e8 * t) if t > 33 else None, lambda t: int(3e8 * (t if t < 36 else t - 36))):
            result = result_of(with_readings(thermal_violation_ns=read))
            assert (result.findings, result.telemetry.devices[0].violated) == ((), None)

    def test_a_counter_at_rest_is_reported_as_none(self) -> None:
        result = result_of(with_readings(thermal_violation_ns=lambda _: 77))
        assert (result.findings, result.telemetry.devices[0].violated) == ((), {})


class TestLimitChanged:
    @pytest.mark.parametrize(
        ("at", "severity"),
        [(29.0, Severity.NOTE), (31.0, Severity.WARNING), (44.0, Severity.WARNING), (50.0, Severity.NOTE)],
    )
    def test_before_and_after_are_said(self, at: float, severity: Severity) -> None:
        evidence = made()
        detail = {"device_index": 0, "fact": "power_limit_w", "before": 700.0, "after": 300.0}
        evidence.event("sampler", "fact_changed", json.dumps(detail), at)
        finding = only(evidence, FindingCode.LIMIT_CHANGED)
        assert finding.severity is severity
        assert finding.numbers == {"power_limit_w.before": 700, "power_limit_w.after": 300}
        assert "from 700.0 to 300.0" in finding.message

    @pytest.mark.parametrize("detail", [{}, {"device_index": 7, "fact": "driver", "before": "580", "after": "595"}])
    def test_what_has_another_shape_is_left_out(self, detail: dict[str, Any]) -> None:
        evidence = made()
        evidence.event("sampler", "fact_changed", json.dumps(detail), 35.0)
        assert [one.numbers for one in result_of(evidence).findings] == [{}] * bool(detail)


class TestSamplingWakesDevice:
    @staticmethod
    def at_rest(**idle_power: Any) -> list[Finding]:
        evidence = made()
        evidence.summaries["sampler"]["devices"] = [{"index": 0, "uuid": "GPU-0", "idle_power": idle_power}]
        return list(result_of(evidence).findings)

    @pytest.mark.parametrize(
        ("sampled_w", "uncertainty_w", "is_found"),
        [(61.7, 0, False), (61.9, 0, True), (58.1, 0, True), (63.7, 4, False), (64.1, 4, True)],
    )
    def test_more_than_three_per_cent_and_than_what_is_uncertain(
        self, sampled_w: float, uncertainty_w: float, is_found: bool
    ) -> None:
        found = self.at_rest(unsampled_w=60.0, sampled_w=sampled_w, uncertainty_w=uncertainty_w, reason=None)
        assert [(one.code, one.severity) for one in found] == [
            (FindingCode.SAMPLING_WAKES_DEVICE, Severity.NOTE)
        ] * is_found
        assert all(one.numbers == {"GPU-0.unsampled_w": 60, "GPU-0.sampled_w": sampled_w} for one in found)

    def test_what_was_not_measured_is_not_found(self) -> None:
        assert self.at_rest(unsampled_w=None, sampled_w=None, uncertainty_w=None, reason="a process is on it") == []
        assert self.at_rest(unsampled_w=0, sampled_w=9, uncertainty_w=0) == []


class TestClocksLocked:
    @staticmethod
    def at(mhz: float, *, use: int = 97, mask: int = 0, spread: int = 0, highest: int | None = 1980) -> list[Finding]:
        evidence = with_readings(
            sm_clock_mhz=lambda t: round(mhz + spread * (t % 1)),
            gpu_percent=lambda _: use,
            memory_percent=lambda _: 10,
            throttle_reasons=lambda _: mask,
        )
        evidence.summaries["sampler"]["devices"] = [{"index": 0, "uuid": "GPU-0", "sm_clock_max_mhz": highest}]
        return [one for one in result_of(evidence).findings if one.code is FindingCode.CLOCKS_LOCKED]

    def test_a_busy_device_at_one_low_clock(self) -> None:
        [finding] = self.at(345)
        assert finding.severity is Severity.NOTE
        assert finding.numbers == {"GPU-0.sm_clock_mhz": 345, "GPU-0.highest_mhz": 1980}

    def test_by_the_driver_s_word(self) -> None:
        assert self.at(345, use=10, mask=2)

    @pytest.mark.parametrize(
        "how",
        [
            {"mhz": 1900},
            {"mhz": 345, "use": 10},
            {"mhz": 1200, "mask": 4},
            {"mhz": 1200, "mask": 0x20},
            {"mhz": 1200, "spread": 200},
            {"mhz": 345, "highest": None},
            {"mhz": 1980, "mask": 2},
        ],
        ids=str,
    )
    def test_rest_heat_power_and_boost_are_no_lock(self, how: dict[str, Any]) -> None:
        assert self.at(**how) == []


class TestTemperature:
    @pytest.mark.parametrize(("rise", "found"), [(14, True), (-14, True), (8, False)])
    def test_drift_of_more_than_ten_degrees(self, rise: int, found: bool) -> None:
        evidence = with_readings(temperature_c=lambda t: round(60 + rise * (t - 30) / 12))
        if not found:
            assert result_of(evidence).findings == ()
            return
        finding = only(evidence, FindingCode.TEMPERATURE_DRIFT)
        assert finding.numbers == {"GPU-0.change_c": pytest.approx(rise, abs=0.3)}


class TestForeignProcess:
    @staticmethod
    def seen(evidence: Evidence, at: float, gone: float | None = None, memory: int | None = 5_000_000) -> Evidence:
        who = {"device_index": 0, "pid": 4711}
        evidence.event("sampler", "foreign_process", json.dumps({**who, "memory_bytes": memory}), at)
        if gone is not None:
            evidence.event("sampler", "foreign_process_gone", json.dumps(who), gone)
        return evidence

    @pytest.mark.parametrize(("at", "gone"), [(35.0, 36.0), (5.0, None), (5.0, 31.0), (41.0, None)])
    def test_in_the_window(self, at: float, gone: float | None) -> None:
        finding = only(self.seen(made(), at, gone), FindingCode.FOREIGN_PROCESS)
        assert finding.severity is Severity.WARNING
        assert "process 4711 on GPU-0" in finding.message
        assert finding.numbers == {"processes": 1, "memory_bytes": 5_000_000}

    def test_of_unknown_memory(self) -> None:
        finding = only(self.seen(made(), 35.0, memory=None), FindingCode.FOREIGN_PROCESS)
        assert finding.numbers == {"processes": 1}

    @pytest.mark.parametrize(("at", "gone"), [(5.0, 29.0), (43.0, None)])
    def test_outside_the_window(self, at: float, gone: float | None) -> None:
        assert result_of(self.seen(made(), at, gone)).findings == ()

    def test_during_a_baseline(self) -> None:
        evidence = self.seen(made(), 12.0, 14.0)
        evidence.baseline("ready", 10.0, 20.0)
        assert FindingCode.FOREIGN_PROCESS in {finding.code for finding in result_of(evidence).findings}
        (finding,) = (one for one in result_of(evidence).findings if one.code is FindingCode.FOREIGN_PROCESS)
        assert finding.severity is Severity.NOTE

    @staticmethod
    def listed(evidence: Evidence, listed: bool | None, own: bool | None = None) -> Evidence:
        facts = {"index": 0, "uuid": "GPU-0", "own_processes_listed": listed, "own_pid_namespace": own}
        evidence.summaries["sampler"]["devices"] = [facts]
        return evidence

    @pytest.mark.parametrize(("own", "reason"), [(True, "in a container"), (False, "never listed"), (None, "never")])
    def test_pids_of_another_namespace_are_not_compared(self, own: bool | None, reason: str) -> None:
        """A pid of the host that by chance is that of a local process."""
        result = result_of(self.listed(self.seen(made(), 35.0), listed=False, own=own))
        assert result.findings == ()
        check = next(one for one in result.checks if one.name is CheckName.NO_FOREIGN_PROCESS)
        assert check.passed is None and reason in check.detail

    @pytest.mark.parametrize(("at", "passed"), [(None, True), (35.0, False), (50.0, True)])
    def test_the_check_says_what_was_seen(self, at: float | None, passed: bool) -> None:
        evidence = self.listed(made(), listed=True)
        result = result_of(evidence if at is None else self.seen(evidence, at))
        check = next(one for one in result.checks if one.name is CheckName.NO_FOREIGN_PROCESS)
        assert check.passed is passed

    def test_its_use_of_the_device_is_said(self) -> None:
        evidence = made()
        detail = {"device_index": 0, "pid": 4711, "memory_bytes": None, "sm_percent": 35}
        evidence.event("sampler", "foreign_process", json.dumps(detail), 35.0)
        assert "using 35 % of it" in only(evidence, FindingCode.FOREIGN_PROCESS).message

    def test_a_pid_that_no_process_can_have_is_noted(self) -> None:
        evidence = made()
        detail = {"device_index": 0, "listed_as": 2**32 - 1, "memory_bytes": 5}
        evidence.event("sampler", "unidentified_process", json.dumps(detail), 35.0)
        finding = only(evidence, FindingCode.UNIDENTIFIED_PROCESS)
        assert (finding.severity, finding.numbers) == (Severity.NOTE, {"processes": 1, "memory_bytes": 5})


class TestForeignLoad:
    @staticmethod
    def loaded(cores: float, own: float, kind: DeviceKind = DeviceKind.CPU) -> list[Finding]:
        evidence = made(devices=(Device(uuid="GPU-0", kind=kind, name="one"),))
        for time in range(0, 70, 2):
            load = {"busy_s": 1000 + (cores + own) * time, "own_s": 50 + own * time, "cores": 8}
            evidence.event("sampler", "cpu_load", json.dumps(load), float(time))
        return [one for one in result_of(evidence).findings if one.code is FindingCode.FOREIGN_LOAD]

    def test_three_busy_loops(self) -> None:
        [finding] = self.loaded(3.0, 2.0)
        assert finding.severity is Severity.WARNING
        assert finding.numbers == {"cores": pytest.approx(3), "share": pytest.approx(0.6)}

    @pytest.mark.parametrize(("cores", "own"), [(0.2, 0.5), (0.5, 7.0), (0.0, 4.0)])
    def test_services_in_the_background_are_not_held_against_it(self, cores: float, own: float) -> None:
        assert self.loaded(cores, own) == []

    @pytest.mark.parametrize("kind", [DeviceKind.GPU, DeviceKind.SIMULATED])
    def test_the_energy_of_other_devices_does_not_depend_on_it(self, kind: DeviceKind) -> None:
        assert self.loaded(3.0, 2.0, kind) == []


class TestMig:
    def test_instances_of_one_gpu_count_once_and_are_flagged(self) -> None:
        evidence = made(devices=(gpu(0), gpu(1), gpu(2)))
        parents = {"GPU-0": "GPU-X", "GPU-1": "GPU-X", "GPU-2": None}
        evidence.summaries["sampler"]["devices"] = [
            {"index": place, "uuid": uuid, "power_reading": "instant", "mig_parent_uuid": parent}
            for place, (uuid, parent) in enumerate(parents.items())
        ]
        finding = only(evidence, FindingCode.MIG_PARENT_POWER)
        assert finding.severity is Severity.WARNING
        assert finding.numbers == {"instances": 2}
        energy = result_of(evidence).energy
        assert energy.total.joules == pytest.approx(2400, abs=0.01)
        assert energy.includes == ("GPU-0", "GPU-2")


class TestClockJump:
    @staticmethod
    def clocks(*readings: tuple[float, float]) -> Evidence:
        evidence = made()
        for monotonic, utc in readings:
            detail = {"monotonic_ns": ns(monotonic), "utc_ns": ns(utc), "uncertainty_ns": 1000}
            evidence.event("sampler", "clock", json.dumps(detail), monotonic)
        return evidence

    def test_inside_the_window(self) -> None:
        finding = only(self.clocks((0, 1000), (35, 1035), (60, 1063)), FindingCode.CLOCK_JUMP)
        assert finding.severity is Severity.WARNING
        assert finding.numbers == {"jump_s": pytest.approx(3)}

    def test_before_the_window(self) -> None:
        finding = only(self.clocks((0, 1000), (20, 1019), (60, 1059)), FindingCode.CLOCK_JUMP)
        assert finding.severity is Severity.NOTE
        assert finding.numbers == {"jump_s": pytest.approx(-1)}

    def test_gentle_correction_is_no_jump(self) -> None:
        assert result_of(self.clocks((0, 1000), (35, 1035.017), (60, 1060.03))).findings == ()
