"""Findings about devices and clocks: throttling, temperature, foreign processes, MIG instances, clock jumps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from lem_domain.results.findings import FindingCode, Severity
from lem_domain.wire.workers import DeviceKind
from lem_server.aggregation.checks.reported import foreign_in_window
from lem_server.aggregation.energy.telemetry import during
from lem_server.aggregation.findings.rule import Occurrence, RunFacts, rule
from lem_server.aggregation.findings.trends import temperature_change_c

THROTTLED_SHARE = 0.01
"""Of the window; smaller shares are in the telemetry only."""
_HEAT_OR_HARDWARE = (
    "hw_slowdown",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "thermal_violation",
    "board_violation",
    "reliability_violation",
)
_POWER_CAP = ("sw_power_cap", "power_violation")

LOCKED_BELOW = 0.95
_CLOCK_STEP_MHZ = 15
"""The distance of NVIDIA's clock steps."""
_FEW_CLOCKS = 5
_BUSY_PERCENT = 50
"""A device that rests has a low clock by itself."""
_LOOKED_NS = 3_000_000_000
"""The longest distance of two looks at the facts of a device."""

WAKES = 0.03

WARMED_C = 10.0
"""A device whose temperature changes by more has not reached the state that a longer window would measure."""

FOREIGN_LOAD = 0.1
FOREIGN_CORES = 0.25
"""An idle desktop or server with its services uses less."""

_SLEWED = 500e-6
"""NTP corrects a clock without a step by at most 500 ppm (RFC 5905, adjtime(3))."""
_JUMP_NS = 50_000_000


@rule(
    FindingCode.THROTTLED,
    when=f"heat or hardware slowed a device down for more than {THROTTLED_SHARE:.0%} of the window",
    otherwise="note if its power cap did",
    remedy="cool it or check its power supply, and measure again",
)
def throttled(facts: RunFacts) -> Iterator[Occurrence]:
    """A device was slowed down."""
    for device in facts.telemetry.devices:
        seen = {**(device.throttled or {}), **{f"{name}_violation": s for name, s in (device.violated or {}).items()}}
        shares = {reason: share for reason, share in seen.items() if share > THROTTLED_SHARE}
        slowed = {reason: share for reason, share in shares.items() if reason in _HEAT_OR_HARDWARE}
        shown = slowed or {reason: share for reason, share in shares.items() if reason in _POWER_CAP}
        if not shown:
            continue
        listed = ", ".join(f"{reason} {share:.0%}" for reason, share in shown.items())
        yield Occurrence(
            f"{device.uuid} was slowed down during the window ({listed} of it)",
            {f"{device.uuid}.{reason}": share for reason, share in shown.items()},
            None if slowed else Severity.NOTE,
            None if slowed else "this keeps its power limit, so compare only runs under the same limit",
        )


@rule(
    FindingCode.LIMIT_CHANGED,
    when="the enforced or the set power limit, persistence mode, MIG mode, the application clock or the driver changed "
    "during the window",
    otherwise="note if before or after it",
    remedy="keep other tools from changing the devices, and measure again",
)
def limit_changed(facts: RunFacts) -> Iterator[Occurrence]:
    """A setting of a device was changed from outside."""
    devices, window = facts.inputs.devices, facts.window
    for changed in facts.record.changed_facts:
        uuid = devices[changed.device_index].uuid if 0 <= changed.device_index < len(devices) else "a device"
        # It is looked at about every 2 s, so it may have changed a little earlier.
        inside = window.begin_ns < changed.time_ns < window.end_ns + _LOOKED_NS
        numbers = {
            f"{changed.fact}.{edge}": float(value)
            for edge, value in (("before", changed.before), ("after", changed.after))
            if isinstance(value, int | float)
        }
        when = "during the window" if inside else "outside the window"
        yield Occurrence(
            f"{changed.fact} of {uuid} changed from {changed.before} to {changed.after} {when}",
            numbers,
            None if inside else Severity.NOTE,
        )


