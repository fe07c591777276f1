"""Findings about energy: how it was obtained, contradictions between readings, and whether power was steady."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lem_domain.results.energy import DeviceEnergy, EnergyResult, HostEnergy, RefusalKind, RefusedReadings
from lem_domain.results.figures import EnergyMethod
from lem_domain.results.findings import FindingCode, Severity
from lem_domain.results.method import MethodVersion
from lem_server.aggregation.energy.meters import BoundedMeter
from lem_server.aggregation.energy.model_constant import without_model_constant
from lem_server.aggregation.energy.plausibility import ABOVE_LIMIT, FROZEN_PERIODS, STALL_PERIODS
from lem_server.aggregation.energy.telemetry import late_share
from lem_server.aggregation.energy.traces import GAP_FACTOR
from lem_server.aggregation.findings.rule import Occurrence, RunFacts, rule
from lem_server.aggregation.findings.trends import latency_trend, power_trend

FEW_SAMPLES = 10
"""Fewer power samples than this do not determine a mean."""
FEW_UPDATES = 20
"""Each end of the window may be off by an update, so fewer leave more than a tenth of the energy open."""
DISAGREEMENT = 0.05
LEAST_DISAGREEMENT = 0.01
"""A smaller difference of counter and integral is worth no sentence."""
DRIFT = 0.05
TREND = 0.05
LATE_TICKS = 0.05

SLOW_ROUND = 0.8
"""Above it a round of readings leaves no room for the others, and a round that is a little slower misses a tick."""

_SHORT_TOLERANCE = 0.99
"""The worker ends its window by a clock reading around the requests, so its length may differ slightly from theirs."""
_RESET, _STALLED = RefusalKind.COUNTER_RESET, RefusalKind.COUNTER_STALLED
_COUNTED = "note if a counter kept counting"


@rule(
    FindingCode.ENERGY_UNAVAILABLE,
    otherwise="error with `energy.required`",
    remedy="make NVML, RAPL or CodeCarbon readable on the worker's machine, or set `record.power` to false",
)
def energy_unavailable(facts: RunFacts) -> Iterator[Occurrence]:
    """The job's energy is null and `record.power` is on."""
    config, total = facts.inputs.config, facts.account.result.total
    if total.joules is None and config.record.power:
        severity = Severity.ERROR if config.energy.required else Severity.WARNING
        yield Occurrence(f"There is no energy figure: {total.reason}", severity=severity)


@rule(
    FindingCode.ENERGY_MODELLED,
    remedy="compare it only with results from the same machine",
)
def energy_modelled(facts: RunFacts) -> Iterator[Occurrence]:
    """A part of the job's energy is modelled."""
    energy = facts.account.result
    if energy.total.method is not EnergyMethod.MODELLED:
        return
    parts = _parts(energy)
    modelled = [name for name in energy.includes if parts[name].energy.method is EnergyMethod.MODELLED]
    divided = without_model_constant({name: parts[name].energy for name in energy.includes}, energy.total)
    constant, rest = divided.constant.joules, divided.rest.joules
    words = ""
    if constant and rest:
        tokens = facts.work.generated_tokens
        each = f", {rest / tokens:.4g} J per output token" if tokens else ""
        words = (
            f"; {constant:.4g} J of {constant + rest:.4g} J are a constant of the installed memory, whatever the load, "
            f"and {rest:.4g} J are left without it{each}"
        )
    yield Occurrence(
        f"The energy of {', '.join(modelled)} is modelled, not measured, and has no error bound{words}",
        {name: joules for name in modelled if (joules := parts[name].energy.joules) is not None},
    )


@rule(
    FindingCode.SHORT_WINDOW,
    remedy="send more or longer requests",
)
def short_window(facts: RunFacts) -> Iterator[Occurrence]:
    """The window is shorter than `window.min_duration_s`."""
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
            remedy="measure longer"
            if all(parts[name].energy.method is EnergyMethod.MODELLED for name in few)
            else None,
        )


