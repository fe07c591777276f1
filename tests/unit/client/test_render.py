"""Numbers, tables, lines and explanations as people see them."""

from __future__ import annotations

import io
import math
from csv import DictReader
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from factories.evidence import Evidence, cpu, gpu
from factories.results import campaign_results, summary
from lem_client.render import energy_report
from lem_client.render.formats import csv, markdown, table
from lem_client.render.numbers import Scale, duration, mean_and_spread, number, quantity, scale_for
from lem_client.render.progress import CampaignPicture, EventLines, transition_line
from lem_client.render.result_table import COLUMNS, result_table
from lem_client.render.schedule import execution_summary
from lem_client.render.terminal import clean
from lem_domain.config.execution import ExecutionConfig
from lem_domain.results.energy import EnergyResult
from lem_domain.results.figures import EnergyFigure, EnergyMethod, Figure
from lem_domain.results.metrics import METRICS
from lem_domain.states import RunState
from lem_domain.wire.campaigns import CampaignResults
from lem_domain.wire.events import AggregationEvent, RunProgressEvent, RunTransitionEvent
from lem_domain.wire.runs import Progress
from lem_domain.wire.workers import Device
from lem_server.aggregation.result import aggregate

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.01234, "J", "12.3 mJ"),
        (1234.0, "J", "1.23 kJ"),
        (0.0000012, "J", "1.20 µJ"),
        (0.0, "J", "0 J"),
        (15.25, "W", "15.2 W"),
        (0.5, "tok/s", "0.500 tok/s"),
        (4033.2, "tok/s", "4033 tok/s"),
        (None, "J", "–"),
    ],
)
def test_quantities_are_scaled_where_a_unit_takes_prefixes(value: float | None, unit: str, shown: str) -> None:
    assert quantity(value, unit) == shown


@given(st.floats(min_value=-1e300, max_value=1e300))
def test_a_shown_number_is_the_number_to_three_digits(value: float) -> None:
    assert math.isclose(float(number(value)), value, rel_tol=0.006)


def test_a_column_has_one_unit_that_its_largest_value_chooses() -> None:
    assert scale_for([0.2, 0.02], "J") == Scale(1e-3, "mJ")
    assert scale_for([2.0, 0.02], "J") == Scale(1.0, "J")
    assert scale_for([], "J") == Scale(1.0, "J")
    assert scale_for([1e-12], "J") == Scale(1e-9, "nJ")


