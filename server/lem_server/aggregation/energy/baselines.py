"""Power without requests, and the energy of the window above it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lem_domain.results.energy import Baseline, BaselineContext, PartPower
from lem_domain.results.figures import BoundParts, EnergyFigure, EnergyMethod, Figure
from lem_domain.results.method import DEFAULT_METHOD, MethodVersion
from lem_server.aggregation.energy.bounds import bound_j, sensor_bound_j
from lem_server.aggregation.energy.meters import BoundedMeter, Meter, sum_or_none
from lem_server.aggregation.energy.sampler_record import BaselineSpan, ReusedBaseline, SamplerRecord
from lem_server.aggregation.energy.traces import FloatArray, Interval, Span
from lem_server.aggregation.evidence_reader import NULL
from lem_server.aggregation.linear_trend import standard_error, student_t

_SECOND_NS = 1_000_000_000
_FEWEST_SECONDS = 3


def baseline_results(record: SamplerRecord, meters: Mapping[str, Meter], parts: Sequence[str]) -> tuple[Baseline, ...]:
    """Return every recorded baseline; `parts` are the parts of the job's energy."""
    contexts: tuple[BaselineContext, ...] = ("idle", "ready", "ready_after")
    found: list[Baseline] = []
    for context in contexts:
        if context in record.baselines:
            found.append(_measured(context, record.baselines[context], meters, parts))
        elif context == "idle" and record.reused is not None:
            found.append(_from_earlier(record.reused, meters, parts))
    return tuple(found)


def net_energy(
    total: EnergyFigure,
    baselines: Sequence[Baseline],
    record: SamplerRecord,
    window: Interval,
    *,
    enabled: bool,
    method: MethodVersion = DEFAULT_METHOD,
) -> EnergyFigure:
    """Return gross - P_ready x window (docs/measurement.md, Energy), never clamped.

    Bound: the gross energy's, plus, over the window, the baseline's bound, the half-width of the 95 % interval of its
    mean (Student t over means of one second), and the difference of the two ready baselines: if the power without
    requests moved in one direction, it was between them during the window. None if one of these is missing. Under `m2`
    the sensors' factor applies to the difference, and their offset counts once (see `_net_parts`).
    """
    if total.joules is None:
        return EnergyFigure(joules=None, source=total.source, reason=total.reason)
    by_context = {baseline.context: baseline for baseline in baselines}
    ready, after = by_context.get("ready"), by_context.get("ready_after")
    obstacle = "baselines were switched off (baseline.enabled)" if not enabled else _obstacle(ready, record, window)
    if method is not MethodVersion.M1 and total.method is EnergyMethod.MODELLED:
        obstacle = "the energy is modelled, and a model's power without requests is none that was measured"
    if obstacle is not None or ready is None or ready.mean_power_w.value is None:
        return EnergyFigure(joules=None, reason=obstacle)
    power = ready.mean_power_w.value
    joules = total.joules - power * window.duration_s
    bound = sensor_j = None
    parts = _net_parts(total, ready, after, power, window)
    if parts is not None:
        bound = bound_j(parts, joules, window.duration_s)
        sensor_j = sensor_bound_j(parts, joules, window.duration_s)
    elif total.bound_j is not None and ready.bound_w is not None and ready.standard_error_w is not None:
        seconds = int(ready.duration_s or 0)
        spread = student_t(seconds - 1) * ready.standard_error_w
        bound = total.bound_j + (ready.bound_w + spread + _drift_w(after, power)) * window.duration_s
        if total.sensor_bound_j is not None and ready.sensor_bound_w is not None:
            sensor_j = total.sensor_bound_j + ready.sensor_bound_w * window.duration_s
    return EnergyFigure(
        joules=joules,
        method=total.method,
        source=total.source,
        bound_j=bound,
        sensor_bound_j=sensor_j,
        bound_parts=parts,
    )


def _obstacle(ready: Baseline | None, record: SamplerRecord, window: Interval) -> str | None:
    """Return why there is no power without requests to subtract."""
    if ready is None:
        return "no ready baseline was recorded before the window"
    if record.baselines["ready"].span.end_ns > window.begin_ns:
        return "the ready baseline reaches into the window"
    if ready.mean_power_w.value is None:
        return f"the ready baseline has no power: {ready.mean_power_w.reason}"
    return None


