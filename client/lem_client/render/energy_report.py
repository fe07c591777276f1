"""Text for a run's energy: figures with bounds, method, baselines, phases, devices and the sampler's own load."""

from __future__ import annotations

from collections.abc import Sequence

from lem_client.render.numbers import MISSING, duration, number, quantity
from lem_domain.results.energy import Baseline, DeviceEnergy, EnergyResult, HostEnergy, PhaseSplit, PrefillProbe
from lem_domain.results.figures import BoundParts, Distribution, EnergyFigure, EnergyMethod, Figure
from lem_domain.results.run import (
    Check,
    ComputeResult,
    DeviceTelemetry,
    FootprintResult,
    QualityResult,
    TelemetryResult,
)

_METHODS = {
    EnergyMethod.COUNTER: "read from its own energy counter",
    EnergyMethod.INTEGRATED: "integrated from power samples",
    EnergyMethod.MODELLED: "estimated by a model, not measured",
}
_EXPLANATIONS = {
    EnergyMethod.COUNTER: "a hardware counter, read at the start and the end of the measured window",
    EnergyMethod.INTEGRATED: "power samples{often}, integrated over the measured window; bursts shorter than "
    "the period and in step with it are not seen",
    EnergyMethod.MODELLED: "not measured; a model estimated it from load and rated power",
}
_DOMAINS = {"package": "the CPU package", "dram": "the memory"}
"""RAPL numbers them: package-0."""
_CONTEXTS = {
    "idle": "before the engine started",
    "ready": "engine loaded, no request",
    "ready_after": "the same after the window",
}


def energy(figure: EnergyFigure, *, samples: int | None = None) -> str:
    """`12.3 J, integrated from power samples, source nvml (412 samples in the window), true within ± 0.4 J …`."""
    if figure.joules is None or figure.method is None:
        return f"{MISSING} ({figure.reason})"
    counted = "" if samples is None else f" ({samples} samples in the window)"
    source = f", source {figure.source}" if figure.source else ""
    if figure.bound_j is not None:
        bound = f", true within ± {quantity(figure.bound_j, 'J')}{_share(figure)}"
        if figure.sensor_bound_j is None:
            bound += " by the sampling alone"
        elif figure.bound_parts is None:
            bound += " if the sensor meets its specification"
    else:
        bound = ", with no stated bound" + (f" ({figure.bound_reason})" if figure.bound_reason else "")
    return f"{quantity(figure.joules, 'J')}, {_METHODS[figure.method]}{source}{counted}{bound}"


def explanation(result: EnergyResult) -> list[str]:
    """Return sentences: the method of each part of the job's energy, then the bound of the total."""
    total = result.total
    if total.joules is None or total.method is None:
        return [f"no figure: {total.reason or 'no reason is recorded'}"]
    every: dict[str, DeviceEnergy | HostEnergy] = {one.uuid: one for one in result.devices}
    every |= {one.domain: one for one in result.host}
    by_method: dict[EnergyMethod, list[str]] = {}
    for name in result.includes:
        if name in every and (method := every[name].energy.method) is not None:
            by_method.setdefault(method, []).append(name)
    sentences = []
    for method, names in by_method.items():
        periods = [one.value for name in names if (one := every[name].sampling_period_ms).value is not None]
        often = f" every {number(max(periods))} ms" if periods else ""
        of = "" if len(by_method) == 1 else f"{', '.join(part_name(name) for name in names)}: "
        sentences.append(of + _EXPLANATIONS[method].format(often=often))
    return [*sentences, _bound(total)]


def _bound(total: EnergyFigure) -> str:
    if total.bound_j is None:
        return "the error is unknown"
    away = f"{quantity(total.bound_j, 'J')}{_share(total)}"
    if total.bound_parts is not None:
        return f"the error is at most ± {away}: {', '.join(_bound_parts(total, total.bound_parts))}"
    if total.sensor_bound_j is None:
        return f"the error from sampling is at most ± {away}; the error of the sensor is not stated"
    return (
        f"the error is at most ± {away}: {quantity(total.sensor_bound_j, 'J')} by the sensor's specification, the rest "
        f"from sampling"
    )


def _bound_parts(total: EnergyFigure, parts: BoundParts) -> list[str]:
    """Return the parts of a bound in words, those that are zero left out."""
    if parts.sensor_gain is None or total.sensor_bound_j is None:
        named = ["the error of the sensor is not published"]
    else:
        gain_j = parts.sensor_gain * abs(total.joules or 0.0)
        named = [
            f"{quantity(gain_j, 'J')} by a factor of the sensor (± {number(100 * parts.sensor_gain, 2)} %)",
            f"{quantity(total.sensor_bound_j - gain_j, 'J')} by its offset (± {quantity(parts.sensor_offset_w, 'W')})",
        ]
    for joules, words in (
        (parts.sampling_j, "by sampling"),
        (parts.coverage_j, "by the time that the sensor does not see"),
        (parts.disagreement_j, "because counter and integral differ"),
    ):
        named += [f"{quantity(joules, 'J')} {words}"] if joules else []
    return [*named, f"source of the sensor's error: {parts.calibration}"] if parts.calibration else named