@rule(
    FindingCode.CLOCKS_LOCKED,
    Severity.NOTE,
    when=f"a device stayed below {LOCKED_BELOW:.0%} of its highest clock through the window, and its driver says that "
    "a set clock held it, or it was busy and kept one clock without a reason of power or heat",
    remedy="compare only runs under the same clocks, or unlock them (nvidia-smi -rgc)",
)
def clocks_locked(facts: RunFacts) -> Iterator[Occurrence]:
    """The clocks of a device were held by a setting."""
    for device in facts.telemetry.devices:
        known = facts.record.facts.get(device.uuid)
        found = during(facts.samples[device.uuid].readings.get("sm_clock_mhz"), facts.window)
        throttled = device.throttled or {}
        set_share = throttled.get("applications_clocks_setting", 0.0)
        highest_mhz = known.sm_clock_max_mhz if known is not None else None
        if found is None or highest_mhz is None or int(found[0].max()) >= LOCKED_BELOW * highest_mhz:
            continue
        is_flat = False
        if len(found[0]) >= _FEW_CLOCKS:
            busy = device.gpu_utilisation_mean_percent.value
            held = max((throttled.get(reason, 0.0) for reason in (*_HEAT_OR_HARDWARE, *_POWER_CAP)), default=0.0)
            is_flat = (
                int(np.ptp(found[0])) <= _CLOCK_STEP_MHZ
                and (busy is None or busy >= _BUSY_PERCENT)
                and held <= THROTTLED_SHARE
            )
        if is_flat or set_share > THROTTLED_SHARE:
            yield Occurrence(
                f"{device.uuid} ran at {int(found[0].max())} of {highest_mhz:g} MHz, held by a set or locked clock",
                {f"{device.uuid}.sm_clock_mhz": float(found[0].max()), f"{device.uuid}.highest_mhz": highest_mhz},
            )


@rule(
    FindingCode.TEMPERATURE_DRIFT,
    when=f"a line through a device's temperatures rises or falls by more than {WARMED_C:g} °C over the window",
    remedy="warm up longer or measure longer",
)
def temperature_drift(facts: RunFacts) -> Iterator[Occurrence]:
    """A device's temperature changed; its power at the same work depends on it."""
    changes_c = {
        uuid: temperature_change_c(found.readings.get("temperature_c"), facts.window)
        for uuid, found in facts.samples.items()
    }
    moved = {uuid: change for uuid, change in changes_c.items() if change is not None and abs(change) > WARMED_C}
    if moved:
        listed = ", ".join(f"{uuid} by {change:+.0f} °C" for uuid, change in moved.items())
        yield Occurrence(
            f"Temperature changed over the window ({listed})",
            {f"{uuid}.change_c": change for uuid, change in moved.items()},
        )


@rule(
    FindingCode.FOREIGN_PROCESS,
    otherwise="note if during a baseline only",
    remedy="end these processes or lease other devices",
)
def foreign_process(facts: RunFacts) -> Iterator[Occurrence]:
    """A process that does not belong to the attempt was on a leased device during the window."""
    devices = facts.inputs.devices
    in_window = foreign_in_window(facts.record, devices, facts.window)
    spans = [baseline.span for baseline in facts.record.baselines.values()]
    in_baseline = [one for span in spans for one in foreign_in_window(facts.record, devices, span)]
    shown = in_window or list(dict.fromkeys(in_baseline))
    if not shown:
        return
    names = [devices[one.device_index].uuid if 0 <= one.device_index < len(devices) else "a device" for one in shown]
    listed = ", ".join(
        f"process {one.pid} on {name}" + (f", using {one.sm_percent} % of it" if one.sm_percent else "")
        for one, name in zip(shown, names, strict=True)
    )
    memory = [one.memory_bytes for one in shown if one.memory_bytes is not None]
    when = "the window, and the figure includes their energy" if in_window else "a baseline, which includes their power"
    yield Occurrence(
        f"Foreign processes used the leased devices during {when}: {listed}",
        {"processes": len(shown), **({"memory_bytes": float(sum(memory))} if memory else {})},
        None if in_window else Severity.NOTE,
    )


@rule(
    FindingCode.UNIDENTIFIED_PROCESS,
    Severity.NOTE,
    remedy="see what nvidia-smi lists, and update the driver",
)
def unidentified_process(facts: RunFacts) -> Iterator[Occurrence]:
    """The driver listed a process on a leased device under a pid that no process can have."""
    shown = [one for one in facts.record.unidentified_processes if one.seen_ns < facts.window.end_ns]
    if shown:
        memory = [one.memory_bytes for one in shown if one.memory_bytes is not None]
        yield Occurrence(
            f"The driver listed {len(shown)} unidentified processes: no process can have their pids, and they may "
            "belong to the run",
            {"processes": len(shown), **({"memory_bytes": float(sum(memory))} if memory else {})},
        )


