"""Every finding is reached by evidence that deserves it, and a clean run has none."""

from __future__ import annotations

from typing import Any

import pytest

from factories.evidence import Evidence
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.findings import Finding, FindingCode, Severity
from lem_domain.results.run import RunResult
from lem_domain.wire.runs import EffectiveConfig, EffectiveParameter
from lem_server.aggregation.result import aggregate


def clean(config: dict[str, Any] | None = None, **fields: Any) -> Evidence:
    """A run of 12 s that nobody can object to."""
    made = Evidence(
        config=ExperimentConfig.model_validate({"backend": "simulated", "model": "test", **(config or {})}), **fields
    )
    made.request(0, 0.0, [1.0, 2.0, 12.0])
    return made


def sampled(made: Evidence, step: float = 0.1) -> Evidence:
    made.power([number * step - 1 for number in range(round(14 / step) + 1)], joules=lambda t: 100 * t + 1000)
    return made


def result_of(made: Evidence) -> RunResult:
    stored = made.stored()
    return aggregate(stored.inputs, stored.source)


def only(made: Evidence, code: FindingCode) -> Finding:
    (finding,) = result_of(made).findings
    assert finding.code is code
    return finding


def test_a_clean_run_is_valid() -> None:
    result = result_of(sampled(clean()))
    assert result.findings == ()
    assert result.verdict == "valid"


def test_a_short_window_is_flagged_with_its_bound() -> None:
    finding = only(sampled(clean({"window": {"min_duration_s": 30}})), FindingCode.SHORT_WINDOW)
    assert finding.severity is Severity.WARNING
    assert finding.numbers["duration_s"] == 12
    assert finding.numbers["bound_j"] >= 20


def test_a_window_as_long_as_was_asked_for_is_not_short() -> None:
    assert result_of(sampled(clean({"window": {"min_duration_s": 12.05}}))).findings == ()


def test_few_samples() -> None:
    finding = only(sampled(clean(), step=2), FindingCode.FEW_SAMPLES)
    assert finding.numbers == {"GPU-0": 6}


@pytest.mark.parametrize(("counted", "severity"), [(True, Severity.NOTE), (False, Severity.WARNING)])
def test_gaps_matter_for_an_integral_more_than_for_a_counter(counted: bool, severity: Severity) -> None:
    made = clean()
    times = [number * 0.1 - 1 for number in range(141) if not 50 < number < 60]
    if counted:
        made.power(times, joules=lambda t: 100 * t + 1000)
    else:
        made.power(times, watts=lambda _: 100)
    finding = only(made, FindingCode.SAMPLING_GAPS)
    assert finding.severity is severity
    assert finding.numbers == {"GPU-0.longest_s": pytest.approx(1.0)}


@pytest.mark.parametrize(
    "detail",
    ['{"converged": false, "requests": 50, "cv": 0.2}', '{"converged": false, "requests": 3, "cv": null}'],
)
def test_a_warm_up_that_did_not_converge_is_reported_by_its_event(detail: str) -> None:
    made = sampled(clean())
    made.event("rank-0", "warmup", detail)
    assert only(made, FindingCode.WARMUP_NOT_CONVERGED).severity is Severity.WARNING


def test_the_event_goes_before_the_marker_and_nonsense_is_passed_over() -> None:
    made = sampled(clean())
    made.summaries["rank-0"] = {"warmup_converged": False}
    made.event("rank-0", "warmup", '{"converged": true, "requests": 6, "cv": 0.01}')
    made.event("rank-0", "warmup", "not json")
    made.event("rank-0", "output", '{"converged": false}')
    assert result_of(made).findings == ()


def test_a_warm_up_that_no_one_recorded_is_not_assumed() -> None:
    made = sampled(clean())
    made.summaries["rank-0"] = {}
    assert only(made, FindingCode.WARMUP_NOT_CONVERGED).numbers == {"cv_threshold": 0.05}


@pytest.mark.parametrize("count", [0, 2])
def test_what_was_compiled_inside_the_window_is_in_its_figures(count: int) -> None:
    made = sampled(clean())
    made.summaries["rank-0"]["compilation"] = {"compiled_graphs": 8, "compiled_graphs_in_window": count}
    if not count:
        assert result_of(made).findings == ()
        return
    finding = only(made, FindingCode.COMPILED_IN_WINDOW)
    assert finding.severity is Severity.WARNING
    assert finding.numbers == {"rank-0.graphs": 2}


def test_no_warm_up_is_said_but_was_the_user_s_wish() -> None:
    made = sampled(clean({"warmup": {"enabled": False}}))
    assert only(made, FindingCode.WARMUP_NOT_CONVERGED).severity is Severity.NOTE


