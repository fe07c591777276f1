"""Findings about energy: what it rests on, what contradicts it, and whether power stayed level."""

from __future__ import annotations

from collections.abc import Mapping

from lem_domain.config.experiment import ExperimentConfig
from lem_domain.results.run import (
    DeviceEnergy,
    EnergyMethod,
    EnergyResult,
    Finding,
    FindingCode,
    HostEnergy,
    Severity,
    WindowResult,
)
from lem_server.aggregation.energy.device_telemetry import late_share
from lem_server.aggregation.energy.sampler_record import SamplerRecord
from lem_server.aggregation.energy.traces import GAP_FACTOR, Gaps
from lem_server.aggregation.statistics import Trend

FEW_SAMPLES = 10
"""Fewer power samples in the window than this describe no mean."""
DISAGREEMENT = 0.05
DRIFT = 0.05
TREND = 0.05
LATE_TICKS = 0.05

_SHORT_TOLERANCE = 0.99
"""The worker ends its window by a clock reading of its own around the requests, so the two may differ slightly."""


def energy_unavailable(energy: EnergyResult, config: ExperimentConfig) -> tuple[Finding, ...]:
    """The job's energy is null; an error where the user required it."""
    if energy.total.joules is not None or not config.record.power:
        return ()
    return (
        Finding(
            code=FindingCode.ENERGY_UNAVAILABLE,
            severity=Severity.ERROR if config.energy.required else Severity.WARNING,
            message=f"There is no energy figure: {energy.total.reason}; `lemctl doctor` on the worker's machine says "
            "what can be read there.",
        ),
    )


def energy_modelled(energy: EnergyResult) -> tuple[Finding, ...]:
    """A part of the job's energy comes from a model, not from a meter."""
    if energy.total.method is not EnergyMethod.MODELLED:
        return ()
    parts = _parts(energy)
    modelled = [name for name in energy.includes if parts[name].energy.method is EnergyMethod.MODELLED]
    return (
        Finding(
            code=FindingCode.ENERGY_MODELLED,
            severity=Severity.WARNING,
            message=f"The energy of {', '.join(modelled)} is modelled, not measured, and has no error bound; use it to "
            "compare on one machine at most.",
            numbers={name: joules for name in modelled if (joules := parts[name].energy.joules) is not None},
        ),
    )


def short_window(window: WindowResult, energy: EnergyResult, config: ExperimentConfig) -> tuple[Finding, ...]:
    """The window is shorter than `window.min_duration_s`; the energy's bound says what that costs."""
    wanted = config.window.min_duration_s
    if window.duration_s >= wanted * _SHORT_TOLERANCE:
        return ()
    numbers = {"duration_s": window.duration_s, "min_duration_s": wanted}
    bound = energy.total.bound_j
    if bound is not None:
        numbers["bound_j"] = bound
    uncertain = f", which leaves the energy uncertain by {bound:.3g} J" if bound is not None else ""
    return (
        Finding(
            code=FindingCode.SHORT_WINDOW,
            severity=Severity.WARNING,
            message=f"The window lasted {window.duration_s:.2f} s where {wanted:g} s were asked for{uncertain}; "
            "send more or longer requests.",
            numbers=numbers,
        ),
    )


def few_samples(energy: EnergyResult) -> tuple[Finding, ...]:
    """A part of the job's energy rests on fewer than 10 samples in the window."""
    parts = _parts(energy)
    few = {name: parts[name].samples for name in energy.includes if parts[name].samples < FEW_SAMPLES}
    if not few:
        return ()
    listed = ", ".join(f"{name} on {count}" for name, count in few.items())
    return (
        Finding(
            code=FindingCode.FEW_SAMPLES,
            severity=Severity.WARNING,
            message=f"The energy rests on few samples in the window ({listed}; at least {FEW_SAMPLES} are needed); "
            "measure longer or lower energy.interval_ms.",
            numbers={name: float(count) for name, count in few.items()},
        ),
    )


def sampling_gaps(gaps: Mapping[str, Gaps], energy: EnergyResult) -> tuple[Finding, ...]:
    """No sample came for more than 5 usual intervals; harmless for a counter, not for an integral."""
    found = {name: gaps[name] for name in energy.includes if name in gaps}
    if not found:
        return ()
    parts = _parts(energy)
    counted = all(parts[name].energy.method is EnergyMethod.COUNTER for name in found)
    listed = ", ".join(f"{name}: {gap.number}, longest {gap.longest_s:.3g} s" for name, gap in found.items())
    consequence = "the counters kept counting" if counted else "what happened meanwhile is interpolated"
    return (
        Finding(
            code=FindingCode.SAMPLING_GAPS,
            severity=Severity.INFO if counted else Severity.WARNING,
            message=f"Power samples have gaps of more than {GAP_FACTOR} usual intervals ({listed}); {consequence}; "
            "keep other work off the machine.",
            numbers={f"{name}.longest_s": gap.longest_s for name, gap in found.items()},
        ),
    )


