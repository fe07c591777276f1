"""The checks that a result reports, passed or not: what was looked at, and what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from lem_domain.results.run import Check, CheckName, WindowResult
from lem_server.aggregation.errors import MissingPart
from lem_server.aggregation.findings.work import LOW_OVERLAP
from lem_server.aggregation.inputs import AggregationInput, Summaries


def checks_of(inputs: AggregationInput, missing: Sequence[MissingPart], window: WindowResult) -> tuple[Check, ...]:
    """All of them, in one order; something is missing only where partial evidence is allowed.

    A chunk of another digest, or another chunk than the manifest's, is refused before there is a result.
    """
    return (
        _processes(inputs, missing),
        _nothing_missing(CheckName.CHUNKS_CONTIGUOUS, missing, "chunks", "no number is missing in any stream"),
        _nothing_missing(
            CheckName.COMPLETION_MARKERS, missing, "completion_marker", f"all of {', '.join(inputs.processes)}"
        ),
        Check(
            name=CheckName.DIGESTS_WHOLE,
            passed=True,
            detail="what was read has the SHA-256 that was recorded when it came"
            + (
                f", and {len(inputs.manifest)} streams that of the manifest"
                if inputs.manifest
                else "; no manifest came"
            ),
        ),
        Check(
            name=CheckName.WINDOWS_OVERLAP,
            passed=window.overlap >= LOW_OVERLAP,
            detail=f"{window.processes} processes were at work together for {window.overlap:.1%} of the window",
        ),
        _devices(inputs),
        _engine(inputs),
    )


def repeated_devices(inputs: AggregationInput) -> tuple[str, ...]:
    """UUIDs that were leased more than once."""
    return tuple(uuid for uuid, times in Counter(device.uuid for device in inputs.devices).items() if times > 1)


def told_engines(ranks: Collection[str], summaries: Summaries) -> Mapping[str, str]:
    """The engine with its version, by rank, of those that told it."""
    told = {rank: summaries.get(rank, {}).get("engine") for rank in ranks}
    return {rank: engine for rank, engine in told.items() if isinstance(engine, str)}


def _processes(inputs: AggregationInput, missing: Sequence[MissingPart]) -> Check:
    seen = {view.process for view in inputs.held if view.chunks} | set(inputs.summaries)
    absent = {part.process for part in missing if part.what == "stream"} | (set(inputs.processes) - seen)
    if absent:
        detail = f"streams of {', '.join(sorted(absent))} are missing"
    else:
        detail = f"all of {', '.join(inputs.processes)}"
    return Check(name=CheckName.PROCESSES_PRESENT, passed=not absent, detail=detail)


def _nothing_missing(name: CheckName, missing: Sequence[MissingPart], what: str, whole: str) -> Check:
    parts = [part for part in missing if part.what == what]
    return Check(name=name, passed=not parts, detail=f"without {'; '.join(map(str, parts))}" if parts else whole)


def _devices(inputs: AggregationInput) -> Check:
    if not inputs.devices:
        return Check(name=CheckName.DEVICES_DISTINCT, passed=None, detail="no device was leased")
    repeated = repeated_devices(inputs)
    detail = f"{', '.join(repeated)} more than once" if repeated else f"{len(inputs.devices)} different"
    return Check(name=CheckName.DEVICES_DISTINCT, passed=not repeated, detail=detail)


def _engine(inputs: AggregationInput) -> Check:
    told = told_engines(inputs.ranks, inputs.summaries)
    engines = sorted(set(told.values()))
    silent = [rank for rank in inputs.ranks if rank not in told]
    if len(engines) > 1:
        passed, detail = False, "; ".join(f"{rank} ran {engine}" for rank, engine in told.items())
    elif silent:
        passed, detail = None, f"{', '.join(silent)} did not tell the engine's version"
    else:
        passed, detail = True, f"{len(told)} ran {engines[0]}"
    return Check(name=CheckName.ONE_ENGINE_VERSION, passed=passed, detail=detail)
