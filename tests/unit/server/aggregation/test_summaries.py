"""Cycles of one experiment: mean and spread, worst verdict, distinct findings."""

from __future__ import annotations

import statistics

import pytest

from factories.evidence import Evidence, cpu, gpu
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.metrics import METRICS
from lem_domain.results.run import ComputeResult, EfficiencyResult, RunResult, SpeedResult
from lem_server.aggregation.result import aggregate
from lem_server.aggregation.summaries import CycleTally


def cycle(
    watts: float | None, *, modelled: bool = False, tokens: int = 3, output: str | None = None, temperature: float = 0
) -> RunResult:
    made = Evidence(devices=(cpu() if modelled else gpu(),))
    made.config = ExperimentConfig.model_validate(
        {"backend": "simulated", "model": "test", "decoding": {"temperature": temperature}}
    )
    if output is not None:
        made.summaries["rank-0"]["outputs_sha256"] = output * 64
    made.request(0, 0.0, [1.0 + 11 * number / (tokens - 1) for number in range(tokens)])
    times = [number * 0.1 - 1 for number in range(141)]
    if watts is not None and modelled:
        made.host_power("package", times, joules=lambda t: watts * t + 1000)
    elif watts is not None:
        made.power(times, joules=lambda t: watts * t + 1000)
    stored = made.stored()
    return aggregate(stored.inputs, stored.source)


def tally(results: list[RunResult]) -> CycleTally:
    found = CycleTally()
    for result in results:
        found.add(result)
    return found


def test_mean_spread_and_order_of_cycles() -> None:
    metrics = {summary.metric: summary for summary in tally([cycle(100), cycle(130), cycle(110)]).metrics()}
    assert tuple(metrics) == tuple(metric.name for metric in METRICS)
    power = metrics["energy.mean_power_w"]
    assert power.values == pytest.approx((100, 130, 110), abs=0.01)
    assert power.mean == pytest.approx(statistics.fmean(power.values))
    assert power.sd == pytest.approx(statistics.stdev(power.values))
    assert power.cv == pytest.approx(statistics.stdev(power.values) / statistics.fmean(power.values))
    assert metrics["energy.total"].values == pytest.approx((1200, 1560, 1320), abs=0.01)
    assert metrics["efficiency.energy_per_output_token_j"].values == pytest.approx((400, 520, 440), abs=0.01)
    assert metrics["work.generated_tokens"].values == (3, 3, 3)
    assert metrics["work.generated_tokens"].cv == 0


def test_one_cycle_has_no_spread() -> None:
    summary = tally([cycle(100)]).metrics()[0]
    assert (summary.sd, summary.cv) == (None, None)
    assert summary.mean is not None


def test_a_figure_that_no_cycle_has_is_null_with_the_reason() -> None:
    metrics = {summary.metric: summary for summary in tally([cycle(None), cycle(None)]).metrics()}
    assert metrics["energy.total"].values == ()
    assert metrics["energy.total"].reason == "GPU-0: no power was sampled for this device"
    assert metrics["speed.output_rate_tok_s"].mean == pytest.approx(0.25)


def test_a_cycle_without_the_figure_is_left_out() -> None:
    metrics = {summary.metric: summary for summary in tally([cycle(None), cycle(100)]).metrics()}
    assert len(metrics["energy.total"].values) == 1
    assert len(metrics["window.duration_s"].values) == 2


def test_nothing_aggregated_yet() -> None:
    summary = tally([]).summary()
    assert (summary.verdict, summary.energy_method, summary.findings) == (None, None, ())
    assert {metric.reason for metric in summary.metrics} == {"no cycle has been aggregated"}


def test_the_worst_verdict_and_each_finding_once() -> None:
    summary = tally([cycle(100), cycle(None), cycle(None)]).summary()
    assert summary.verdict == "questionable"
    assert len(summary.findings) == 1
    assert (summary.energy_method, summary.energy_includes) == ("counter", ("GPU-0",))


def test_cycles_with_different_methods_are_mixed() -> None:
    summary = tally([cycle(100), cycle(50, modelled=True)]).summary()
    assert summary.energy_method == "mixed"
    assert summary.energy_includes == ("GPU-0", "package")


def test_greedy_cycles_with_other_outputs_are_questionable() -> None:
    results = [cycle(100, output="a"), cycle(100, output="b"), cycle(100, output="a"), cycle(100)]
    (finding,) = tally(results).between_cycles()
    assert finding.numbers == {"cycles": 3, "outputs": 2}
    summary = tally(results).summary()
    assert summary.verdict == "questionable"
    assert summary.findings == (finding.message,)


@pytest.mark.parametrize(
    "results",
    [
        [cycle(100, output="a"), cycle(100, output="a")],
        [cycle(100, output="a"), cycle(100)],
        [cycle(100, output="a", temperature=1), cycle(100, output="b", temperature=1)],
        [],
    ],
    ids=["same", "one untold", "sampled", "none"],
)
def test_cycles_that_need_not_or_do_agree(results: list[RunResult]) -> None:
    assert tally(results).between_cycles() == ()


def test_every_figure_of_the_method_is_summarised() -> None:
    """Ratios of energy, rates, latencies and operations: what one run says, a campaign's table and CSV say too."""
    figures = {
        f"{part}.{name}"
        for part in ("efficiency", "compute")
        for name in (EfficiencyResult if part == "efficiency" else ComputeResult).model_fields
    } - {"compute.peak_flops_per_s", "compute.peak_source"}
    speed = {f"speed.{name}.mean" if name.endswith("_ms") else f"speed.{name}" for name in SpeedResult.model_fields}
    assert figures | speed <= {metric.name for metric in METRICS}
    metrics = {summary.metric: summary for summary in tally([cycle(100)]).metrics()}
    assert metrics["efficiency.output_tokens_per_j"].mean == pytest.approx(3 / 1200, rel=1e-4)
    assert metrics["efficiency.energy_delay_product_js"].mean == pytest.approx(1200 * 12, rel=1e-4)
    assert metrics["compute.mfu"].reason