@rule(
    FindingCode.FOREIGN_LOAD,
    when=f"a CPU was leased, and other processes used more than {FOREIGN_LOAD:.0%} of the processor time that was used "
    f"during the window, and more than {FOREIGN_CORES:g} cores",
    remedy="end them, or measure when the machine is idle",
)
def foreign_load(facts: RunFacts) -> Iterator[Occurrence]:
    """Other processes used the CPU whose energy is the figure."""
    if not any(device.kind is DeviceKind.CPU for device in facts.inputs.devices):
        return
    loads, window = facts.record.cpu_loads, facts.window
    before = [load for load in loads if load.time_ns <= window.begin_ns]
    after = [load for load in loads if load.time_ns >= window.end_ns]
    if not before or not after:
        return
    first, last = before[-1], after[0]
    busy_s, own_s = last.busy_s - first.busy_s, last.own_s - first.own_s
    cores = (busy_s - own_s) / ((last.time_ns - first.time_ns) / 1e9)
    if busy_s > 0 and cores > FOREIGN_CORES and busy_s - own_s > FOREIGN_LOAD * busy_s:
        share = (busy_s - own_s) / busy_s
        yield Occurrence(
            f"Other processes used {cores:.2g} cores on average, {share:.0%} of the processor time around the window, "
            "and the figure includes their energy",
            {"cores": cores, "share": share},
        )


@rule(
    FindingCode.SAMPLING_WAKES_DEVICE,
    Severity.NOTE,
    when=f"at its worker's start, sampling changed the power of a device at rest by more than {WAKES:.0%} and by more "
    "than is uncertain",
    remedy="compare idle power only between runs that were sampled alike; for this, raise `energy.interval_ms`",
)
def sampling_wakes_device(facts: RunFacts) -> Iterator[Occurrence]:
    """Looking at a device costs power: its baselines include what sampling draws."""
    for uuid in dict.fromkeys(device.uuid for device in facts.inputs.devices):
        known = facts.record.facts.get(uuid)
        if known is None or known.at_rest is None:
            continue
        rest = known.at_rest
        apart_w = rest.sampled_w - rest.unsampled_w
        if rest.unsampled_w > 0 and abs(apart_w) > max(WAKES * rest.unsampled_w, rest.uncertainty_w):
            yield Occurrence(
                f"{uuid} drew {rest.unsampled_w:.4g} W at rest and {rest.sampled_w:.4g} W while it was sampled, "
                f"{apart_w / rest.unsampled_w:+.1%}; its power without requests includes what looking at it costs",
                {f"{uuid}.unsampled_w": rest.unsampled_w, f"{uuid}.sampled_w": rest.sampled_w},
            )


@rule(
    FindingCode.MIG_PARENT_POWER,
    remedy="lease a whole GPU to measure energy",
)
def mig_parent_power(facts: RunFacts) -> Iterator[Occurrence]:
    """A MIG instance was leased: its power readings are those of the whole GPU."""
    parents = {uuid: known.mig_parent_uuid for uuid, known in facts.record.facts.items() if known.mig_parent_uuid}
    uuids = dict.fromkeys(device.uuid for device in facts.inputs.devices)
    found = {uuid: parents[uuid] for uuid in uuids if uuid in parents}
    if found:
        listed = ", ".join(f"{uuid} is an instance of {parent}" for uuid, parent in found.items())
        yield Occurrence(
            f"{listed}, and the energy is that of the whole GPU with all of its users, counted once",
            {"instances": len(found)},
        )


@rule(
    FindingCode.CLOCK_JUMP,
    otherwise="note if outside the window",
    remedy="keep the machine awake and its clock synchronised",
)
def clock_jump(facts: RunFacts) -> Iterator[Occurrence]:
    """The wall clock moved against the monotonic clock by more than 500 ppm and 50 ms during the window."""
    jumps: list[tuple[float, bool]] = []
    for before, after in pairwise(sorted(facts.record.clocks, key=lambda clock: clock.monotonic_ns)):
        passed = after.monotonic_ns - before.monotonic_ns
        apart = after.utc_ns - before.utc_ns - passed
        allowed = before.uncertainty_ns + after.uncertainty_ns + _SLEWED * passed + _JUMP_NS
        if abs(apart) > allowed:
            during = before.monotonic_ns < facts.window.end_ns and after.monotonic_ns > facts.window.begin_ns
            jumps.append((apart / 1e9, during))
    if not jumps:
        return
    largest = max((seconds for seconds, _ in jumps), key=abs)
    inside = any(during for _, during in jumps)
    yield Occurrence(
        f"The machine's wall clock jumped by {largest:+.3g} s against its monotonic clock"
        f"{', possibly during the window' if inside else ''}: it was set, or the machine slept",
        {"jump_s": largest},
        None if inside else Severity.NOTE,
    )