@pytest.mark.parametrize(
    ("mean", "sd", "shown"),
    [
        (0.1955, 0.0001, "195.5 ± 0.1"),
        (0.1955, None, "196"),
        (0.1955, 0.05, "196 ± 50"),
        (0.1, 1e-15, "100 ± 0"),
        (None, None, "–"),
    ],
)
def test_the_mean_has_the_digits_that_its_spread_allows(mean: float | None, sd: float | None, shown: str) -> None:
    assert mean_and_spread(mean, sd, Scale(1e-3, "mJ")) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.25, "0.2 s"), (9, "9 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_read_at_a_glance(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


# --- results ----------------------------------------------------------------------------------------------------------


def test_the_table_says_method_spread_and_what_is_missing_and_why() -> None:
    made = result_table(campaign_results())
    row = dict(zip(made.headings, made.rows[0], strict=True))
    assert row["mJ per output token"] == "12.3"
    assert row["method"] == "modelled: package+dram"
    assert (row["n"], row["verdict"], row["TTFT ms"]) == ("1 of 4", "questionable", "–")
    assert made.notes == (
        "– batch_size=1: TTFT ms: no request has a first token",
        "– batch_size=1: cycle 2: no result, failed (out_of_memory)",
        "– batch_size=1: cycles 3–4: no result, queued",
        "the energy is modelled",
        "few samples",
    )


def shown_at(width: int, results: CampaignResults) -> str:
    out = io.StringIO()
    Console(width=width, file=out, force_terminal=False, markup=False, highlight=False, emoji=False).print(
        table.render(results)
    )
    return out.getvalue()


def all_figures() -> CampaignResults:
    """Every column of the table has numbers."""
    values = {"energy.total": 200.0, "energy.constant": 184.0}
    metrics = [
        summary(one.name, one.unit, values.get(one.name, 1234.5), values.get(one.name, 1234.5)) for one in METRICS
    ]
    spread = tuple(one.model_copy(update={"sd": 56.7}) for one in metrics)
    return campaign_results(metrics=spread, findings=(), display_name="pytorch.batch_size=8, pytorch.dtype=bfloat16")


def test_the_share_that_is_a_constant_of_a_model_is_in_the_table() -> None:
    made = result_table(all_figures())
    row = dict(zip(made.headings, made.rows[0], strict=True))
    assert row["method"] == "modelled: package+dram, 92% constant"
    assert row["kJ per token, no constant"] == "1.23 ± 0.06"


@pytest.mark.parametrize("width", [60, 80, 100, 132, 400])
def test_no_number_is_cut_at_any_width(width: int) -> None:
    results = all_figures()
    shown = shown_at(width, results)
    assert max(map(len, shown.splitlines())) <= width
    figures = [cell for cell in result_table(results).rows[0] if "±" in cell]
    assert len(figures) == len(COLUMNS)
    for cell in figures:
        assert shown.count(cell) == figures.count(cell)
    for heading in result_table(results).headings:
        assert all(word in shown for word in heading.split()), heading


def test_a_wide_terminal_has_one_table() -> None:
    assert shown_at(400, all_figures()).count("experiment") == 1
    assert shown_at(80, all_figures()).count("experiment") > 1


def test_a_finding_that_not_all_have_names_those_that_have_it() -> None:
    whole = campaign_results()
    (one,) = whole.experiments
    others = [
        one.model_copy(update={"display_name": "batch_size=8", "findings": ("few samples", "the energy is modelled")}),
        one.model_copy(update={"display_name": "batch_size=9", "findings": ("the energy is modelled",)}),
        one.model_copy(update={"display_name": "no engine", "verdict": None, "findings": (), "metrics": ()}),
    ]
    made = result_table(whole.model_copy(update={"experiments": (one, *others)}))
    assert made.notes[-2:] == ("the energy is modelled", "batch_size=1, batch_size=8: few samples")


def test_a_campaign_without_results_has_no_figures_at_all() -> None:
    made = result_table(campaign_results(verdict=None, energy_method=None, metrics=(), findings=()))
    assert set(made.rows[0][2:]) == {"–"}


def test_markdown_cannot_be_broken_by_a_name() -> None:
    text = markdown.render(campaign_results(display_name="x|y<script>"))
    assert text.startswith("### a\\|b\n")
    assert "| x\\|y&lt;script> |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_csv_keeps_full_precision_and_reasons_and_runs_nothing() -> None:
    rows = list(DictReader(io.StringIO(csv.render(campaign_results(display_name="=1+1")))))
    assert [(row["metric"], row["mean"], row["n"], row["reason"]) for row in rows] == [
        ("efficiency.energy_per_output_token_j", "0.0123", "1", ""),
        ("speed.output_rate_tok_s", "20.0", "1", ""),
        ("speed.ttft_ms.mean", "", "0", "no request has a first token"),
    ]
    assert rows[0]["experiment"] == "'=1+1"


# --- progress ---------------------------------------------------------------------------------------------------------


def transition(target: RunState, **values: str) -> RunTransitionEvent:
    return RunTransitionEvent(
        run_id=f"run_{'1' * 32}",
        display_name="batch_size=8",
        cycle=1,
        source=RunState.QUEUED,
        target=target,
        at=AT,
        reason=values.get("reason"),
        message=values.get("message"),
    )


def progress(tokens: int) -> RunProgressEvent:
    now = Progress(phase="measure", requests_done=2, generated_tokens=tokens, fraction=0.4, output_rate_tok_s=61.25)
    return RunProgressEvent(
        run_id=f"run_{'1' * 32}", attempt_id=f"att_{'1' * 32}", display_name="batch_size=8", cycle=1, progress=now
    )


def test_a_transition_is_a_line_with_its_reason() -> None:
    line = transition_line(transition(RunState.FAILED, reason="out_of_memory", message="lower the batch size"))
    assert line.endswith("batch_size=8, cycle 1: failed (was queued): out_of_memory – lower the batch size")


def test_progress_is_a_line_every_ten_seconds_at_most() -> None:
    now = 0.0
    lines = EventLines(lambda: now)
    assert [line.strip() for line in lines.of(progress(1))] == [
        "batch_size=8, cycle 1: measure 40%, 2 requests, 1 tokens, 61.2 tok/s"
    ]
    now = 9.9
    assert list(lines.of(progress(2))) == []
    now = 10.0
    assert len(list(lines.of(progress(3)))) == 1


def test_an_aggregation_is_a_line_every_ten_seconds_at_most() -> None:
    lines = EventLines(lambda: 0.0)
    assert list(lines.of(AggregationEvent(total=8, done=3, failed=1))) == ["aggregated 3 of 8 runs"]
    assert list(lines.of(AggregationEvent(total=8, done=4, failed=1))) == []


def test_the_picture_holds_the_runs_that_are_busy() -> None:
    picture = CampaignPicture()
    picture.apply(transition(RunState.INITIALISED))
    picture.apply(progress(64))
    (live,) = picture.live_runs.values()
    assert live.cells() == ("batch_size=8", "1", "measure", "40%", "2", "64", "61.2", "–")
    picture.apply(transition(RunState.COMPLETED))
    assert not picture.live_runs


# --- explanations -----------------------------------------------------------------------------------------------------


SAMPLES = [number * 0.05 for number in range(260)]


def measured_run(*devices: Device) -> Evidence:
    """A window of ten seconds."""
    evidence = Evidence(devices=devices)
    evidence.request(0, 1.0, [2.0, 11.0])
    return evidence


def energy_of(evidence: Evidence) -> EnergyResult:
    stored = evidence.stored()
    return aggregate(stored.inputs, stored.source).energy


def test_an_energy_is_explained_in_words() -> None:
    integrated = EnergyFigure(
        joules=12.34, method=EnergyMethod.INTEGRATED, source="nvml", bound_j=0.4, sensor_bound_j=0.3
    )
    shown = energy_report.energy(integrated, samples=41)
    assert shown.startswith("12.3 J, integrated from power samples, source nvml (41 samples in the window), ")
    assert "± 400 mJ (3.2 %)" in shown and shown.endswith("if the sensor meets its specification")
    counted = EnergyFigure(joules=12.34, method=EnergyMethod.COUNTER, source="rapl", bound_j=0.4)
    assert "source rapl" in energy_report.energy(counted) and "sensor" not in energy_report.energy(counted)
    modelled = EnergyFigure(joules=3.0, method=EnergyMethod.MODELLED, source="codecarbon")
    assert "not measured, source codecarbon" in energy_report.energy(modelled)
    assert "±" not in energy_report.energy(modelled)
    net = EnergyFigure(joules=-2.0, method=EnergyMethod.COUNTER, source="nvml", bound_j=1.0)
    assert "within ± 1.00 J (50 %)" in energy_report.energy(net)
    assert energy_report.energy(EnergyFigure(joules=None, reason="no source")) == "– (no source)"


def test_the_explanation_of_a_counted_energy_separates_the_sensor_from_the_readings() -> None:
    evidence = measured_run(gpu(0))
    evidence.power(SAMPLES, joules=lambda t: 100 * t)
    method, bound = energy_report.explanation(energy_of(evidence))
    assert "counter" in method
    assert "± 125 J (12 %)" in bound and "65.0 J by a factor of the sensor (± 6.5 %)" in bound
    assert "50.0 J by its offset (± 5.00 W)" in bound and "10.0 J by sampling" in bound and "SC24" in bound


def test_a_sum_of_two_kinds_of_figures_says_which_part_is_which() -> None:
    evidence = measured_run(gpu(0), gpu(1))
    evidence.power(SAMPLES, joules=lambda t: 100 * t, device=0)
    evidence.power(SAMPLES, watts=lambda _: 100, device=1)
    counted, integrated, bound = energy_report.explanation(energy_of(evidence))
    assert counted.startswith("GPU-0: ") and "counter" in counted
    assert integrated.startswith("GPU-1: ") and "every 50.0 ms" in integrated
    assert "50.0 J" not in bound and "100 J by its offset" in bound


def test_a_meter_of_unknown_quality_a_model_and_nothing_at_all_say_so() -> None:
    evidence = measured_run(cpu())
    evidence.host_power("package-0", SAMPLES, joules=lambda t: 30 * t, method="counter")
    assert energy_report.explanation(energy_of(evidence))[-1].endswith("by sampling")
    evidence = measured_run(cpu())
    evidence.host_power("package", SAMPLES, joules=lambda t: 30 * t, method="modelled")
    method, bound = energy_report.explanation(energy_of(evidence))
    assert "model" in method and "unknown" in bound
    nothing = energy_of(measured_run(gpu(0)))
    assert energy_report.explanation(nothing) == [f"no figure: {nothing.total.reason}"]


def test_checks_that_passed_are_counted_and_the_others_reported() -> None:
    evidence = measured_run(gpu(0))
    evidence.power(SAMPLES, joules=lambda t: 100 * t)
    stored = evidence.stored()
    found = aggregate(stored.inputs, stored.source).checks
    engine, processes = (one for one in found if one.passed is None)
    assert energy_report.checks(found) == [
        "6 of 8 checks of the evidence passed",
        f"one engine version: not possible, {engine.detail}",
        f"no foreign process: not possible, {processes.detail}",
    ]
    wrong = [one.model_copy(update={"passed": False, "detail": "in pieces"}) for one in found[:1]]
    assert energy_report.checks(wrong)[1] == "processes present: FAILED, in pieces"
    assert energy_report.checks(()) == []


def test_what_the_host_took_next_to_the_devices_is_reported() -> None:
    evidence = measured_run(gpu(0))
    evidence.power(SAMPLES, joules=lambda t: 100 * t)
    assert energy_report.sums(energy_of(evidence)) == []
    evidence.host_power("package-0", SAMPLES, joules=lambda t: 30 * t, method="counter")
    evidence.host_power("dram-0", SAMPLES, joules=lambda t: 5 * t, method="counter")
    lines = energy_report.sums(energy_of(evidence))
    assert [line.split("  ")[1] for line in lines] == ["CPU in all", "memory in all", "with the host"]
    assert lines[-1].split()[3:5] == ["1.35", "kJ,"]
    assert any(
        line.startswith("  the CPU package (package-0): 300 J") for line in energy_report.parts(energy_of(evidence))
    )


def test_energy_per_token_is_as_uncertain_as_the_energy() -> None:
    total = EnergyFigure(joules=100.0, method=EnergyMethod.COUNTER, source="nvml", bound_j=5.0)
    each = Figure(value=2.0, unit="J")
    assert energy_report.ratio(each, total) == "2.00 J ± 100 mJ"
    assert energy_report.ratio(each, total.model_copy(update={"bound_j": None})) == "2.00 J"
    assert energy_report.ratio(Figure(value=None, unit="J", reason="no token"), total) == "– (no token)"


def test_text_from_elsewhere_cannot_drive_the_terminal() -> None:
    assert clean("a\x1b[31mb\rc\nd") == "a�[31mb�c\nd"


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        ({}, "interleaved; all on the device of the first run"),
        (
            {"order": "shuffled", "config_gap": {"seconds": 60}, "placement": "any", "fail_fast": True},
            "shuffled (seed 0); gaps: 60 s between experiments; on any device; ends with the first run that fails",
        ),
        (
            {"order": "latin_square", "seed": 7, "cycle_gap": {"temperature_c": 45, "max_seconds": 300}},
            "latin_square (seed 7); gaps: until 45 °C, at most 300 s between cycles; "
            "all on the device of the first run",
        ),
    ],
)
def test_an_order_is_reported_with_its_seed_gaps_and_place(execution: dict[str, object], words: str) -> None:
    assert execution_summary(ExecutionConfig.model_validate(execution)) == words