@rule(
    FindingCode.COUNTER_SLOW,
    Severity.NOTE,
    when=f"the energy counter of a part of the job's energy was updated fewer than {FEW_UPDATES} times in the window",
    remedy="measure longer, because each end of the window is open by up to one update",
)
def counter_slow(facts: RunFacts) -> Iterator[Occurrence]:
    """A counter had few updates in the window."""
    energy, duration_s = facts.account.result, facts.window.duration_s
    parts = _parts(energy)
    slow = {
        name: period_ms
        for name in energy.includes
        if parts[name].energy.method is EnergyMethod.COUNTER
        and (period_ms := parts[name].counter_period_ms.value) is not None
        and 1e3 * duration_s < FEW_UPDATES * period_ms
        and parts[name].samples >= FEW_UPDATES  # otherwise the samples are few, which few_samples reports
    }
    if slow:
        listed = ", ".join(f"{name}: every {period_ms:.3g} ms" for name, period_ms in slow.items())
        yield Occurrence(
            f"The window of {duration_s:.3g} s has few updates of the energy counter ({listed})",
            {f"{name}.period_ms": period_ms for name, period_ms in slow.items()},
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
    when=f"a device's counter and the integral of its power differ by more than their samples leave open and by more "
    f"than {LEAST_DISAGREEMENT:.0%} (under `m1` by more than {DISAGREEMENT:.0%})",
    otherwise="note if the known error of the sensor allows the difference",
    remedy="measure longer; a sensor that samples the chip only part of the time may miss bursts",
)
def sensor_disagreement(facts: RunFacts) -> Iterator[Occurrence]:
    """A device's counter and the integral of its power differ."""
    if facts.inputs.method is not MethodVersion.M1:
        yield from _beyond_sampling(facts)
        return
    for device in facts.account.result.devices:
        counted, integrated = device.energy.joules, device.integrated.joules if device.integrated else None
        if not counted or integrated is None or abs(integrated - counted) <= DISAGREEMENT * abs(counted):
            continue
        yield Occurrence(
            f"The energy counter of {device.uuid} reports {counted:.6g} J and the integral of its power is "
            f"{integrated:.6g} J, a difference of {abs(integrated / counted - 1):.1%}; the counter is the figure",
            {f"{device.uuid}.counter_j": counted, f"{device.uuid}.integrated_j": integrated},
        )


def _beyond_sampling(facts: RunFacts) -> Iterator[Occurrence]:
    for device in facts.account.result.devices:
        meter, counted, parts = facts.account.meters.get(device.uuid), device.energy.joules, device.energy.bound_parts
        if not isinstance(meter, BoundedMeter) or device.integrated is None or not counted or parts is None:
            continue
        apart_j, integrated = meter.disagreement_j(facts.window), device.integrated.joules
        if apart_j is None or integrated is None or apart_j <= LEAST_DISAGREEMENT * abs(counted):
            continue
        widened = parts.disagreement_j
        yield Occurrence(
            f"The energy counter of {device.uuid} reports {counted:.6g} J and the integral of its power is "
            f"{integrated:.6g} J, a difference of {abs(integrated / counted - 1):.1%}; the counter is the figure"
            + (f", and its bound is wider by {widened:.3g} J so that it holds both" if widened else ""),
            {
                f"{device.uuid}.counter_j": counted,
                f"{device.uuid}.integrated_j": integrated,
                f"{device.uuid}.widened_j": widened,
            },
            None if widened else Severity.NOTE,
            None if widened else "the error of its sensor allows this, so compare runs by the same reading only",
        )


@rule(
    FindingCode.IMPLAUSIBLE_READINGS,
    when="readings of a GPU around the window can't be: a power of 0 W or less, above "
    f"{ABOVE_LIMIT:g} × its limit, or unchanged for over {FROZEN_PERIODS} usual periods; a counter that rises by more "
    "than that power allows, is out of range, or is in another unit than the readings (`m2`)",
    otherwise="note if a counter kept counting",
    remedy="update the driver, or compare with another meter",
)
def implausible_readings(facts: RunFacts) -> Iterator[Occurrence]:
    """Readings were left out of the figures because they can't be true."""
    for device in facts.account.result.devices:
        found = [one for one in device.refused if one.kind not in (_RESET, _STALLED)]
        if not found:
            continue
        listed = ", ".join(f"{one.kind.value.replace('_', ' ')} × {max(one.readings, 1)}" for one in found)
        untouched = device.energy.method is EnergyMethod.COUNTER and not any(
            one.kind.value.startswith("counter") for one in found
        )
        why = f" ({device.counter_reason})" if device.counter_reason else ""
        yield Occurrence(
            f"Readings of {device.uuid} can't be true and are in no figure: {listed}{why}",
            {f"{device.uuid}.{one.kind.value}": float(max(one.readings, 1)) for one in found},
            Severity.NOTE if untouched else None,
        )


