"""The job's energy: each device once, host apart, nothing missing counted as nothing."""

from __future__ import annotations

import pytest
from pydantic.types import JsonValue

from factories.evidence import Evidence, cpu, gpu, simulated
from lem_domain.results.energy import EnergyResult
from lem_domain.results.figures import EnergyMethod
from lem_domain.results.findings import FindingCode, Severity
from lem_domain.results.method import MethodVersion
from lem_domain.results.run import RunResult
from lem_server.aggregation.result import aggregate

SAMPLES = [number * 0.1 for number in range(140)]


def busy(**fields: object) -> Evidence:
    """A window from 1 s to 12 s: eleven seconds."""
    evidence = Evidence(**fields)  # type: ignore[arg-type]
    evidence.request(0, 1.0, [2.0, 12.0])
    return evidence


def result_of(evidence: Evidence) -> RunResult:
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def energy_of(evidence: Evidence) -> EnergyResult:
    return result_of(evidence).energy


def test_the_counter_is_the_figure_where_both_exist() -> None:
    evidence = busy()
    evidence.power(SAMPLES, watts=lambda _: 90, joules=lambda t: 100 * t)
    energy = energy_of(evidence)
    assert energy.total.joules == pytest.approx(1100, abs=0.01)
    assert energy.total.method is EnergyMethod.COUNTER
    assert energy.includes == ("GPU-0",)
    assert energy.mean_power_w.value == pytest.approx(100, abs=0.01)
    assert energy.devices[0].peak_power_w.value == 90
    assert energy.devices[0].samples == 111


def test_a_counter_that_was_reset_gives_way_to_the_integral() -> None:
    evidence = busy(method=MethodVersion.M1)
    evidence.power(SAMPLES, watts=lambda _: 90, joules=lambda t: 100 * (t % 6))
    energy = energy_of(evidence)
    assert energy.total.joules == pytest.approx(990)
    assert energy.total.method is EnergyMethod.INTEGRATED
    assert energy.total.bound_j == pytest.approx(5 * 11)


def test_a_counter_that_was_reset_and_no_power_give_null_with_both_reasons() -> None:
    evidence = busy(method=MethodVersion.M1)
    evidence.power(SAMPLES, joules=lambda t: 100 * (t % 6))
    result = result_of(evidence)
    assert result.energy.total.joules is None
    assert "reset" in str(result.energy.total.reason)
    assert "the power reading has no samples" in str(result.energy.total.reason)
    assert result.energy.devices[0].peak_power_w.value is None
    assert result.efficiency.energy_per_output_token_j.value is None
    assert result.verdict == "questionable"


def test_four_devices_add_up_with_their_bounds() -> None:
    evidence = busy(devices=tuple(gpu(number) for number in range(4)), method=MethodVersion.M1)
    for number in range(4):
        evidence.power(SAMPLES, watts=lambda _, number=number: 100 * (number + 1), device=number)  # type: ignore[misc]
    energy = energy_of(evidence)
    assert [device.energy.joules for device in energy.devices] == pytest.approx([1100, 2200, 3300, 4400])
    assert energy.total.joules == pytest.approx(11000)
    assert energy.total.bound_j == pytest.approx(4 * 55)
    assert energy.includes == ("GPU-0", "GPU-1", "GPU-2", "GPU-3")


def test_a_device_shared_by_two_processes_counts_once() -> None:
    evidence = busy(devices=(gpu(0), gpu(0)), processes=("rank-0", "rank-1", "sampler"))
    evidence.request(0, 1.0, [2.0, 12.0], rank=1)
    evidence.power(SAMPLES, watts=lambda _: 100, device=0)
    evidence.power(SAMPLES, watts=lambda _: 100, device=1)
    evidence.power(SAMPLES, watts=lambda _: 100, device=0, process="rank-1")
    energy = energy_of(evidence)
    assert energy.total.joules == pytest.approx(1100)
    assert energy.includes == ("GPU-0",)
    assert energy.devices[0].samples == 111


def test_one_device_without_figure_makes_the_total_null() -> None:
    evidence = busy(devices=(gpu(0), gpu(1)))
    evidence.power(SAMPLES, watts=lambda _: 100, device=0)
    energy = energy_of(evidence)
    assert energy.devices[0].energy.joules == pytest.approx(1100)
    assert energy.total.joules is None
    assert energy.total.reason == "GPU-1: no power was sampled for this device"
    assert energy.includes == ()