def sampler_overload(record: SamplerRecord, energy: EnergyResult) -> tuple[Finding, ...]:
    """More than 5 % of the sampler's ticks were late or did not come."""
    share = late_share(record)
    if share is None or share <= LATE_TICKS:
        return ()
    counted = energy.total.method is EnergyMethod.COUNTER
    return (
        Finding(
            code=FindingCode.SAMPLER_OVERLOAD,
            severity=Severity.INFO if counted else Severity.WARNING,
            message=f"{share:.0%} of the sampler's ticks were late or missed"
            f"{'; the counters kept counting' if counted else ''}; raise energy.interval_ms or leave the machine more "
            "processor time.",
            numbers={"late_or_missed": share},
        ),
    )


def sensor_disagreement(energy: EnergyResult) -> tuple[Finding, ...]:
    """A device's counter and the integral of its power differ by more than 5 %."""
    found: list[Finding] = []
    for device in energy.devices:
        counted, integrated = device.energy.joules, device.integrated.joules if device.integrated else None
        if not counted or integrated is None or abs(integrated - counted) <= DISAGREEMENT * abs(counted):
            continue
        found.append(
            Finding(
                code=FindingCode.SENSOR_DISAGREEMENT,
                severity=Severity.WARNING,
                message=f"The energy counter of {device.uuid} says {counted:.6g} J and the integral of its power "
                f"{integrated:.6g} J, {abs(integrated / counted - 1):.1%} apart; the counter is the figure. Measure "
                "longer; a sensor that looks at the chip only part of the time misses bursts.",
                numbers={f"{device.uuid}.counter_j": counted, f"{device.uuid}.integrated_j": integrated},
            )
        )
    return tuple(found)


def baseline_drift(energy: EnergyResult) -> tuple[Finding, ...]:
    """The power of the loaded engine at rest was another after the window than before, by more than 5 %."""
    watts = {baseline.context: baseline.mean_power_w.value for baseline in energy.baselines}
    before, after = watts.get("ready"), watts.get("ready_after")
    if not before or after is None or abs(after - before) <= DRIFT * abs(before):
        return ()
    return (
        Finding(
            code=FindingCode.BASELINE_DRIFT,
            severity=Severity.WARNING,
            message=f"At rest {before:.4g} W were drawn before the window and {after:.4g} W after it, "
            f"{abs(after / before - 1):.1%} apart, so the net energy is uncertain by as much; wait for a steady "
            "temperature (settle) or keep other work off the device.",
            numbers={"ready_w": before, "ready_after_w": after},
        ),
    )


def negative_net_energy(energy: EnergyResult) -> tuple[Finding, ...]:
    """Less was drawn with work than without."""
    net = energy.net.joules
    if net is None or net >= 0:
        return ()
    return (
        Finding(
            code=FindingCode.NEGATIVE_NET_ENERGY,
            severity=Severity.WARNING,
            message=f"The net energy is {net:.4g} J: less power was drawn in the window than by the waiting engine "
            "before it, which can't be the work's; something else used the device during the baseline.",
            numbers={"net_j": net, "gross_j": energy.total.joules or 0.0},
        ),
    )


def not_stationary(power: Trend | None, latency: Trend | None) -> tuple[Finding, ...]:
    """Power or latency changed by more than 5 % over the window, and more than chance explains."""
    beyond = {name: found for name, found in (("power", power), ("latency", latency)) if found and found.beyond(TREND)}
    if not beyond:
        return ()
    listed = " and ".join(
        f"{name} changed by {found.change:+.1%} (± {found.uncertainty:.1%})" for name, found in beyond.items()
    )
    return (
        Finding(
            code=FindingCode.NOT_STATIONARY,
            severity=Severity.WARNING,
            message=f"{listed} over the window, so its mean depends on its length; warm up longer, or let the device "
            "settle.",
            numbers={f"{name}_change": found.change for name, found in beyond.items()},
        ),
    )


def _parts(energy: EnergyResult) -> dict[str, DeviceEnergy | HostEnergy]:
    """By the names that `includes` uses."""
    return {**{part.uuid: part for part in energy.devices}, **{part.domain: part for part in energy.host}}
