"""Checks that the evidence is complete: compares the manifest with what is stored, before a chunk is read."""

from __future__ import annotations

from lem_domain.evidence.streams import StreamManifest, StreamName, digest_of_digests
from lem_domain.wire.runs import StreamView
from lem_server.aggregation.errors import EvidenceInvalid, MissingPart
from lem_server.aggregation.inputs import AggregationInput, process_order

_StreamKey = tuple[str, StreamName]


def missing_parts(inputs: AggregationInput) -> tuple[MissingPart, ...]:
    """Return everything that is missing, ordered by process and stream.

    That is: the completion marker of an expected process, the `requests` stream of a rank, a stream of the manifest
    without any stored chunk, and single chunks (compared with the manifest, or with the highest stored number if there
    is no manifest).

    Raises:
        EvidenceInvalid: more is stored than the manifest lists, or the digests are not those of the manifest.
    """
    promised = {(entry.process, entry.stream): entry for entry in inputs.manifest}
    held = {(view.process, view.stream): view for view in inputs.held if view.chunks}
    _refuse_unpromised(promised, held)
    missing = [MissingPart("completion_marker", name) for name in inputs.processes if name not in inputs.summaries]
    wanted = {*promised, *held, *((rank, StreamName.REQUESTS) for rank in inputs.ranks)}
    for process, stream in wanted:
        view = held.get((process, stream))
        if view is None:
            missing.append(MissingPart("stream", process, stream.value))
            continue
        absent = _absent_seqs(view, promised.get((process, stream)))
        if absent:
            missing.append(MissingPart("chunks", process, stream.value, absent))
    return tuple(sorted(missing, key=lambda part: (process_order(part.process), part.stream or "")))


def _absent_seqs(view: StreamView, entry: StreamManifest | None) -> tuple[int, ...]:
    digests = {chunk.seq: chunk.sha256 for chunk in view.chunks}
    expected = entry.chunks if entry is not None else max(digests) + 1
    absent = tuple(seq for seq in range(expected) if seq not in digests)
    if absent or entry is None:
        return absent
    if digest_of_digests(digests[seq] for seq in range(expected)) != entry.sha256:
        raise EvidenceInvalid(
            f"the chunks of {view.stream.value} of {view.process} are not those of the attempt's manifest; "
            "run the experiment again."
        )
    return ()


def _refuse_unpromised(promised: dict[_StreamKey, StreamManifest], held: dict[_StreamKey, StreamView]) -> None:
    if not promised:
        return
    for (process, stream), view in sorted(held.items()):
        entry = promised.get((process, stream))
        extra = [chunk.seq for chunk in view.chunks if entry is None or chunk.seq >= entry.chunks]
        if extra:
            raise EvidenceInvalid(
                f"chunk {extra[0]} of {stream.value} of {process} is stored but not in the attempt's manifest; "
                "run the experiment again."
            )