def constant(result: EnergyResult) -> list[str]:
    """Return lines for the constants of a model and for the rest; none where no part is such a constant."""
    total, whole = result.total.joules, result.constant.joules
    if not total or whole is None:
        return []
    of = ", ".join(part_name(name) for name in result.constant_includes)
    return [
        f"  constant           {quantity(whole, 'J')} of {quantity(total, 'J')} ({whole / total:.0%}): {of}, "
        "by what is installed and whatever the load",
        f"  the rest           {energy(result.without_constant)}",
    ]


def sums(result: EnergyResult) -> list[str]:
    """Return lines for the host's CPU and memory, and for the total with the host."""
    if result.gpu.joules is None:
        return []
    lines = [
        f"  {name}  {energy(one)}"
        for name, one in (("CPU in all        ", result.cpu), ("memory in all     ", result.dram))
        if one.joules is not None
    ]
    if len(result.measured_includes) > len(result.includes):
        lines.append(f"  with the host      {energy(result.measured_total)}")
    return lines


def checks(made: Sequence[Check]) -> list[str]:
    """Return the number of passed checks, and a line for each other check."""
    if not made:
        return []
    others = [one for one in made if not one.passed]
    lines = [f"{len(made) - len(others)} of {len(made)} checks of the evidence passed"]
    for one in others:
        outcome = "not possible" if one.passed is None else "FAILED"
        lines.append(f"{one.name.value.replace('_', ' ')}: {outcome}, {one.detail}")
    return lines


def ratio(one: Figure, of: EnergyFigure) -> str:
    """`6.03 J ± 51 mJ`: energy per unit of work. Counts are exact, so its relative bound is that of the energy."""
    if one.value is None or of.bound_j is None or not of.joules:
        return figure(one)
    return f"{figure(one)} ± {quantity(abs(one.value * of.bound_j / of.joules), one.unit, 2)}"


def parts(result: EnergyResult) -> list[str]:
    """Return lines per device and RAPL domain; a device with a counter also has the integral of its power."""
    lines = []
    for device in result.devices:
        lines.append(f"  device {device.uuid}: {energy(device.energy, samples=device.samples)}")
        if device.counter_period_ms.value is not None:
            lines.append(f"    its counter is updated every {figure(device.counter_period_ms)}")
        if device.counter_reason is not None:
            lines.append(f"    its counter is not the figure: {device.counter_reason}")
        for one in device.refused:
            kind = one.kind.value.replace("_", " ")
            lines.append(f"    in no figure: {kind}, {one.occurrences} ×, at most for {duration(one.longest_s)}")
        if device.integrated is not None and device.integrated.joules is not None:
            apart = f" ({device.integrated.joules / device.energy.joules - 1:+.1%})" if device.energy.joules else ""
            lines.append(f"    integral of its power, for comparison: {quantity(device.integrated.joules, 'J')}{apart}")
    lines += [f"  {part_name(part.domain)}: {energy(part.energy, samples=part.samples)}" for part in result.host]
    return lines


def net_of_baseline(result: EnergyResult) -> list[str]:
    """Return the energy above the ready baseline, and the baselines."""
    lines = [f"  net of the ready baseline  {energy(result.net)}"]
    return lines + [f"  {_baseline(one)}" for one in result.baselines]


def phases(split: PhaseSplit) -> list[str]:
    """Return lines for prefill and decode in the window."""
    how = ", from the probe" if split.method == "probe" else ""
    return [
        f"  {name}  {energy(phase.energy)}"
        + ("" if phase.time_s.value is None else f", in {figure(phase.time_s)}")
        + ("" if phase.energy.joules is None else how)
        for name, phase in (("prefill", split.prefill), ("decode ", split.decode))
    ]


def probe(one: PrefillProbe | None) -> list[str]:
    """Return lines for the window of the prefill probe."""
    if one is None:
        return []
    tokens = f"{one.requests} requests and {one.prompt_tokens} prompt tokens in {duration(one.duration_s)}"
    return [
        f"  probe of prefill   {energy(one.energy)}, {tokens}",
        f"    that is, prefill {energy(one.prefill)}",
        f"    and decode       {energy(one.decode)}",
    ]