def test_mixed_methods_are_called_by_the_weakest_and_say_so() -> None:
    evidence = busy(devices=(gpu(0), gpu(1)))
    evidence.power(SAMPLES, joules=lambda t: 100 * t, device=0)
    evidence.power(SAMPLES, watts=lambda _: 100, device=1)
    total = energy_of(evidence).total
    assert total.method is EnergyMethod.INTEGRATED
    assert total.source == "sum of counter and integrated figures"


def test_the_host_s_energy_stays_apart_from_the_devices() -> None:
    evidence = busy(devices=(simulated(),))
    evidence.power(SAMPLES, joules=lambda t: 100 * t)
    evidence.host_power("package", SAMPLES, joules=lambda t: 30 * t, method="counter")
    energy = energy_of(evidence)
    assert energy.total.joules == pytest.approx(1100, abs=0.01)
    assert energy.host[0].energy.joules == pytest.approx(330, abs=0.001)
    assert energy.host[0].energy.method is EnergyMethod.COUNTER


def test_on_a_cpu_the_host_s_domains_are_the_job() -> None:
    evidence = busy(devices=(cpu(),))
    evidence.summaries["sampler"] = {
        "sources": [{"name": "codecarbon", "opened": True, "domains": ["package", "dram"], "reason": None}]
    }
    evidence.host_power("package", SAMPLES, joules=lambda t: 30 * t)
    evidence.host_power("dram", SAMPLES, joules=lambda t: 5 * t)
    result = result_of(evidence)
    total = result.energy.total
    assert total.joules == pytest.approx(385, abs=0.001)
    assert (total.method, total.source, total.bound_j) == (EnergyMethod.MODELLED, "codecarbon", None)
    assert result.energy.includes == ("dram", "package")
    assert "under host" in str(result.energy.devices[0].energy.reason)
    assert [finding.code for finding in result.findings] == [FindingCode.ENERGY_MODELLED]
    assert result.verdict == "questionable"


def test_a_modelled_figure_never_replaces_a_measured_one() -> None:
    evidence = busy(devices=(cpu(),))
    evidence.host_power("package", SAMPLES, joules=lambda t: 77 * t, method="modelled")
    evidence.host_power("package", SAMPLES, joules=lambda t: 30 * t, method="counter")
    energy = energy_of(evidence)
    assert energy.total.joules == pytest.approx(330, abs=0.001)
    assert energy.total.method is EnergyMethod.COUNTER


@pytest.mark.parametrize("accelerators", [False, True])
def test_a_part_that_two_sources_name_otherwise_counts_once(accelerators: bool) -> None:
    """RAPL says package-0 and dram-0 where CodeCarbon says package and dram."""
    evidence = busy(devices=(gpu(0),) if accelerators else (cpu(),))
    if accelerators:
        evidence.power(SAMPLES, joules=lambda t: 100 * t)
    for domain, watts in (("package-0", 30), ("package-1", 20), ("dram-0", 5)):
        evidence.host_power(domain, SAMPLES, joules=lambda t, watts=watts: watts * t, method="counter")  # type: ignore[misc]
    for domain, watts in (("package", 77), ("dram", 7)):
        evidence.host_power(domain, SAMPLES, joules=lambda t, watts=watts: watts * t, method="modelled")  # type: ignore[misc]
    energy = energy_of(evidence)
    assert (energy.cpu.joules, energy.dram.joules) == (pytest.approx(550, abs=0.01), pytest.approx(55, abs=0.01))
    assert energy.cpu.method is EnergyMethod.COUNTER
    assert len(energy.host) == 5, "what the model says is told all the same"
    measured = ("package-0", "package-1", "dram-0")
    assert set(energy.measured_includes) == ({"GPU-0", *measured} if accelerators else set(measured))
    assert energy.measured_total.joules == pytest.approx(1705 if accelerators else 605, abs=0.01)
    if not accelerators:
        assert energy.total.joules == pytest.approx(605, abs=0.01)
        assert set(energy.includes) == set(measured)