def test_a_parameter_that_did_not_take_effect_makes_the_run_invalid() -> None:
    parameter = EffectiveParameter(name="simulated.batch_size", requested=8, effective=4, confirmed=False)
    made = sampled(clean(effective_config=EffectiveConfig(engine="simulated 1", parameters=(parameter,))))
    finding = only(made, FindingCode.NOT_AS_REQUESTED)
    assert finding.severity is Severity.ERROR
    assert "simulated.batch_size is 4 where 8 was requested" in finding.message


def test_an_engine_that_was_never_asked_is_flagged() -> None:
    assert only(sampled(clean(effective_config=None)), FindingCode.NOT_AS_REQUESTED).severity is Severity.WARNING


def test_processes_that_hardly_worked_together() -> None:
    made = sampled(clean(processes=("rank-0", "rank-1", "sampler")))
    made.request(0, 0.0, [1.0, 3.0], rank=1)
    assert only(made, FindingCode.LOW_OVERLAP).numbers["overlap"] == 0.25


@pytest.mark.parametrize(("failures", "severity"), [(1, Severity.WARNING), (2, Severity.ERROR)])
def test_failed_requests(failures: int, severity: Severity) -> None:
    made = sampled(Evidence())
    made.request(0, 0.0, [1.0, 12.0], error="broken" if failures == 2 else None)
    made.request(1, 0.0, [1.0], error="broken")
    finding = only(made, FindingCode.FAILED_REQUESTS)
    assert (finding.severity, finding.numbers["failed_requests"]) == (severity, failures)


def test_greedy_tokens_that_did_not_repeat() -> None:
    made = sampled(clean())
    made.summaries["rank-0"]["outputs_repeat"] = False
    assert only(made, FindingCode.OUTPUT_MISMATCH).severity is Severity.WARNING


def test_sampled_tokens_need_not_repeat() -> None:
    made = sampled(clean({"decoding": {"temperature": 0.7}}))
    made.summaries["rank-0"]["outputs_repeat"] = False
    assert result_of(made).findings == ()


def opened(late: int, *, late_s: float = 0.02, **traffic: Any) -> Evidence:
    """Twenty requests of open traffic, 0.6 s apart, so many of them handed over late, the others by 0.5 ms."""
    traffic = {"mode": "open", **(traffic or {"rate_per_s": 10.0})}
    made = Evidence(
        config=ExperimentConfig.model_validate({"backend": "simulated", "model": "test", "traffic": traffic})
    )
    for number in range(20):
        arrival = number * 0.6
        released = arrival + (late_s if number < late else 0.0005)
        made.request(number, arrival, [arrival + 0.3, arrival + 0.6], released=released)
    return sampled(made)


def test_requests_that_were_handed_over_late() -> None:
    finding = only(opened(3), FindingCode.LATE_ARRIVALS)
    assert finding.severity is Severity.WARNING
    assert finding.numbers == {"late_share": pytest.approx(0.15), "latest_ms": pytest.approx(20)}


TRACE: dict[str, Any] = {"arrivals": "trace", "trace": "a" * 64}


def test_requests_of_a_trace_that_were_handed_over_late() -> None:
    """A trace has no rate: late is what is late by a tenth of the mean distance that its arrivals have."""
    finding = only(opened(3, late_s=0.07, **TRACE), FindingCode.LATE_ARRIVALS)
    assert finding.numbers == {"late_share": pytest.approx(0.15), "latest_ms": pytest.approx(70)}
    assert "trace" in finding.message
    assert "rate_per_s" not in finding.message
    assert result_of(opened(3, late_s=0.05, **TRACE)).findings == ()
    assert "traffic.rate_per_s" in only(opened(3), FindingCode.LATE_ARRIVALS).message


def test_the_only_request_of_a_trace_is_late_after_a_millisecond() -> None:
    made = Evidence(config=opened(0, **TRACE).config)
    made.request(0, 0, [6, 12], released=0.002)
    assert only(sampled(made), FindingCode.LATE_ARRIVALS).numbers["late_share"] == 1


def test_one_late_request_of_twenty_is_no_other_traffic() -> None:
    assert result_of(opened(1)).findings == ()


def test_a_warm_up_says_how_power_still_changed() -> None:
    made = sampled(clean())
    made.event("rank-0", "warmup", '{"converged": false, "requests": 50, "cv": 0.01, "power_slope": 0.07}')
    assert "power changing by 7.0%" in only(made, FindingCode.WARMUP_NOT_CONVERGED).message


@pytest.mark.parametrize(("period_s", "found"), [(0.55, False), (0.7, True)])
def test_a_counter_that_is_updated_less_than_twenty_times_is_found(period_s: float, found: bool) -> None:
    made = clean()
    times = [number * 0.05 - 2 for number in range(320)]
    made.power(times, joules=lambda t: 100 * period_s * (t // period_s) + 1000)
    findings = [one for one in result_of(made).findings if one.code is FindingCode.COUNTER_SLOW]
    assert [one.severity for one in findings] == ([Severity.NOTE] if found else [])
