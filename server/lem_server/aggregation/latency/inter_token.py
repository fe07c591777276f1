"""Computes inter-token latencies from token times, grouped by request without a loop over tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lem_domain.evidence.streams import StreamName
from lem_server.aggregation.energy.traces import Interval
from lem_server.aggregation.errors import EvidenceInvalid
from lem_server.aggregation.evidence_reader import EvidenceReader, IntArray, integers
from lem_server.aggregation.work.requests import RankRequests


class TokenIntervals(NamedTuple):
    """The inter-token latencies of one rank, and how its token times match its requests."""

    itl_ns: IntArray
    miscounted: int
    """Finished requests whose number of token times differs from their generated tokens."""
    stray: int
    """Token times of unknown requests."""
    in_span: int
    """Tokens of finished requests with a time in the span that was asked for, its begin excluded."""


def read_intervals(reader: EvidenceReader, requests: RankRequests, span: Interval | None = None) -> TokenIntervals:
    """Read the ITL values of one rank's finished requests in ns: `time[i + 1] - time[i]` within a request.

    n tokens give n - 1 values; tokens of one speculative step share a time and give zeros. Around a missing token there
    is no value instead of a wrong one.

    Raises:
        EvidenceInvalid: a token is recorded twice, or a request's token times run backwards.
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    table = reader.read(requests.process, StreamName.TOKENS, ("request_id", "index", "time_ns"))
    request_id, index, time_ns = (integers(table, name) for name in ("request_id", "index", "time_ns"))
    return intervals(requests, request_id, index, time_ns, span)


def intervals(
    requests: RankRequests, request_id: IntArray, index: IntArray, time_ns: IntArray, span: Interval | None = None
) -> TokenIntervals:
    """Compute the ITL values from equally long columns, one entry per token, in any order."""
    empty = np.empty(0, dtype=np.int64)
    if len(requests) == 0 or len(request_id) == 0:
        expected = int((requests.finished & (requests.generated_tokens > 0)).sum())
        return TokenIntervals(empty, expected, len(request_id), 0)
    if int(index.min()) < 0:
        raise EvidenceInvalid(
            f"a token of {requests.process} has a negative index; report this as a defect of the backend."
        )
    position, known = _positions(requests.request_id, request_id)
    counts = np.bincount(position[known], minlength=len(requests))
    miscounted = int((requests.finished & (counts != requests.generated_tokens)).sum())
    wanted = known & requests.finished[position]
    if not wanted.all():
        position, index, time_ns = position[wanted], index[wanted], time_ns[wanted]
    if len(position) == 0:
        return TokenIntervals(empty, miscounted, int((~known).sum()), 0)
    # One number per token that sorts by request and index. The stride leaves a gap after each request, so that only
    # neighbours within one request differ by exactly 1.
    key = position * (int(index.max()) + 2) + index
    steps = np.diff(key)
    if (steps <= 0).any():
        order = np.argsort(key)
        time_ns, steps = time_ns[order], np.diff(key[order])
        if (steps == 0).any():
            raise EvidenceInvalid(
                f"a token of {requests.process} is recorded twice; report this as a defect of the backend."
            )
    itl_ns = np.diff(time_ns)[steps == 1]
    if len(itl_ns) and int(itl_ns.min()) < 0:
        raise EvidenceInvalid(
            f"token times of {requests.process} run backwards; report this as a defect of the backend."
        )
    in_span = 0 if span is None else int(((time_ns > span.begin_ns) & (time_ns <= span.end_ns)).sum())
    return TokenIntervals(itl_ns, miscounted, int((~known).sum()), in_span)


def _positions(
    known_ids: IntArray, request_id: IntArray
) -> tuple[IntArray, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Return the position of each token's request in the sorted `known_ids`, and whether it is there."""
    first = int(known_ids[0])
    if int(known_ids[-1]) - first + 1 == len(known_ids):  # numbered without a gap, as LEM's workers do
        position = request_id - first
    else:
        position = np.searchsorted(known_ids, request_id).astype(np.int64)
    np.clip(position, 0, len(known_ids) - 1, out=position)
    return position, known_ids[position] == request_id