def test_a_model_is_used_where_what_measures_the_part_gave_nothing() -> None:
    evidence = busy(devices=(cpu(),))
    evidence.host_power("package-0", [0.0, 0.1], joules=lambda t: 30 * t, method="counter")
    evidence.host_power("package", SAMPLES, joules=lambda t: 77 * t, method="modelled")
    energy = energy_of(evidence)
    assert (energy.total.joules, energy.total.method) == (pytest.approx(847, abs=0.01), EnergyMethod.MODELLED)
    assert energy.includes == ("package",)
    assert energy.measured_total.joules is None


def test_what_was_measured_in_all_leaves_out_what_a_model_says() -> None:
    evidence = busy()
    evidence.power(SAMPLES, joules=lambda t: 100 * t)
    evidence.host_power("package", SAMPLES, joules=lambda t: 77 * t, method="modelled")
    energy = energy_of(evidence)
    assert energy.measured_includes == ("GPU-0",)
    assert energy.measured_total.joules == energy.total.joules


def test_a_counter_is_as_far_off_as_the_sensor_that_feeds_it() -> None:
    evidence = busy(method=MethodVersion.M1)
    evidence.power(SAMPLES, joules=lambda t: 105 * t)  # 100 W, and 5 W too much
    total = energy_of(evidence).total
    assert total.joules is not None and total.bound_j is not None
    assert total.sensor_bound_j == pytest.approx(5 * 11)
    assert total.sensor_bound_j < total.bound_j
    assert abs(total.joules - 1100) <= total.bound_j
    of_a_cpu = busy(devices=(cpu(),), method=MethodVersion.M1)
    of_a_cpu.host_power("package-0", SAMPLES, joules=lambda t: 30 * t, method="counter")
    total = energy_of(of_a_cpu).total
    assert total.sensor_bound_j is None, "nobody states how accurate RAPL is"
    assert total.bound_j is not None


def test_peak_power_in_all_is_that_of_one_moment() -> None:
    evidence = busy(devices=(gpu(0), gpu(1)))
    evidence.power(SAMPLES, watts=lambda t: 300 if 3 < t < 4 else 100, device=0)
    evidence.power(SAMPLES, watts=lambda t: 200 if 6 < t < 7 else 50, device=1)
    energy = energy_of(evidence)
    assert [device.peak_power_w.value for device in energy.devices] == [300, 200]
    assert energy.peak_power_w.value == 350
    counted = busy(devices=(gpu(0), gpu(1)))
    counted.power(SAMPLES, watts=lambda _: 100, device=0)
    counted.power(SAMPLES, joules=lambda t: 100 * t, device=1)
    assert energy_of(counted).peak_power_w.reason == "no power was sampled around the window of GPU-1"


def test_what_lies_inside_the_package_is_not_added_to_it() -> None:
    evidence = busy(devices=(cpu(),))
    for domain, watts in (("package-0", 30), ("core", 20), ("psys", 60), ("dram", 5)):
        evidence.host_power(domain, SAMPLES, joules=lambda t, watts=watts: watts * t, method="counter")  # type: ignore[misc]
    energy = energy_of(evidence)
    assert energy.total.joules == pytest.approx(385, abs=0.001)
    assert energy.includes == ("dram", "package-0")
    assert len(energy.host) == 4


def test_modelled_power_without_a_counter_is_integrated_and_stays_modelled() -> None:
    evidence = busy(devices=(cpu(),))
    evidence.host_power("package", SAMPLES, watts=lambda _: 40)
    total = energy_of(evidence).total
    assert (total.joules, total.method, total.bound_j) == (pytest.approx(440), EnergyMethod.MODELLED, None)


@pytest.mark.parametrize(("required", "severity"), [(False, Severity.WARNING), (True, Severity.ERROR)])
def test_no_energy_is_null_with_the_source_s_reason(required: bool, severity: Severity) -> None:
    evidence = busy(devices=(cpu(),))
    evidence.config = evidence.config.model_copy(
        update={"energy": evidence.config.energy.model_copy(update={"required": required})}
    )
    evidence.summaries["sampler"] = {"sources": [{"name": "codecarbon", "opened": False, "reason": "no CPU table"}]}
    result = result_of(evidence)
    assert result.energy.total.reason == "nothing measured energy during the window (codecarbon: no CPU table)"
    (finding,) = result.findings
    assert (finding.code, finding.severity) == (FindingCode.ENERGY_UNAVAILABLE, severity)


