"""Findings about energy: how it was obtained, contradictions between readings, and whether power was steady."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lem_domain.results.energy import DeviceEnergy, EnergyResult, HostEnergy
from lem_domain.results.figures import EnergyMethod
from lem_domain.results.findings import FindingCode, Severity
from lem_server.aggregation.energy.telemetry import late_share
from lem_server.aggregation.energy.traces import GAP_FACTOR
from lem_server.aggregation.findings.rule import Occurrence, RunFacts, rule
from lem_server.aggregation.findings.trends import latency_trend, power_trend

FEW_SAMPLES = 10
"""Fewer power samples than this do not determine a mean."""
DISAGREEMENT = 0.05
DRIFT = 0.05
TREND = 0.05
LATE_TICKS = 0.05

SLOW_ROUND = 0.8
"""Above it a round of readings leaves no room for the others, and a round that is a little slower misses a tick."""

_SHORT_TOLERANCE = 0.99
"""The worker ends its window by a clock reading around the requests, so its length may differ slightly from theirs."""
_COUNTED = "note if a counter kept counting"


@rule(
    FindingCode.ENERGY_UNAVAILABLE,
    when="the job's energy is null and `record.power` is on",
    otherwise="error with `energy.required`",
    remedy="make NVML, RAPL or CodeCarbon readable on the worker's machine, or set `record.power` to false",
)
def energy_unavailable(facts: RunFacts) -> Iterator[Occurrence]:
    """The job's energy is null."""
    config, total = facts.inputs.config, facts.account.result.total
    if total.joules is None and config.record.power:
        severity = Severity.ERROR if config.energy.required else Severity.WARNING
        yield Occurrence(f"There is no energy figure: {total.reason}", severity=severity)


@rule(
    FindingCode.ENERGY_MODELLED,
    when="a part of the job's energy is modelled",
    remedy="compare it only with results from the same machine",
)
def energy_modelled(facts: RunFacts) -> Iterator[Occurrence]:
    """A part of the job's energy comes from a model and not from a meter."""
    energy = facts.account.result
    if energy.total.method is not EnergyMethod.MODELLED:
        return
    parts = _parts(energy)
    modelled = [name for name in energy.includes if parts[name].energy.method is EnergyMethod.MODELLED]
    yield Occurrence(
        f"The energy of {', '.join(modelled)} is modelled, not measured, and has no error bound",
        {name: joules for name in modelled if (joules := parts[name].energy.joules) is not None},
    )


@rule(
    FindingCode.SHORT_WINDOW,
    when="the window is shorter than `window.min_duration_s`",
    remedy="send more or longer requests",
)
def short_window(facts: RunFacts) -> Iterator[Occurrence]:
    """The window is shorter than requested; the energy's bound is what that costs."""
    duration_s, wanted_s = facts.window.duration_s, facts.inputs.config.window.min_duration_s
    if duration_s >= wanted_s * _SHORT_TOLERANCE:
        return
    numbers = {"duration_s": duration_s, "min_duration_s": wanted_s}
    uncertain, bound = "", facts.account.result.total.bound_j
    if bound is not None:
        numbers["bound_j"] = bound
        uncertain = f", which leaves an uncertainty of {bound:.3g} J in the energy"
    yield Occurrence(f"The window lasted {duration_s:.2f} s, and {wanted_s:g} s were requested{uncertain}", numbers)


@rule(
    FindingCode.FEW_SAMPLES,
    when=f"a part of the job's energy has fewer than {FEW_SAMPLES} power samples in the window",
    remedy="measure longer or lower `energy.interval_ms`",
)
def few_samples(facts: RunFacts) -> Iterator[Occurrence]:
    """A part of the job's energy has few samples in the window."""
    energy = facts.account.result
    parts = _parts(energy)
    few = {name: parts[name].samples for name in energy.includes if parts[name].samples < FEW_SAMPLES}
    if few:
        listed = ", ".join(f"{name}: {count}" for name, count in few.items())
        yield Occurrence(
            f"The energy is based on few samples in the window ({listed}; at least {FEW_SAMPLES} are needed)",
            {name: float(count) for name, count in few.items()},
        )


@rule(
    FindingCode.SAMPLING_GAPS,
    when=f"no sample for more than {GAP_FACTOR} median intervals",
    otherwise=_COUNTED,
    remedy="keep other work off the machine",
)
def sampling_gaps(facts: RunFacts) -> Iterator[Occurrence]:
    """There are sampling gaps, which affect an integral but not a counter."""
    energy = facts.account.result
    gaps = facts.account.sampling_gaps
    found = {name: gaps[name] for name in energy.includes if name in gaps}
    if not found:
        return
    parts = _parts(energy)
    counted = all(parts[name].energy.method is EnergyMethod.COUNTER for name in found)
    listed = ", ".join(f"{name}: {gap.number}, longest {gap.longest_s:.3g} s" for name, gap in found.items())
    consequence = "the counters kept counting" if counted else "power in the sampling gaps is interpolated"
    yield Occurrence(
        f"There are sampling gaps of more than {GAP_FACTOR} median intervals ({listed}); {consequence}",
        {f"{name}.longest_s": gap.longest_s for name, gap in found.items()},
        Severity.NOTE if counted else None,
    )