def footprint(one: FootprintResult) -> list[str]:
    """Return lines for carbon and cost with their sources."""
    lines = []
    for name, whole, each, origin in (
        ("carbon", one.carbon, one.carbon_per_output_token, one.carbon_from),
        ("cost  ", one.cost, one.cost_per_output_token, one.cost_from),
    ):
        lines.append(
            f"  {name}  {figure(whole)}" + ("" if each.value is None else f", {figure(each)} per output token")
        )
        if origin is not None:
            lines.append(f"    from  {origin}")
    return lines


def quality(one: QualityResult) -> list[str]:
    """Return the line for perplexity on the held-out text."""
    on = "" if one.text is None else f" over {one.tokens} tokens of the text {one.text}"
    return [f"  perplexity  {figure(one.perplexity)}{on}"]


def compute(one: ComputeResult) -> list[str]:
    """Return lines for the estimated operations and their share of the device's peak."""
    peak = "" if one.peak_source is None else f" (peak: {one.peak_source})"
    share = percent(one.mfu, 1, peak)
    return [f"  operations  {figure(one.flops)}, estimated from the model's shape", f"  MFU         {share}"]


def telemetry(one: TelemetryResult) -> list[str]:
    """Return lines for devices, memory and the sampler's own load."""
    lines = [line for device in one.devices for line in _device(device)]
    lines += [
        f"  {process.process}: at most {figure(process.rss_peak_mb)} of memory, "
        f"on the device {figure(process.device_peak_mb)}"
        + ("" if process.kv_cache_peak.value is None else f", {process.kv_cache_peak.value:.1%} of the KV cache")
        for process in one.processes
    ]
    if one.sampler is not None:
        late = percent(one.sampler.late_or_missed, 1, " of its ticks late or missed")
        lines.append(f"  sampler: {percent(one.sampler.cpu_share, 2, ' of a core')}, {late}")
    return lines


def figure(one: Figure) -> str:
    """Format a value with its unit, or the reason for a missing one."""
    return f"{MISSING} ({one.reason})" if one.value is None else quantity(one.value, one.unit)


def percent(one: Figure, digits: int, of: str) -> str:
    """Format a fraction in percent of something, or the reason for a missing one."""
    return f"{MISSING} ({one.reason})" if one.value is None else f"{one.value:.{digits}%}{of}"


def distribution(one: Distribution) -> str:
    """`mean 12 ms (sd 1.3), min …`."""
    if one.mean is None:
        return f"{MISSING} ({one.reason})"
    return (
        f"mean {number(one.mean)} {one.unit} (sd {number(one.sd)}), min {number(one.min)}, p50 {number(one.p50)}, "
        f"p90 {number(one.p90)}, p95 {number(one.p95)}, p99 {number(one.p99)}, max {number(one.max)} (n = {one.count})"
    )


def part_name(name: str) -> str:
    """Name a RAPL domain in plain text, a device by its UUID."""
    kind = _DOMAINS.get(name.partition("-")[0])
    return name if kind is None else f"{kind} ({name})"


def _share(figure: EnergyFigure) -> str:
    """Format the bound in percent of the figure."""
    if not figure.joules or figure.bound_j is None:
        return ""
    return f" ({number(100 * figure.bound_j / abs(figure.joules), 2)} %)"


def _baseline(one: Baseline) -> str:
    text = f"{one.context.replace('_', ' ')} baseline ({_CONTEXTS[one.context]}): {figure(one.mean_power_w)}"
    if one.mean_power_w.value is None:
        return text
    if one.bound_w is not None:
        text += f" ± {quantity(one.bound_w, 'W')}"
    if one.age_s is not None:
        return f"{text}, measured {duration(one.age_s)} before by attempt {one.taken_by}"
    if one.duration_s is not None:
        text += f" over {duration(one.duration_s)}"
    return text + ("" if one.stationary is None else ", steady" if one.stationary else ", not steady")


def _device(one: DeviceTelemetry) -> list[str]:
    if one.throttled is None:
        slowed = "whether it throttled is not known"
    elif not one.throttled:
        slowed = "never throttled"
    else:
        slowed = "throttled: " + ", ".join(f"{reason} {share:.0%}" for reason, share in one.throttled.items())
    return [
        f"  device {one.uuid}: {figure(one.temperature_mean_c)}, at most {figure(one.temperature_max_c)}; "
        f"SM clock {figure(one.sm_clock_mean_mhz)}, memory clock {figure(one.memory_clock_mean_mhz)}; {slowed}",
        f"    utilisation {figure(one.gpu_utilisation_mean_percent)}, at most {figure(one.memory_peak_mb)} of memory "
        "in use by all processes",
    ]