def _net_parts(
    total: EnergyFigure, ready: Baseline, after: Baseline | None, power_w: float, window: Interval
) -> BoundParts | None:
    """Return the parts of the net energy's bound (`m2`); None if one is missing.

    The same sensors read both: their factor applies to the difference, and their offset, of which at least a part
    cancels, counts once.
    """
    parts = total.bound_parts
    if parts is None or ready.bound_w is None or ready.standard_error_w is None:
        return None
    spread_w = student_t(int(ready.duration_s or 0) - 1) * ready.standard_error_w
    open_w = ready.bound_w - (ready.sensor_bound_w or 0.0) + spread_w + _drift_w(after, power_w)
    return parts.model_copy(update={"sampling_j": parts.sampling_j + open_w * window.duration_s})


def _drift_w(after: Baseline | None, power_w: float) -> float:
    if after is None or after.mean_power_w.value is None:
        return 0.0
    return abs(after.mean_power_w.value - power_w)


def _measured(
    context: BaselineContext, measured: BaselineSpan, meters: Mapping[str, Meter], parts: Sequence[str]
) -> Baseline:
    powers: dict[str, PartPower] = {}
    sensors_w: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for part, meter in meters.items():
        span = _within(measured.span, meter)
        energy = meter.energy(span) if span else EnergyFigure(joules=None, reason="there are no samples in it")
        if energy.joules is None or span is None:
            reasons[part] = energy.reason or ""
            continue
        bound_w, sensors_w[part] = (
            None if joules is None else joules / span.duration_s for joules in (energy.bound_j, energy.sensor_bound_j)
        )
        powers[part] = PartPower(part=part, mean_power_w=energy.joules / span.duration_s, bound_w=bound_w)
    lacking = "; ".join(f"{part}: {reasons.get(part, 'it was not sampled')}" for part in parts if part not in powers)
    whole = bool(parts) and not lacking
    return Baseline(
        context=context,
        duration_s=measured.span.duration_s,
        parts=tuple(powers.values()),
        mean_power_w=_sum_w(powers, parts, lacking),
        bound_w=sum_or_none([powers[part].bound_w for part in parts]) if whole else None,
        sensor_bound_w=sum_or_none([sensors_w[part] for part in parts]) if whole else None,
        standard_error_w=_spread_w(measured.span, [meters[part] for part in parts if part in meters]),
        stationary=measured.stationary,
    )


def _from_earlier(reused: ReusedBaseline, meters: Mapping[str, Meter], parts: Sequence[str]) -> Baseline:
    powers: dict[str, PartPower] = {}
    for part, watts in sorted(reused.parts_w.items()):
        meter = meters.get(part)  # the worker reuses what its readings showed
        true_w = meter.sensor.corrected_w(watts) if isinstance(meter, BoundedMeter) else watts
        powers[part] = PartPower(part=part, mean_power_w=true_w)
    lacking = "; ".join(f"{part}: the earlier attempt has no value" for part in parts if part not in powers)
    return Baseline(
        context="idle",
        duration_s=None,
        parts=tuple(powers.values()),
        mean_power_w=_sum_w(powers, parts, lacking),
        age_s=reused.age_s,
        taken_by=reused.taken_by,
    )


def _sum_w(powers: Mapping[str, PartPower], parts: Sequence[str], lacking: str) -> Figure:
    if not parts or lacking:
        return Figure(value=None, unit="W", reason=lacking or "nothing measured energy")
    return Figure(value=math.fsum(powers[part].mean_power_w for part in parts), unit="W")


def _within(span: Span, meter: Meter) -> Span | None:
    """Return the part of the span that the samples cover, so that the sampler's first second is used as well."""
    trace = meter.trace
    times = trace.times_ns[(trace.counts != NULL) | (trace.power_mw != NULL)]
    inside = times[(times >= span.begin_ns) & (times <= span.end_ns)]
    if len(inside) < 2:
        return None
    begin = span.begin_ns if times[0] <= span.begin_ns else int(inside[0])
    end = span.end_ns if times[-1] >= span.end_ns else int(inside[-1])
    return Span(begin, end)


def _spread_w(span: Span, meters: Sequence[Meter]) -> float | None:
    """Return the standard error of the mean power from means over successive seconds.

    Successive readings of a sensor are correlated; means over batches of them hardly are (batch means, Conway 1963).
    """
    seconds = int(span.duration_s)
    if seconds < _FEWEST_SECONDS or not meters:
        return None
    edges = span.begin_ns + np.arange(seconds + 1, dtype=np.int64) * _SECOND_NS
    watts: FloatArray = np.zeros(seconds)
    for meter in meters:
        powers = meter.powers_w(edges)
        if powers is None:
            return None
        watts = watts + powers
    return standard_error(watts)
