"""The runs of a campaign in any state, with every metric of their results.

One row per run with a column per metric, not one per run and metric: most questions are about metrics of the same run,
and a column has one unit, which its name states.
"""

from __future__ import annotations

from typing import Any

from lem_domain.results.figures import Distribution, EnergyFigure
from lem_domain.results.metrics import METRICS, Metric, field_of
from lem_domain.results.run import RunResult
from lem_domain.states import RunState
from lem_server.exports.table_columns import Column
from lem_server.exports.table_queries import TableRun
from lem_server.exports.tables import RunTable

_ENDED_WITHOUT = (RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED)
_OF_DISTRIBUTIONS = {
    "sd": "Sample standard deviation",
    "min": "Least",
    "p50": "Median",
    "p90": "90th percentile",
    "p95": "95th percentile",
    "p99": "99th percentile",
    "max": "Largest",
}
"""Fields of a distribution other than its mean, which is the metric."""


def _base(metric: Metric) -> str:
    """Return the metric's name without the suffix `_j`."""
    return metric.name.removesuffix("_j") if metric.unit == "J" else metric.name


def _column_name(metric: Metric) -> str:
    """Return the metric's name, with its unit at the end if that is joules."""
    return f"{_base(metric)}_j" if metric.unit == "J" else metric.name


def _bound_name(metric: Metric) -> str:
    return f"{_base(metric)}_bound_j"


def _has_bound(metric: Metric) -> bool:
    return metric.unit == "J" and (metric.per_energy is not None or metric.name.startswith("energy."))


def _columns_of(metric: Metric) -> list[Column]:
    columns = [Column(_column_name(metric), "float64", metric.unit, f"{metric.definition}.")]
    if _has_bound(metric):
        columns.append(
            Column(_bound_name(metric), "float64", metric.unit, "Bound of the error; null if it is not known.")
        )
    if metric.distribution is not None:
        columns += [
            Column(f"{metric.distribution}.{field}", "float64", metric.unit, f"{what} of the same values.")
            for field, what in _OF_DISTRIBUTIONS.items()
        ]
    columns.append(Column(f"{_base(metric)}_reason", "string", None, "Why a result does not have it."))
    return columns


def _values_of(metric: Metric, result: RunResult) -> dict[str, Any]:
    read = metric.read(result)
    values: dict[str, Any] = {_column_name(metric): read.value, f"{_base(metric)}_reason": read.reason}
    if _has_bound(metric):
        values[_bound_name(metric)] = _bound_j(metric, result, read.value)
    if metric.distribution is not None:
        found = field_of(result, metric.distribution)
        if isinstance(found, Distribution):
            values |= {f"{metric.distribution}.{field}": getattr(found, field) for field in _OF_DISTRIBUTIONS}
    return values


def _bound_j(metric: Metric, result: RunResult, value: float | None) -> float | None:
    """Return an energy's bound; that of energy per unit of work is in proportion, since counts are exact."""
    energy = field_of(result, metric.per_energy or metric.name)
    if value is None or not isinstance(energy, EnergyFigure) or energy.bound_j is None:
        return None
    if metric.per_energy is None:
        return energy.bound_j
    return abs(value * energy.bound_j / energy.joules) if energy.joules else None


def _read(run: TableRun, result: RunResult | None) -> dict[str, Any]:
    ended = run.state in _ENDED_WITHOUT
    row: dict[str, Any] = {
        "config_hash": run.config_hash,
        "backend": run.backend,
        "model": run.model,
        "devices": ", ".join(str(one.get("uuid")) for one in run.devices) or None,
        "device_names": ", ".join(str(one.get("name")) for one in run.devices) or None,
        "attempts": run.attempts,
        "started_utc": run.started_at,
        "ended_utc": run.ended_at,
        "failure_reason": run.reason if ended else None,
        "failure_message": run.message if ended else None,
    }
    if result is not None:
        row |= {
            "method": result.method,
            "energy_method": result.energy.total.method,
            "energy_includes": ", ".join(result.energy.includes),
            "findings": ", ".join(dict.fromkeys(one.code.value for one in result.findings)) or None,
            "evidence_sha256": result.evidence_sha256,
            "requests": result.work.requests,
            "failed_requests": result.work.failed_requests,
            "prompt_tokens": result.work.prompt_tokens,
        }
        for metric in METRICS:
            row |= _values_of(metric, result)
    return row


TABLE = RunTable(
    "a run, in any state",
    (
        Column("config_hash", "string", None, "Digest of the experiment's resolved configuration."),
        Column("backend", "string", None, "The engine's backend."),
        Column("model", "string", None, "The model as configured."),
        Column("devices", "string", None, "UUIDs of the leased devices."),
        Column("device_names", "string", None, "Their names."),
        Column("attempts", "int64", None, "Attempts so far."),
        Column("started_utc", "utc", None, "When the current attempt started to measure."),
        Column("ended_utc", "utc", None, "When it ended."),
        Column("failure_reason", "string", None, "Why a failed, interrupted or cancelled run ended."),
        Column("failure_message", "string", None, "The same in one sentence."),
        Column("method", "string", None, "Version of the formulas of the result."),
        Column("energy_method", "string", None, "How energy.total was obtained: counter, integrated or modelled."),
        Column("energy_includes", "string", None, "The parts of energy.total."),
        Column("findings", "string", None, "Codes of the result's findings, each once; null without any."),
        Column("evidence_sha256", "string", None, "Digest over the evidence that the result was computed from."),
        Column("requests", "int64", "requests", "Requests of the window, failed ones too."),
        Column("failed_requests", "int64", "requests", "Requests with an error."),
        Column("prompt_tokens", "int64", "tokens", "Prompt tokens of finished requests."),
        *(column for metric in METRICS for column in _columns_of(metric)),
    ),
    _read,
)
