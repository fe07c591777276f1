"""The checks that a result reports, passed or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from lem_domain.results.method import MethodVersion
from lem_domain.results.run import Check, CheckName, WindowResult
from lem_domain.wire.workers import Device, DeviceKind
from lem_server.aggregation.energy.sampler_record import ForeignProcess, SamplerRecord
from lem_server.aggregation.energy.traces import Interval
from lem_server.aggregation.errors import MissingPart
from lem_server.aggregation.inputs import AggregationInput, Summaries

LOW_OVERLAP = 0.5


def evidence_checks(
    inputs: AggregationInput, missing: Sequence[MissingPart], window: WindowResult, record: SamplerRecord
) -> tuple[Check, ...]:
    """Return all checks in one order; `missing` is empty unless partial evidence is allowed.

    Corrupt chunks, and chunks that are not in the manifest, are refused before a result exists.
    """
    manifest = (
        f", and {len(inputs.manifest)} streams match the manifest" if inputs.manifest else "; there is no manifest"
    )
    return (
        _processes(inputs, missing),
        _nothing_missing(CheckName.CHUNKS_CONTIGUOUS, missing, "chunks", "no chunk is missing in any stream"),
        _nothing_missing(
            CheckName.COMPLETION_MARKERS, missing, "completion_marker", f"all of {', '.join(inputs.processes)}"
        ),
        Check(
            name=CheckName.DIGESTS_WHOLE,
            passed=True,
            detail=f"all chunks have the SHA-256 that was recorded at their arrival{manifest}",
        ),
        Check(
            name=CheckName.WINDOWS_OVERLAP,
            passed=window.overlap >= LOW_OVERLAP,
            detail=f"{window.processes} processes worked together for {window.overlap:.1%} of the window",
        ),
        _devices(inputs),
        _engine(inputs),
        *_foreign(inputs, window, record),
    )


def foreign_in_window(record: SamplerRecord, devices: Sequence[Device], window: Interval) -> list[ForeignProcess]:
    """Return the foreign processes that were on a leased device during an interval, where pids can be compared."""
    found = []
    for one in record.foreign_processes:
        until = one.gone_ns if one.gone_ns is not None else max(window.end_ns, one.seen_ns)
        uuid = devices[one.device_index].uuid if 0 <= one.device_index < len(devices) else ""
        if one.seen_ns < window.end_ns and until > window.begin_ns and why_incomparable(record, uuid) is None:
            found.append(one)
    return found


def why_incomparable(record: SamplerRecord, uuid: str) -> str | None:
    """Return why the pids that the driver lists for a device can't be compared with the attempt's; None if they can.

    Evidence of version 0.1 has no such facts: its checks count as possible.
    """
    facts = record.facts.get(uuid)
    if facts is None or facts.own_processes_listed is not False:
        return None
    if facts.own_pid_namespace:
        return f"the worker is in a container with its own pids, and the driver lists those of the host for {uuid}"
    return f"the driver never listed a process of the run under its pid on {uuid}"


def _foreign(inputs: AggregationInput, window: WindowResult, record: SamplerRecord) -> tuple[Check, ...]:
    """The check of runs on GPUs; method m1 had none."""
    name = CheckName.NO_FOREIGN_PROCESS
    leased = {device.uuid for device in inputs.devices if device.kind is DeviceKind.GPU}
    if not leased or inputs.method is MethodVersion.M1:
        return ()
    reported = sorted(leased & record.facts.keys())
    found = foreign_in_window(record, inputs.devices, window)
    reasons = [why for uuid in reported if (why := why_incomparable(record, uuid)) is not None]
    if found:
        return (Check(name=name, passed=False, detail=f"{len({one.pid for one in found})} in the window"),)
    if len(reported) < len(leased):
        return (Check(name=name, passed=None, detail="the processes on a GPU were not listed"),)
    if reasons:
        return (Check(name=name, passed=None, detail="; ".join(reasons)),)
    detail = f"none at looks about once a second on {len(leased)} GPUs; shorter visits go unseen"
    return (Check(name=name, passed=True, detail=detail),)


def repeated_devices(inputs: AggregationInput) -> tuple[str, ...]:
    """Return the UUIDs that were leased more than once."""
    return tuple(uuid for uuid, times in Counter(device.uuid for device in inputs.devices).items() if times > 1)


def engine_versions(ranks: Collection[str], summaries: Summaries) -> Mapping[str, str]:
    """Return the engine with its version by rank, for the ranks that reported it."""
    reported = {rank: summaries.get(rank, {}).get("engine") for rank in ranks}
    return {rank: engine for rank, engine in reported.items() if isinstance(engine, str)}


def _processes(inputs: AggregationInput, missing: Sequence[MissingPart]) -> Check:
    seen = {view.process for view in inputs.held if view.chunks} | set(inputs.summaries)
    absent = {part.process for part in missing if part.what == "stream"} | (set(inputs.processes) - seen)
    if absent:
        detail = f"streams of {', '.join(sorted(absent))} are missing"
    else:
        detail = f"all of {', '.join(inputs.processes)}"
    return Check(name=CheckName.PROCESSES_PRESENT, passed=not absent, detail=detail)


def _nothing_missing(name: CheckName, missing: Sequence[MissingPart], what: str, complete: str) -> Check:
    parts = [part for part in missing if part.what == what]
    return Check(name=name, passed=not parts, detail=f"without {'; '.join(map(str, parts))}" if parts else complete)


def _devices(inputs: AggregationInput) -> Check:
    if not inputs.devices:
        return Check(name=CheckName.DEVICES_DISTINCT, passed=None, detail="no device was leased")
    repeated = repeated_devices(inputs)
    detail = f"{', '.join(repeated)} more than once" if repeated else f"{len(inputs.devices)} different"
    return Check(name=CheckName.DEVICES_DISTINCT, passed=not repeated, detail=detail)


def _engine(inputs: AggregationInput) -> Check:
    versions = engine_versions(inputs.ranks, inputs.summaries)
    engines = sorted(set(versions.values()))
    unreported = [rank for rank in inputs.ranks if rank not in versions]
    if len(engines) > 1:
        passed, detail = False, "; ".join(f"{rank} ran {engine}" for rank, engine in versions.items())
    elif unreported:
        passed, detail = None, f"{', '.join(unreported)} did not report the engine's version"
    else:
        passed, detail = True, f"{len(versions)} ran {engines[0]}"
    return Check(name=CheckName.ONE_ENGINE_VERSION, passed=passed, detail=detail)