@rule(
    FindingCode.COUNTER_STALLED,
    when=f"a GPU's energy counter did not move for over {STALL_PERIODS} of its usual periods around the window, or "
    "always, while power flowed (`m2`)",
    remedy="update the driver or reset the device; until then only power readings count",
)
def counter_stalled(facts: RunFacts) -> Iterator[Occurrence]:
    """An energy counter stopped; the integral of power takes over."""
    for device, found in _refused(facts, _STALLED):
        yield Occurrence(
            f"The energy counter of {device.uuid} did not move for {found.longest_s:.3g} s while power flowed; "
            + ("the integral of its power is the figure" if device.energy.joules is not None else "there is no figure"),
            {f"{device.uuid}.longest_s": found.longest_s},
        )


@rule(
    FindingCode.COUNTER_RESET,
    when="a GPU's energy counter went back around the window, by no wrap of 32 bits (`m2`), or the counter of a host's "
    "domain was reset in it or may have wrapped several times between two samples",
    otherwise="note if the job's energy does not include that domain",
    remedy="find what reset the device, its driver or the host, and measure again",
)
def counter_reset(facts: RunFacts) -> Iterator[Occurrence]:
    """An energy counter went back; a GPU's is continued by the power around the step, a host's is not used."""
    for device, found in _refused(facts, _RESET):
        yield Occurrence(
            f"The energy counter of {device.uuid} went back {found.occurrences} "
            f"{'time' if found.occurrences == 1 else 'times'}; the power around fills the step, and the bound holds "
            "what that leaves open",
            {f"{device.uuid}.occurrences": float(found.occurrences)},
        )
    # The sample after a step at the end of the window comes up to an interval later.
    until_ns = facts.window.end_ns + 1_000_000 * facts.inputs.config.energy.interval_ms
    gaps = [gap for gap in facts.record.counter_gaps if facts.window.begin_ns < gap.time_ns < until_ns]
    for domain, first in {gap.domain: gap for gap in reversed(gaps)}.items():
        yield Occurrence(
            f"In the window {first.reason.rstrip('.')}; the counter is not the figure",
            {f"{domain}.occurrences": float(sum(gap.domain == domain for gap in gaps))},
            None if domain in facts.account.parts else Severity.NOTE,
        )


@rule(
    FindingCode.REPEATED_COUNTER,
    Severity.NOTE,
    remedy="nothing has to be done: it is in no sum",
)
def repeated_counter(facts: RunFacts) -> Iterator[Occurrence]:
    """A domain of the host shows the counter of another one of its name, as dies of one package do."""
    repeated = {one.domain: one.repeats for one in facts.record.repeated_counters}
    if repeated:
        listed = ", ".join(f"{domain} that of {original}" for domain, original in repeated.items())
        yield Occurrence(
            f"Domains of the host show the counter of another one ({listed}), which counts once",
            {"domains": float(len(repeated))},
        )


@rule(
    FindingCode.PART_TIME_SENSOR,
    otherwise="note if a counter is the figure, or if that is assumed of a model without a published measurement",
    remedy="measure longer; the bound holds work that is not in step with the readings",
)
def part_time_sensor(facts: RunFacts) -> Iterator[Occurrence]:
    """A GPU's power sensor looks at the chip for a part of the time (`m2`)."""
    energy = facts.account.result
    shares: dict[str, float] = {}
    severe = False
    known = True
    for device in energy.devices:
        meter = facts.account.meters.get(device.uuid)
        if isinstance(meter, BoundedMeter) and meter.sensor.is_part_time and device.energy.bound_parts is not None:
            shares[device.uuid] = meter.sensor.averaged_s / meter.sensor.period_s
            known = known and not meter.sensor.assumed
            severe = severe or (device.energy.method is not EnergyMethod.COUNTER and not meter.sensor.assumed)
    if not shares:
        return
    listed = ", ".join(f"{uuid} {share:.0%}" for uuid, share in shares.items())
    assumed = "" if known else ", as is assumed of a model without a published measurement"
    yield Occurrence(
        f"The power sensor looks at the device for a part of the time only ({listed}{assumed}); whether an energy "
        "counter sees more is not published",
        {f"{uuid}.share": share for uuid, share in shares.items()},
        None if severe else Severity.NOTE,
    )


