"""What is missing or changed is noticed, and the same evidence gives the same bytes."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import pytest

from factories.evidence import Evidence, MadeChunk, Stored, gpu
from lem_domain.evidence.streams import StreamName
from lem_domain.wire.runs import StreamView
from lem_server.aggregation.errors import EvidenceCorrupt, EvidenceInvalid, EvidenceMissing, MissingPart, ranges_text
from lem_server.aggregation.identity import (
    aggregate_key,
    canonical_bytes,
    evidence_digest,
    inputs_digest,
)
from lem_server.aggregation.inputs import AggregationInput
from lem_server.aggregation.process_pool import Aggregate
from lem_server.aggregation.result import aggregate


def digest_of(streams: Iterable[StreamView]) -> str:
    """The digest of the chunks that the server has, before any is read."""
    return evidence_digest(
        (view.process, view.stream.value, chunk.seq, chunk.sha256) for view in streams for chunk in view.chunks
    )


def evidence() -> Evidence:
    """Two ranks and a sampler, every stream, several chunks each."""
    made = Evidence(processes=("rank-0", "rank-1", "sampler"), chunk_rows=20)
    for rank in range(2):
        for number in range(30):
            arrival = number * 0.4 + rank * 0.01
            made.request(number, arrival, [arrival + 0.05 * step for step in range(1, 8)], rank=rank, scheduled=arrival)
        made.phase(f"rank-{rank}", "measure", "begin", 0)
        made.phase(f"rank-{rank}", "measure", "end", 13)
        # The last word counts, so the order of chunks is the order of time.
        made.event(f"rank-{rank}", "warmup", '{"converged": false, "requests": 5, "cv": 0.2}')
        for _ in range(30):
            made.event(f"rank-{rank}", "mark", None)
        made.event(f"rank-{rank}", "warmup", '{"converged": true, "requests": 6, "cv": 0.02}')
    made.power([number * 0.1 - 1 for number in range(150)], watts=lambda t: 100 + t, joules=lambda t: 100 * t + 500)
    made.host_power("package", [number * 0.1 - 1 for number in range(150)], joules=lambda t: 50 * t + 100)
    return made


@pytest.fixture
def stored() -> Stored:
    return evidence().stored()


def bytes_of(stored: Stored) -> bytes:
    return canonical_bytes(aggregate(stored.inputs, stored.source))


def test_the_same_evidence_gives_the_same_bytes(stored: Stored) -> None:
    assert bytes_of(stored) == bytes_of(stored) == bytes_of(evidence().stored())


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_arrival_does_not_matter(stored: Stored, seed: int) -> None:
    shuffled = list(stored.chunks)
    random.Random(seed).shuffle(shuffled)
    views = list(stored.inputs.held)
    random.Random(seed).shuffle(views)
    held = tuple(view.model_copy(update={"chunks": tuple(reversed(view.chunks))}) for view in views)
    other = Stored(replace(stored.inputs, held=held), tuple(shuffled))
    assert bytes_of(other) == bytes_of(stored)


def test_how_rows_were_cut_into_chunks_changes_only_digests(stored: Stored) -> None:
    other = evidence()
    other.chunk_rows = 7
    cut = other.stored()
    left, right = (aggregate(made.inputs, made.source).model_dump() for made in (stored, cut))
    for digest in ("evidence_sha256", "inputs_sha256"):
        assert left.pop(digest) != right.pop(digest)
    assert left == right


def test_the_result_carries_the_digest_of_what_is_held(stored: Stored) -> None:
    result = aggregate(stored.inputs, stored.source)
    assert result.evidence_sha256 == digest_of(stored.inputs.held)
    lines = [(chunk.process, chunk.stream.value, chunk.seq, chunk.sha256) for chunk in stored.chunks]
    assert result.evidence_sha256 == evidence_digest(reversed(lines))
    assert result.evidence_sha256 != evidence_digest(lines[1:])


def test_the_key_depends_on_all_that_a_result_is_computed_from_and_by_what(stored: Stored) -> None:
    result = aggregate(stored.inputs, stored.source)
    keys = {
        aggregate_key(result.model_copy(update=change))
        for change in (
            {},
            {"evidence_sha256": "b" * 64},
            {"method": "m1"},
            {"parameters": {"allow_partial": True}},
            {"inputs_sha256": "b" * 64},
            {"computed_by": "LEM 99"},
        )
    }
    assert len(keys) == 6
    assert Aggregate.of(aggregate(stored.inputs, stored.source)).key.hex() == aggregate_key(result)
    assert aggregate_key(result) == aggregate_key(result.model_copy(update={"findings": ()}))


def test_every_input_that_is_no_chunk_is_in_the_key(stored: Stored) -> None:
    inputs = stored.inputs
    config = inputs.config.model_copy(update={"allow": ("precision",)})
    summaries = {**inputs.summaries, "rank-1": {**inputs.summaries["rank-1"], "outputs_sha256": "a" * 64}}
    others: dict[str, Any] = {
        "run_id": "run_" + "3" * 32,
        "attempt_id": "att_" + "3" * 32,
        "config": config,
        "devices": (gpu(1),),
        "processes": (*inputs.processes, "rank-2"),
        "manifest": (),
        "summaries": summaries,
        "effective_config": None,
    }
    read = {field.name for field in fields(AggregationInput)} - {"held", "parameters", "method"}
    assert set(others) == read, "held is in evidence_sha256, parameters and method are in the key themselves"
    digests = {
        inputs_digest(inputs),
        *(inputs_digest(replace(inputs, **{name: other})) for name, other in others.items()),
    }
    assert len(digests) == len(others) + 1
    # What differs only in a completion marker gives another result, which must not contradict this one.
    changed = replace(inputs, summaries=summaries)
    assert aggregate_key(aggregate(changed, stored.source)) != aggregate_key(aggregate(inputs, stored.source))


@pytest.mark.parametrize("stream", list(StreamName))
@pytest.mark.parametrize("partial", [False, True])
def test_a_flipped_byte_in_any_stream_is_noticed(stored: Stored, stream: StreamName, partial: bool) -> None:
    victim = [chunk for chunk in stored.chunks if chunk.stream is stream][-1]
    body = bytearray(victim.body)
    body[len(body) // 2] ^= 1
    inputs = evidence().stored(allow_partial=partial).inputs

    def source(process: str, name: StreamName) -> list[tuple[int, bytes]]:
        return [
            (chunk.seq, bytes(body) if chunk is victim else chunk.body)
            for chunk in stored.chunks
            if (chunk.process, chunk.stream) == (process, name)
        ]

    with pytest.raises(EvidenceCorrupt) as raised:
        aggregate(inputs, source)
    assert (raised.value.process, raised.value.stream, raised.value.seq) == (victim.process, stream.value, victim.seq)


def test_missing_chunks_are_listed_exactly(stored: Stored) -> None:
    holed = stored.without("rank-1", StreamName.TOKENS, 2, 3, 7).without("sampler", StreamName.POWER, 0)
    holed = holed.without("rank-0", StreamName.PHASES)
    with pytest.raises(EvidenceMissing) as raised:
        aggregate(holed.inputs, holed.source)
    assert raised.value.missing == (
        MissingPart("stream", "rank-0", "phases"),
        MissingPart("chunks", "rank-1", "tokens", (2, 3, 7)),
        MissingPart("chunks", "sampler", "power", (0,)),
    )
    assert "tokens of rank-1: chunks 2-3, 7" in str(raised.value)


def test_a_process_without_completion_marker_is_missing(stored: Stored) -> None:
    summaries = {name: summary for name, summary in stored.inputs.summaries.items() if name != "rank-1"}
    with pytest.raises(EvidenceMissing, match="the completion marker of rank-1"):
        aggregate(replace(stored.inputs, summaries=summaries), stored.source)


def test_an_expected_rank_that_left_nothing_is_missing(stored: Stored) -> None:
    inputs = replace(stored.inputs, processes=(*stored.inputs.processes, "rank-2"))
    with pytest.raises(EvidenceMissing) as raised:
        aggregate(inputs, stored.source)
    assert raised.value.missing == (
        MissingPart("completion_marker", "rank-2"),
        MissingPart("stream", "rank-2", "requests"),
    )


def test_allow_partial_computes_and_marks() -> None:
    holed = evidence().stored(allow_partial=True).without("rank-1", StreamName.TOKENS, 1)
    result = aggregate(holed.inputs, holed.source)
    assert result.verdict == "invalid"
    missing = [finding for finding in result.findings if finding.code == "missing_evidence"]
    assert missing[0].numbers == {"parts": 1, "chunks": 1}
    assert "tokens of rank-1: chunks 1" in missing[0].message
    assert result.speed.itl_ms.max == pytest.approx(50)  # no difference was taken across the hole
    assert result.parameters == {"allow_partial": True}
    assert result.evidence_sha256 == digest_of(holed.inputs.held)


def test_allow_partial_without_a_whole_rank() -> None:
    made = evidence().stored(allow_partial=True)
    inputs = replace(made.inputs, processes=(*made.inputs.processes, "rank-2"), manifest=())
    result = aggregate(inputs, made.source)
    assert result.verdict == "invalid"
    assert result.window.processes == 2


def test_allow_partial_without_power_gives_null_energy() -> None:
    holed = evidence().stored(allow_partial=True).without("sampler", StreamName.POWER)
    assert aggregate(holed.inputs, holed.source).energy.total.joules is None


def test_a_chunk_that_vanished_after_it_was_recorded_is_missing(stored: Stored) -> None:
    def source(process: str, stream: StreamName) -> list[tuple[int, bytes]]:
        return [(seq, body) for seq, body in stored.source(process, stream) if (stream, seq) != (StreamName.PHASES, 0)]

    with pytest.raises(EvidenceMissing, match="phases of rank-0: chunks 0"):
        aggregate(stored.inputs, source)
    partial = evidence().stored(allow_partial=True)
    result = aggregate(partial.inputs, source)
    assert result.verdict == "invalid"
    assert result.evidence_sha256 != digest_of(partial.inputs.held)


def test_other_chunks_than_the_manifest_s_are_refused(stored: Stored) -> None:
    (first, *rest) = stored.inputs.manifest
    forged = replace(stored.inputs, manifest=(first.model_copy(update={"sha256": "0" * 64}), *rest))
    with pytest.raises(EvidenceInvalid, match="not those of the attempt's manifest"):
        aggregate(forged, stored.source)
    with pytest.raises(EvidenceInvalid, match="not in the attempt's manifest"):
        aggregate(replace(stored.inputs, manifest=tuple(rest)), stored.source)


def test_a_whole_chunk_that_is_no_arrow_stream_is_refused(stored: Stored) -> None:
    chunks = [
        MadeChunk(chunk.process, chunk.stream, chunk.seq, chunk.rows, b"not arrow")
        if (chunk.process, chunk.stream, chunk.seq) == ("sampler", StreamName.POWER, 0)
        else chunk
        for chunk in stored.chunks
    ]
    made = evidence()
    made.chunks = lambda: chunks  # type: ignore[method-assign]
    forged = made.stored()
    with pytest.raises(EvidenceInvalid, match="chunk 0 of power of sampler"):
        aggregate(forged.inputs, forged.source)


def test_power_of_a_device_that_was_not_leased_is_refused() -> None:
    made = evidence()
    made.power([0, 1], watts=lambda _: 1, device=3)
    forged = made.stored()
    with pytest.raises(EvidenceInvalid, match="device 3"):
        aggregate(forged.inputs, forged.source)


def test_numbers_are_joined_to_ranges() -> None:
    assert ranges_text([5, 3, 4, 0, 9, 3]) == "0, 3-5, 9"


def test_errors_travel_between_processes() -> None:
    missing = pickle.loads(pickle.dumps(EvidenceMissing([MissingPart("chunks", "rank-0", "tokens", (1,))])))
    assert missing.missing == (MissingPart("chunks", "rank-0", "tokens", (1,)),)
    corrupt = pickle.loads(pickle.dumps(EvidenceCorrupt("rank-0", "tokens", 3)))
    assert (corrupt.process, corrupt.stream, corrupt.seq) == ("rank-0", "tokens", 3)
