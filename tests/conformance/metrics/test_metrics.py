"""What every metric must keep, measured and without evidence for it. A new entry of the table is tested by itself."""

from __future__ import annotations

from functools import cache
from uuid import UUID

import pytest

from factories.evidence import Evidence, cpu, gpu
from lem_client.render import explain
from lem_client.render.formats import csv
from lem_client.render.numbers import number
from lem_client.render.result_table import COLUMNS, result_table
from lem_domain.config.experiment import ExperimentConfig
from lem_domain.ids import IdKind, format_id
from lem_domain.results.figures import Figure
from lem_domain.results.metrics import METRICS, Metric, field_of
from lem_domain.results.run import RunResult
from lem_domain.states import CampaignState
from lem_domain.wire.campaigns import CampaignResults, ExperimentResults, RunCounts
from lem_domain.wire.runs import EffectiveConfig, EffectiveParameter
from lem_domain.wire.workers import Device
from lem_server.aggregation.result import aggregate
from lem_server.aggregation.summaries import CycleTally
from tools.reference.results import metrics_page

EVERY = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
RATES = ("speed.output_rate_tok_s", "speed.total_rate_tok_s", "speed.request_rate_per_s")


def is_in_every_result(metric: Metric) -> bool:
    """Sums, lengths and rates of the window: a result without a window is refused."""
    return metric.name in RATES or isinstance(field_of(full(), metric.distribution or metric.name), int | float)


@cache
def full() -> RunResult:
    """A run of lockstep batches with every source of energy, limits, and a model of known size."""
    evidence = Evidence(
        config=ExperimentConfig.model_validate(
            {
                "backend": "simulated",
                "model": "test",
                "traffic": {"slo": {"ttft_ms": 5000}},
                "window": {"steady_min_s": 0},
            }
        ),
        effective_config=EffectiveConfig(
            engine="simulated 1",
            parameters=(EffectiveParameter(name="simulated.batch_size", requested=1, effective=1, confirmed=True),),
        ),
        devices=(Device(uuid="GPU-0", kind=gpu().kind, name="NVIDIA A100-SXM4-80GB"),),
    )
    evidence.summaries["rank-0"]["model"] = {
        "matmul_parameters": 1e9,
        "layers": 16,
        "attention_width": 2048,
        "dtype": "bfloat16",
    }
    for batch in range(2):
        begin = 10.0 * batch
        tokens = [begin + 4, begin + 6, begin + 9]
        evidence.request(batch, begin, tokens, scheduled=begin + 0.5, batch=batch)
    times = [number * 0.05 - 12 for number in range(900)]
    evidence.power(times, joules=lambda t: (100 if t > 0 else 40) * t + 10_000)
    evidence.baseline("ready", -11, -1)
    for domain in ("package-0", "dram-0"):
        evidence.host_power(domain, times, joules=lambda t: 30 * t + 1000, method="counter")
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


ONLY_MODELLED = (
    "efficiency.energy_per_output_token_without_constant_j",
    "energy.constant",
    "energy.without_constant",
)


@cache
def modelled() -> RunResult:
    """A run on a CPU without a meter."""
    evidence = Evidence(devices=(cpu(),))
    evidence.request(0, 0.0, [4.0, 6.0, 9.0])
    times = [number * 0.05 - 1 for number in range(300)]
    for domain, watts in (("package", 5.2), ("dram", 20.7)):
        evidence.host_power(domain, times, joules=lambda t, watts=watts: watts * t + 100)  # type: ignore[misc]
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def result_with(metric: Metric) -> RunResult:
    """A result that has the metric."""
    return modelled() if metric.name in ONLY_MODELLED else full()


@cache
def empty() -> RunResult:
    """A run whose only request failed after a token, with no sample of anything."""
    evidence = Evidence()
    evidence.request(0, 0.0, [1.0], error="it failed", record_tokens=False)
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source)


def table_of(result: RunResult) -> CampaignResults:
    tally = CycleTally()
    tally.add(result)
    summary = tally.summary()
    experiment = ExperimentResults(
        experiment_id=format_id(IdKind.EXPERIMENT, UUID(int=1)),
        display_name="one",
        varied={},
        outcomes=(),
        verdict=summary.verdict,
        energy_method=summary.energy_method,
        energy_includes=summary.energy_includes,
        findings=summary.findings,
        metrics=summary.metrics,
    )
    return CampaignResults(
        campaign_id=format_id(IdKind.CAMPAIGN, UUID(int=1)),
        name="c",
        state=CampaignState.ACTIVE,
        runs=RunCounts(),
        experiments=(experiment,),
    )


@EVERY
def test_it_has_a_value_where_the_evidence_has_it(metric: Metric) -> None:
    value, reason = metric.read(result_with(metric))
    assert value is not None and reason is None, reason


@EVERY
def test_it_is_null_with_a_reason_where_the_evidence_lacks_it(metric: Metric) -> None:
    value, reason = metric.read(empty())
    if is_in_every_result(metric):
        assert value is not None
    else:
        assert value is None and reason


@EVERY
def test_its_unit_is_that_of_the_figure(metric: Metric) -> None:
    field = field_of(result_with(metric), metric.distribution or metric.name)
    assert getattr(field, "unit", metric.unit) == metric.unit
    if isinstance(field, Figure):
        assert field.unit == metric.unit


@EVERY
def test_it_is_summarised_over_cycles(metric: Metric) -> None:
    tally = CycleTally()
    for result in (result_with(metric), empty(), result_with(metric)):
        tally.add(result)
    (summary,) = [one for one in tally.metrics() if one.metric == metric.name]
    assert summary.unit == metric.unit
    first = metric.read(result_with(metric)).value
    if is_in_every_result(metric):
        assert len(summary.values) == 3 and summary.sd is not None
    else:
        assert summary.values == (first, first) and (summary.mean, summary.sd) == (first, 0)


@EVERY
def test_it_is_shown(metric: Metric) -> None:
    """In the page of a run, in the CSV, and in the table if it has a column."""
    result = result_with(metric)
    shown = "\n".join(explain.result(result))
    assert metric.label is None or f"  {metric.label:<18} " in shown
    assert f",{metric.name},{metric.unit}," in csv.render(table_of(result))
    value = metric.read(result).value
    assert value is not None
    assert (
        metric.label is not None
        or any(number(value / scale) in shown for scale in (1, 1e3, 1e-3, 1e9, 1e12))
        or (str(round(value)) in shown)
    )
    if metric in COLUMNS:
        heading = str(metric.heading).replace("energy", "") if metric.unit == "J" else str(metric.heading)
        assert any(heading in one for one in result_table(table_of(result)).headings)


@EVERY
def test_it_is_documented(metric: Metric) -> None:
    assert metric.definition
    assert f"| `{metric.name}` | {metric.unit} | {metric.better.value} |" in metrics_page()


def test_an_entry_without_a_number_is_refused() -> None:
    with pytest.raises(TypeError):
        METRICS[0]._replace(name="energy").read(full())
