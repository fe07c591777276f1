"""What is stored against what was promised, chunk by chunk; and foreign processes at the edges of the window."""

from __future__ import annotations

from dataclasses import replace

import pytest

from factories.evidence import Evidence, Stored, gpu
from lem_domain.evidence.streams import StreamName
from lem_server.aggregation.checks.completeness import missing_parts
from lem_server.aggregation.checks.reported import foreign_in_window, repeated_devices, why_incomparable
from lem_server.aggregation.energy.sampler_record import DeviceFacts, ForeignProcess, SamplerRecord
from lem_server.aggregation.energy.traces import Span
from lem_server.aggregation.errors import EvidenceInvalid, MissingPart


@pytest.fixture
def stored() -> Stored:
    """Three chunks of power."""
    made = Evidence(chunk_rows=2)
    made.request(0, 0.0, [1.0], record_tokens=False)
    made.power([0.0, 1.0, 2.0, 3.0, 4.0], watts=lambda _: 100.0)
    return made.stored()


def absent(of: Stored) -> list[tuple[int, ...]]:
    return [part.seqs for part in missing_parts(of.inputs) if part.what == "chunks"]


def promised(of: Stored, **changes: object) -> Stored:
    manifest = [
        entry.model_copy(update=changes) if entry.stream is StreamName.POWER else entry for entry in of.inputs.manifest
    ]
    return replace(of, inputs=replace(of.inputs, manifest=tuple(manifest)))


def test_the_manifest_says_how_many_chunks_there_are(stored: Stored) -> None:
    assert missing_parts(stored.inputs) == ()
    assert absent(stored.without("sampler", StreamName.POWER, 2)) == [(2,)]
    assert absent(stored.without("sampler", StreamName.POWER, 0, 2)) == [(0, 2)]
    assert MissingPart("stream", "sampler", "power") in missing_parts(
        stored.without("sampler", StreamName.POWER).inputs
    )


def test_without_a_manifest_the_highest_chunk_is_the_last(stored: Stored) -> None:
    for seqs, found in (((2,), []), ((1,), [(1,)]), ((0, 1), [(0, 1)])):
        held = stored.without("sampler", StreamName.POWER, *seqs)
        assert absent(replace(held, inputs=replace(held.inputs, manifest=()))) == found


@pytest.mark.parametrize(("chunks", "first"), [(2, 2), (1, 1)])
def test_more_than_was_promised_is_refused(stored: Stored, chunks: int, first: int) -> None:
    with pytest.raises(EvidenceInvalid, match=f"chunk {first} of power of sampler"):
        missing_parts(promised(stored, chunks=chunks).inputs)


def test_other_digests_than_promised_are_refused(stored: Stored) -> None:
    with pytest.raises(EvidenceInvalid, match="power of sampler"):
        missing_parts(promised(stored, sha256="0" * 64).inputs)


def foreign(seen: int, gone: int | None, device: int = 0) -> ForeignProcess:
    return ForeignProcess.model_validate({"device_index": device, "pid": 1, "time_ns": seen, "gone_ns": gone})


@pytest.mark.parametrize(
    ("seen", "gone", "inside"),
    [(0, 10, False), (0, 11, True), (19, None, True), (20, None, False), (12, 13, True), (25, None, False)],
)
def test_a_foreign_process_counts_from_10_to_20(seen: int, gone: int | None, inside: bool) -> None:
    record = SamplerRecord(foreign_processes=(foreign(seen, gone),))
    assert len(foreign_in_window(record, (gpu(0),), Span(10, 20))) == inside


@pytest.mark.parametrize(("device", "counts"), [(-1, True), (0, False), (1, True), (2, True)])
def test_pids_are_compared_by_the_device_of_the_process(device: int, counts: bool) -> None:
    """On device 0 they can't be; one that is not among the leased has no facts."""
    facts = {"GPU-0": DeviceFacts(uuid="GPU-0", own_processes_listed=False)}
    record = SamplerRecord(foreign_processes=(foreign(12, None, device),), facts=facts)
    assert bool(foreign_in_window(record, (gpu(1), gpu(0))[::-1], Span(10, 20))) is counts


def test_why_pids_are_not_comparable() -> None:
    listed = {
        "A": DeviceFacts(uuid="A", own_processes_listed=False, own_pid_namespace=True),
        "B": DeviceFacts(uuid="B", own_processes_listed=False),
        "C": DeviceFacts(uuid="C", own_processes_listed=True, own_pid_namespace=True),
        "D": DeviceFacts(uuid="D"),
    }
    reasons = [why_incomparable(SamplerRecord(facts=listed), uuid) for uuid in "ABCDE"]
    assert ["container" in (why or "") for why in reasons] == [True, False, False, False, False]
    assert [why is None for why in reasons] == [False, False, True, True, True]


def test_devices_that_are_leased_twice(stored: Stored) -> None:
    devices = (gpu(0), gpu(1), gpu(0), gpu(2), gpu(2), gpu(2))
    assert repeated_devices(replace(stored.inputs, devices=devices)) == ("GPU-0", "GPU-2")
