"""The experiments over their cycles: one row per experiment and metric, as the summary of a metric has parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lem_domain.results.metrics import METRICS
from lem_domain.results.run import CycleSummary
from lem_domain.states import RunState
from lem_domain.wire.campaigns import ExperimentResults
from lem_server.decisions.intervals import mean_estimate
from lem_server.exports.table_columns import Column
from lem_server.exports.tables import ExperimentTable

_BETTER = {metric.name: metric.better.value for metric in METRICS}


def _read(one: ExperimentResults, config_hash: str) -> Sequence[dict[str, Any]]:
    aggregated = sum(outcome.state is RunState.AGGREGATED for outcome in one.outcomes)
    shared = {
        "verdict": one.verdict,
        "method": one.method,
        "energy_method": one.energy_method,
        "energy_includes": ", ".join(one.energy_includes) or None,
        "cycles": len(one.outcomes),
        "aggregated_cycles": aggregated,
    }
    return [shared | _summary(metric, config_hash) for metric in one.metrics]


def _summary(metric: CycleSummary, config_hash: str) -> dict[str, Any]:
    estimate = mean_estimate(metric.values, config_hash)
    interval = estimate.interval
    return {
        "metric": metric.metric,
        "unit": metric.unit,
        "better": _BETTER.get(metric.metric),
        "n": len(metric.values),
        "mean": metric.mean,
        "sd": metric.sd,
        "cv": metric.cv,
        "interval_low": None if interval is None else interval.low,
        "interval_high": None if interval is None else interval.high,
        "interval_method": estimate.interval_method,
        "interval_reason": estimate.reason,
        "reason": metric.reason,
    }


TABLE = ExperimentTable(
    "a metric of an experiment, over its cycles",
    (
        Column("verdict", "string", None, "The worst verdict of its cycles; null without a result."),
        Column("method", "string", None, "Version of the formulas; mixed where cycles differ."),
        Column("energy_method", "string", None, "Method of the energy figures; mixed where cycles differ."),
        Column("energy_includes", "string", None, "The parts of energy.total."),
        Column("cycles", "int64", None, "Its runs."),
        Column("aggregated_cycles", "int64", None, "Those that have a result."),
        Column("metric", "string", None, "Name of the metric."),
        Column("unit", "string", None, "Unit of mean and sd."),
        Column("better", "string", None, "Which direction is better: lower, higher or neutral."),
        Column("n", "int64", None, "Cycles that have the figure."),
        Column("mean", "float64", None, "Mean over the cycles, in `unit`."),
        Column("sd", "float64", None, "Sample standard deviation, in `unit`; null below two values."),
        Column("cv", "float64", None, "sd / mean."),
        Column("interval_low", "float64", None, "Lower end of the mean's 95 % interval over cycles, in `unit`."),
        Column("interval_high", "float64", None, "Its upper end, in `unit`."),
        Column("interval_method", "string", None, "student_t, or bca from 10 cycles on."),
        Column("interval_reason", "string", None, "Why there is no interval."),
        Column("reason", "string", None, "Why there is no value."),
    ),
    _read,
)