@pytest.mark.parametrize(
    "summary",
    [
        {"sources": [{"name": "nvml", "opened": True, "domains": ["GPU-0"], "reason": "GPU-0 is lost."}]},
        {"failed": "GPU-0 is lost."},
    ],
)
def test_energy_that_ends_in_the_window_is_null_with_the_reason_why_it_ended(summary: dict[str, JsonValue]) -> None:
    evidence = busy(devices=(gpu(0),))
    evidence.power(SAMPLES[:60], joules=lambda t: 100 * t)
    evidence.summaries["sampler"] = summary
    energy = energy_of(evidence)
    assert energy.total.joules is None
    assert energy.total.reason == (
        "GPU-0: the energy counter has no sample after the window ended, and the power reading has no samples "
        "(GPU-0 is lost.)"
    )


def test_no_energy_is_null_with_the_reason_why_there_was_no_sampler() -> None:
    evidence = busy()
    evidence.summaries["sampler"] = {"failed": "the sampler was killed by SIGSEGV before its first sample"}
    assert (energy_of(evidence).total.reason or "").endswith(
        "no power was sampled for this device (the sampler was killed by SIGSEGV before its first sample)"
    )


def test_an_untold_tale_of_the_sources_is_left_out() -> None:
    evidence = busy(devices=(cpu(),))
    evidence.summaries["sampler"] = {"sources": ["codecarbon", {"name": 3}, {"opened": True}]}
    assert energy_of(evidence).total.reason == "nothing measured energy during the window"


def test_kinds_of_parts_have_their_own_sums() -> None:
    evidence = busy(devices=(gpu(0), gpu(1)))
    for number in range(2):
        evidence.power(SAMPLES, joules=lambda t: 100 * t, device=number)
    for domain, watts in (("package-0", 30), ("package-1", 20), ("core-0", 10), ("dram-0", 5), ("dram-1", 4)):
        evidence.host_power(domain, SAMPLES, joules=lambda t, watts=watts: watts * t, method="counter")  # type: ignore[misc]
    energy = energy_of(evidence)
    assert energy.gpu.joules == energy.total.joules == pytest.approx(2200, abs=0.01)
    assert energy.cpu.joules == pytest.approx(550, abs=0.01)
    assert energy.dram.joules == pytest.approx(99, abs=0.01)
    assert energy.cpu.bound_j is not None


def test_a_kind_that_no_one_measured_is_null() -> None:
    evidence = busy()
    evidence.power(SAMPLES, joules=lambda t: 100 * t)
    energy = energy_of(evidence)
    assert (energy.cpu.reason, energy.dram.reason) == ("no CPU package was measured", "no memory was measured")
    assert energy_of(busy(devices=(cpu(),))).gpu.reason == "no accelerator was leased"


def test_each_part_says_how_often_it_was_sampled_and_its_counter_moved() -> None:
    evidence = busy()
    evidence.power(
        [number * 0.02 for number in range(700)],
        joules=lambda t: 100 * (int(t / 0.1 + 1e-9) * 0.1),
        watts=lambda _: 100,
    )
    (device,) = energy_of(evidence).devices
    assert device.sampling_period_ms.value == pytest.approx(20)
    assert device.counter_period_ms.value == pytest.approx(100)
    without = busy()
    without.power(SAMPLES, watts=lambda _: 100)
    assert "no two updates" in str(energy_of(without).devices[0].counter_period_ms.reason)


def test_power_that_is_a_mean_over_a_second_has_a_wider_bound() -> None:
    bounds = []
    for reading in ("instant", "average"):
        evidence = busy(method=MethodVersion.M1)
        evidence.summaries["sampler"]["devices"] = [{"index": 0, "uuid": "GPU-0", "power_reading": reading}]
        evidence.power(SAMPLES, watts=lambda t: 100 if t < 0.95 else 300)
        bounds.append(energy_of(evidence).total.bound_j or 0)
    assert bounds[1] - bounds[0] == pytest.approx(200)
