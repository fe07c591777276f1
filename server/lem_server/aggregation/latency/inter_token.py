"""Inter-token latencies from the times of single tokens, grouped by request without a loop over tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lem_domain.evidence.streams import StreamName
from lem_server.aggregation.errors import EvidenceInvalid
from lem_server.aggregation.evidence_reader import EvidenceReader, IntArray, integers
from lem_server.aggregation.work.requests import RankRequests


class TokenIntervals(NamedTuple):
    """The inter-token latencies of one rank, and how well its token times fit its requests."""

    itl_ns: IntArray
    miscounted: int
    """Finished requests whose token times are not as many as their generated tokens."""
    stray: int
    """Token times that belong to no known request."""


def read_intervals(reader: EvidenceReader, requests: RankRequests) -> TokenIntervals:
    """ITL values of one rank in ns, for its finished requests: `time[i + 1] - time[i]` of one request.

    n tokens give n - 1 values; tokens of one speculative step share a time and give zeros. A token that is missing in
    between gives no value rather than a wrong one.

    Raises:
        EvidenceInvalid: a token stands there twice, or a request's token times run backwards.
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    table = reader.read(requests.process, StreamName.TOKENS, ("request_id", "index", "time_ns"))
    return intervals(requests, integers(table, "request_id"), integers(table, "index"), integers(table, "time_ns"))


def intervals(requests: RankRequests, request_id: IntArray, index: IntArray, time_ns: IntArray) -> TokenIntervals:
    """The same from equally long columns, one entry per token, in any order."""
    empty = np.empty(0, dtype=np.int64)
    if len(requests) == 0 or len(request_id) == 0:
        expected = int((requests.finished & (requests.generated_tokens > 0)).sum())
        return TokenIntervals(empty, expected, len(request_id))
    if int(index.min()) < 0:
        raise EvidenceInvalid(f"a token of {requests.process} has a negative index; correct what records it.")
    place, known = _places(requests.request_id, request_id)
    counts = np.bincount(place[known], minlength=len(requests))
    miscounted = int((requests.finished & (counts != requests.generated_tokens)).sum())
    wanted = known & requests.finished[place]
    if not wanted.all():
        place, index, time_ns = place[wanted], index[wanted], time_ns[wanted]
    if len(place) == 0:
        return TokenIntervals(empty, miscounted, int((~known).sum()))
    # One number per token that sorts by request and index. The stride leaves a hole after each request, so that only
    # neighbours within one request differ by exactly 1.
    key = place * (int(index.max()) + 2) + index
    steps = np.diff(key)
    if (steps <= 0).any():
        order = np.argsort(key)
        time_ns, steps = time_ns[order], np.diff(key[order])
        if (steps == 0).any():
            raise EvidenceInvalid(f"a token of {requests.process} stands there twice; correct what records it.")
    itl_ns = np.diff(time_ns)[steps == 1]
    if len(itl_ns) and int(itl_ns.min()) < 0:
        raise EvidenceInvalid(f"token times of {requests.process} run backwards; correct what records them.")
    return TokenIntervals(itl_ns, miscounted, int((~known).sum()))


def _places(known_ids: IntArray, request_id: IntArray) -> tuple[IntArray, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Where in the sorted `known_ids` each token's request stands, and whether it stands there at all."""
    first = int(known_ids[0])
    if int(known_ids[-1]) - first + 1 == len(known_ids):  # numbered without a hole, as our workers do
        place = request_id - first
    else:
        place = np.searchsorted(known_ids, request_id).astype(np.int64)
    np.clip(place, 0, len(known_ids) - 1, out=place)
    return place, known_ids[place] == request_id
