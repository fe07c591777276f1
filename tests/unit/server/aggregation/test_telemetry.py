"""Readings hold until the next, weighed by time inside the window; memory and the sampler's own cost stand beside."""

from __future__ import annotations

import pytest

from factories.evidence import Evidence, cpu
from lem_domain.results.run import RunResult
from lem_server.aggregation.result import aggregate


def result_of(evidence: Evidence) -> RunResult:
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def test_readings_are_weighed_by_how_long_they_hold() -> None:
    evidence = Evidence()
    evidence.request(0, 10.0, [11.0, 20.0])
    # Readings at 0, 4, 8 s and so on; the one of 8 s holds from the window's begin.
    clock = {0: 100, 4: 200, 8: 1000, 12: 1400, 16: 1200, 20: 5000, 24: 9000}
    evidence.power(
        [float(time) for time in range(25)],
        joules=lambda t: 100 * t,
        sm_clock_mhz=lambda t: clock.get(int(t)),
        memory_clock_mhz=lambda t: clock.get(int(t)),
        temperature_c=lambda t: 40 + int(t),
        gpu_percent=lambda t: 100 if t >= 15 else 0,
        memory_percent=lambda t: 10,
        memory_used_bytes=lambda t: 3_000_000_000 if int(t) == 16 else 2_000_000_000,
        throttle_reasons=lambda t: 0x404 if 12 <= t < 15 else 0,
    )
    (device,) = result_of(evidence).telemetry.devices
    assert device.sm_clock_mean_mhz.value == pytest.approx((2 * 1000 + 4 * 1400 + 4 * 1200) / 10)
    assert device.memory_clock_mean_mhz.value == device.sm_clock_mean_mhz.value
    assert device.temperature_max_c.value == 60
    assert device.temperature_mean_c.value == pytest.approx(54.5)
    assert device.gpu_utilisation_mean_percent.value == pytest.approx(50)
    assert device.memory_utilisation_mean_percent.value == 10
    assert device.memory_peak_mb.value == 3000
    assert device.throttled == {"sw_power_cap": pytest.approx(0.3), "bit_10": pytest.approx(0.3)}


def test_what_a_device_does_not_report_is_null() -> None:
    evidence = Evidence()
    evidence.request(0, 10.0, [11.0, 20.0])
    evidence.power([float(time) for time in range(25)], joules=lambda t: 100 * t)
    (device,) = result_of(evidence).telemetry.devices
    assert device.temperature_mean_c.reason == "the device has no such reading in the window"
    assert device.memory_peak_mb.value is None
    assert device.throttled is None


def test_readings_outside_the_window_alone_are_none() -> None:
    evidence = Evidence()
    evidence.request(0, 10.0, [11.0, 20.0])
    evidence.power(
        [float(time) for time in range(25)],
        joules=lambda t: 100 * t,
        temperature_c=lambda t: 50 if t < 9 or t > 21 else None,
    )
    assert result_of(evidence).telemetry.devices[0].temperature_max_c.value is None


def test_ranks_report_their_memory_and_the_sampler_what_it_took() -> None:
    evidence = Evidence(processes=("rank-0", "rank-1", "sampler"), devices=(cpu(),))
    for rank in range(2):
        evidence.request(0, 10.0, [11.0, 20.0], rank=rank)
    evidence.summaries["rank-0"] |= {"peak_device_memory_bytes": 7_000_000, "peak_rss_bytes": 9_000_000}
    evidence.summaries["rank-0"]["peak_kv_cache_usage"] = 0.5
    evidence.summaries["rank-1"]["peak_kv_cache_usage"] = None
    evidence.summaries["rank-1"]["unknown"] = {"peak_kv_cache_usage": "there is no pool"}
    evidence.summaries["sampler"] = {
        "interval_ns": 50_000_000,
        "ticks": 98,
        "late": 1,
        "missed": 2,
        "cpu_s": 0.5,
        "duration_s": 50.0,
    }
    telemetry = result_of(evidence).telemetry
    assert telemetry.devices == ()
    assert [process.process for process in telemetry.processes] == ["rank-0", "rank-1"]
    assert (telemetry.processes[0].device_peak_mb.value, telemetry.processes[0].rss_peak_mb.value) == (7, 9)
    assert telemetry.processes[1].rss_peak_mb.reason == "the process did not report it"
    assert telemetry.processes[0].kv_cache_peak.value == 0.5
    assert telemetry.processes[1].kv_cache_peak.reason == "there is no pool"
    sampler = telemetry.sampler
    assert sampler is not None
    assert (sampler.interval_ms.value, sampler.cpu_share.value) == (50, pytest.approx(0.01))
    assert sampler.late_or_missed.value == pytest.approx(0.03)


def test_an_older_worker_reported_less() -> None:
    evidence = Evidence()
    evidence.request(0, 10.0, [11.0, 20.0])
    sampler = result_of(evidence).telemetry.sampler
    assert sampler is not None
    assert (sampler.cpu_share.value, sampler.interval_ms.value) == (None, None)
