"""Findings about devices and clocks: throttling, heat, strangers, parts of a GPU, jumps of the wall clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from lem_domain.results.run import DeviceTelemetry, Finding, FindingCode, Severity
from lem_domain.wire.workers import Device
from lem_server.aggregation.energy.sampler_record import ClockReading, SamplerRecord
from lem_server.aggregation.energy.traces import Interval

THROTTLED_SHARE = 0.01
"""Of the window; less is told by the telemetry alone."""
_HEAT_OR_HARDWARE = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
_POWER_CAP = "sw_power_cap"

WARMED_C = 10.0
"""A device whose temperature moves by more during the window is not in the state that a longer window would show."""

_SLEWED = 500e-6
"""NTP corrects a clock by at most 500 ppm without a step (RFC 5905, adjtime(3))."""
_JUMP_NS = 50_000_000


def throttled(devices: Sequence[DeviceTelemetry]) -> tuple[Finding, ...]:
    """A device was slowed down for more than 1 % of the window: by heat or hardware a warning, by its power cap not."""
    found: list[Finding] = []
    for device in devices:
        shares = {reason: share for reason, share in (device.throttled or {}).items() if share > THROTTLED_SHARE}
        bad = {reason: share for reason, share in shares.items() if reason in _HEAT_OR_HARDWARE}
        told = bad or {reason: share for reason, share in shares.items() if reason == _POWER_CAP}
        if not told:
            continue
        listed = ", ".join(f"{reason} {share:.0%}" for reason, share in told.items())
        advice = (
            "cool it or look for a fault of its power supply, and measure again"
            if bad
            else "that is how it keeps its power limit; compare only runs under the same limit"
        )
        found.append(
            Finding(
                code=FindingCode.THROTTLED,
                severity=Severity.WARNING if bad else Severity.INFO,
                message=f"{device.uuid} was slowed down during the window ({listed} of it); {advice}.",
                numbers={f"{device.uuid}.{reason}": share for reason, share in told.items()},
            )
        )
    return tuple(found)


def temperature_drift(changes_c: Mapping[str, float | None]) -> tuple[Finding, ...]:
    """A device's temperature moved by more than 10 °C over the window; power at the same work follows it."""
    moved = {uuid: change for uuid, change in changes_c.items() if change is not None and abs(change) > WARMED_C}
    if not moved:
        return ()
    listed = ", ".join(f"{uuid} by {change:+.0f} °C" for uuid, change in moved.items())
    return (
        Finding(
            code=FindingCode.TEMPERATURE_DRIFT,
            severity=Severity.WARNING,
            message=f"Temperature changed over the window ({listed}); warm up longer or measure longer.",
            numbers={f"{uuid}.change_c": change for uuid, change in moved.items()},
        ),
    )


def foreign_process(record: SamplerRecord, devices: Sequence[Device], window: Interval) -> tuple[Finding, ...]:
    """Somebody else's process was on a leased device: during the window a warning, during a baseline a remark."""
    at_work, at_rest = [], []
    spans = [baseline.span for baseline in record.baselines.values()]
    for one in record.strangers:
        until = one.gone_ns if one.gone_ns is not None else max(window.end_ns, one.seen_ns)
        if one.seen_ns < window.end_ns and until > window.begin_ns:
            at_work.append(one)
        elif any(one.seen_ns < span.end_ns and until > span.begin_ns for span in spans):
            at_rest.append(one)
    if not at_work and not at_rest:
        return ()
    shown = at_work or at_rest
    names = [devices[one.device_index].uuid if 0 <= one.device_index < len(devices) else "a device" for one in shown]
    listed = ", ".join(f"process {one.pid} on {name}" for one, name in zip(shown, names, strict=True))
    memory = [one.memory_bytes for one in shown if one.memory_bytes is not None]
    when = "the window, and its energy is in the figure" if at_work else "a baseline, and its energy is in that"
    return (
        Finding(
            code=FindingCode.FOREIGN_PROCESS,
            severity=Severity.WARNING if at_work else Severity.INFO,
            message=f"Others used the leased devices during {when}: {listed}; end them or lease devices of your own.",
            numbers={"processes": len(shown), **({"memory_bytes": float(sum(memory))} if memory else {})},
        ),
    )


def mig_parent_power(record: SamplerRecord, uuids: Sequence[str]) -> tuple[Finding, ...]:
    """A leased MIG instance has no power of its own: the figure is that of the whole GPU."""
    parents = {uuid: facts.mig_parent_uuid for uuid, facts in record.facts.items() if facts.mig_parent_uuid}
    found = {uuid: parents[uuid] for uuid in dict.fromkeys(uuids) if uuid in parents}
    if not found:
        return ()
    listed = ", ".join(f"{uuid} is a part of {parent}" for uuid, parent in found.items())
    return (
        Finding(
            code=FindingCode.MIG_PARENT_POWER,
            severity=Severity.WARNING,
            message=f"{listed}, and the energy is that of the whole GPU with all who use it, counted once; lease a "
            "whole GPU to measure energy.",
            numbers={"instances": len(found)},
        ),
    )


def clock_jump(clocks: Sequence[ClockReading], window: Interval) -> tuple[Finding, ...]:
    """Wall clock and monotonic clock moved apart by more than a clock is ever corrected gently: it was set, or the
    machine slept."""
    jumps: list[tuple[float, bool]] = []
    for before, after in pairwise(sorted(clocks)):
        passed = after.monotonic_ns - before.monotonic_ns
        apart = after.utc_ns - before.utc_ns - passed
        allowed = before.uncertainty_ns + after.uncertainty_ns + _SLEWED * passed + _JUMP_NS
        if abs(apart) > allowed:
            during = before.monotonic_ns < window.end_ns and after.monotonic_ns > window.begin_ns
            jumps.append((apart / 1e9, during))
    if not jumps:
        return ()
    largest = max((seconds for seconds, _ in jumps), key=abs)
    inside = any(during for _, during in jumps)
    return (
        Finding(
            code=FindingCode.CLOCK_JUMP,
            severity=Severity.WARNING if inside else Severity.INFO,
            message=f"The machine's wall clock jumped by {largest:+.3g} s against its monotonic clock"
            f"{', perhaps during the window' if inside else ''}: it was set, or the machine slept; keep it awake and "
            "its clock synchronised.",
            numbers={"jump_s": largest},
        ),
    )