@rule(
    FindingCode.SAMPLER_OVERLOAD,
    when=f"more than {LATE_TICKS:.0%} of the sampler's ticks were late or missed",
    otherwise=_COUNTED,
    remedy="raise `energy.interval_ms` or leave the machine more processor time",
)
def sampler_overload(facts: RunFacts) -> Iterator[Occurrence]:
    """The sampler missed its deadlines."""
    share = late_share(facts.record)
    if share is not None and share > LATE_TICKS:
        counted = facts.account.result.total.method is EnergyMethod.COUNTER
        consequence = "; the counters kept counting" if counted else ""
        yield Occurrence(
            f"{share:.0%} of the sampler's ticks were late or missed{consequence}",
            {"late_or_missed": share},
            Severity.NOTE if counted else None,
        )


@rule(
    FindingCode.DRIVER_SLOW,
    when=f"reading all leased GPUs once takes the driver more than {SLOW_ROUND:.0%} of `energy.interval_ms`",
    otherwise=_COUNTED,
    remedy="raise `energy.interval_ms`, update the driver, or lease fewer GPUs at once",
)
def driver_slow(facts: RunFacts) -> Iterator[Occurrence]:
    """The driver answers too slowly for the interval."""
    round_ms, interval_ms = facts.record.round_ms("nvml"), facts.inputs.config.energy.interval_ms
    if round_ms is None or round_ms <= SLOW_ROUND * interval_ms:
        return
    drivers = sorted({known.driver for known in facts.record.facts.values() if known.driver})
    counted = facts.account.result.total.method is EnergyMethod.COUNTER
    yield Occurrence(
        f"NVIDIA's driver {' and '.join(drivers) or '(of unknown version)'} took {round_ms:.3g} ms on average for a "
        f"round of readings of all leased GPUs, and the interval is {interval_ms} ms",
        {"round_ms": round_ms, "interval_ms": float(interval_ms)},
        Severity.NOTE if counted else None,
        f"set `energy.interval_ms` to {_roomy_ms(round_ms)} or more, update the driver, or lease fewer GPUs at once",
    )


@rule(
    FindingCode.SENSOR_DISAGREEMENT,
    when=f"a device's counter and the integral of its power differ by more than {DISAGREEMENT:.0%}",
    remedy="measure longer; a sensor that samples the chip only part of the time misses bursts",
)
def sensor_disagreement(facts: RunFacts) -> Iterator[Occurrence]:
    """A device's counter and the integral of its power differ."""
    for device in facts.account.result.devices:
        counted, integrated = device.energy.joules, device.integrated.joules if device.integrated else None
        if not counted or integrated is None or abs(integrated - counted) <= DISAGREEMENT * abs(counted):
            continue
        yield Occurrence(
            f"The energy counter of {device.uuid} reports {counted:.6g} J and the integral of its power is "
            f"{integrated:.6g} J, a difference of {abs(integrated / counted - 1):.1%}; the counter is the figure",
            {f"{device.uuid}.counter_j": counted, f"{device.uuid}.integrated_j": integrated},
        )


@rule(
    FindingCode.BASELINE_DRIFT,
    when=f"the ready baselines before and after the window differ by more than {DRIFT:.0%}",
    remedy="wait for a steady temperature (`settle`) or keep other work off the device",
)
def baseline_drift(facts: RunFacts) -> Iterator[Occurrence]:
    """The loaded engine without requests drew another power after the window than before."""
    watts = {baseline.context: baseline.mean_power_w.value for baseline in facts.account.result.baselines}
    before, after = watts.get("ready"), watts.get("ready_after")
    if before and after is not None and abs(after - before) > DRIFT * abs(before):
        yield Occurrence(
            f"The ready baseline was {before:.4g} W before the window and {after:.4g} W after it, a difference of "
            f"{abs(after / before - 1):.1%}, so the net energy is uncertain by as much",
            {"ready_w": before, "ready_after_w": after},
        )


@rule(
    FindingCode.NEGATIVE_NET_ENERGY,
    when="the net energy is below zero",
    remedy="end other processes that used the device during the baseline, and measure again",
)
def negative_net_energy(facts: RunFacts) -> Iterator[Occurrence]:
    """The window drew less power than the baseline."""
    energy = facts.account.result
    net = energy.net.joules
    if net is not None and net < 0:
        yield Occurrence(
            f"The net energy is {net:.4g} J: the window drew less power than the engine without requests before it",
            {"net_j": net, "gross_j": energy.total.joules or 0.0},
        )


@rule(
    FindingCode.NOT_STATIONARY,
    when=f"power, or latency over the repetitions, changes by more than {TREND:.0%} over the window and by more than "
    "its 95 % interval",
    remedy="warm up longer, or let the device settle (`settle`)",
)
def not_stationary(facts: RunFacts) -> Iterator[Occurrence]:
    """Power or latency has a trend."""
    account, window = facts.account, facts.window
    meters = [account.meters[part] for part in account.parts if part in account.meters]
    trends = (("power", power_trend(meters, window)), ("latency", latency_trend(facts.ranks, window)))
    beyond = {name: found for name, found in trends if found and found.beyond(TREND)}
    if beyond:
        listed = " and ".join(
            f"{name} changed by {found.change:+.1%} (± {found.uncertainty:.1%})" for name, found in beyond.items()
        )
        yield Occurrence(
            f"{listed} over the window, so its mean depends on its length",
            {f"{name}_change": found.change for name, found in beyond.items()},
        )


def _parts(energy: EnergyResult) -> dict[str, DeviceEnergy | HostEnergy]:
    """Index devices and host domains by the names that `includes` uses."""
    return {**{part.uuid: part for part in energy.devices}, **{part.domain: part for part in energy.host}}


def _roomy_ms(round_ms: float) -> int:
    """Return an interval of which such a round is a half, in tens of ms."""
    return 10 * math.ceil(2 * round_ms / 10)