@rule(
    FindingCode.CALIBRATION_UNUSED,
    Severity.NOTE,
    when="a calibration (`energy.calibration`, or given for this aggregation) corrects no device of the run, or the "
    "method is `m1`, which corrects none",
    remedy="compare its device with the run's, unless it is meant for others",
)
def calibration_unused(facts: RunFacts) -> Iterator[Occurrence]:
    """A calibration had no effect on the run's figures."""
    devices = facts.account.result.devices
    applied = {one.calibration.device for one in devices if one.calibration is not None}
    unused = [one.device for one in facts.inputs.calibration if one.device not in applied]
    if not unused:
        return
    why = "method m1 corrects no readings" if facts.inputs.method is MethodVersion.M1 else "no device has its readings"
    leased = ", ".join(f"{one.uuid} ({one.name})" for one in facts.inputs.devices)
    yield Occurrence(f"The calibration of {', '.join(unused)} was not used: {why}; the run leased {leased}")


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
        open_j = abs(after - before) * facts.window.duration_s
        yield Occurrence(
            f"The ready baseline was {before:.4g} W before the window and {after:.4g} W after it, a difference of "
            f"{abs(after / before - 1):.1%}, which leaves {open_j:.4g} J of the net energy open",
            {"ready_w": before, "ready_after_w": after, "open_j": open_j},
        )


@rule(
    FindingCode.NEGATIVE_NET_ENERGY,
    otherwise="note if its bound reaches above zero (`m2`)",
    remedy="look for work on the device during the baseline or for a device that was warmer then, and measure again",
)
def negative_net_energy(facts: RunFacts) -> Iterator[Occurrence]:
    """The net energy is below zero."""
    energy = facts.account.result
    net = energy.net.joules
    if net is None or net >= 0:
        return
    numbers = {"net_j": net, "gross_j": energy.total.joules or 0.0}
    bound = None if facts.inputs.method is MethodVersion.M1 else energy.net.bound_j
    if bound is not None and net + bound >= 0:
        yield Occurrence(
            f"The net energy of {net:.4g} ± {bound:.4g} J is not distinguishable from zero",
            {**numbers, "bound_j": bound},
            Severity.NOTE,
            "measure longer if the work should show above the power without requests",
        )
    else:
        yield Occurrence(
            f"The net energy is {net:.4g} J: the window drew less power than the engine without requests before it",
            numbers,
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
        # A line through a steep fall ends below zero, which nothing does.
        changes = {name: max(found.change, -1.0) for name, found in beyond.items()}
        listed = " and ".join(
            f"{name} changed by {changes[name]:+.1%} (± {found.uncertainty:.1%})" for name, found in beyond.items()
        )
        yield Occurrence(
            f"{listed} over the window, so its mean depends on its length",
            {f"{name}_change": change for name, change in changes.items()},
        )


def _refused(facts: RunFacts, kind: RefusalKind) -> Iterator[tuple[DeviceEnergy, RefusedReadings]]:
    for device in facts.account.result.devices:
        for found in device.refused:
            if found.kind is kind:
                yield device, found


def _parts(energy: EnergyResult) -> dict[str, DeviceEnergy | HostEnergy]:
    """Index devices and host domains by the names that `includes` uses."""
    return {**{part.uuid: part for part in energy.devices}, **{part.domain: part for part in energy.host}}


def _roomy_ms(round_ms: float) -> int:
    """Return an interval of which such a round is a half, in tens of ms."""
    return 10 * math.ceil(2 * round_ms / 10)
