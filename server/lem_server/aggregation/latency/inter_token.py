"""Computes inter-token latencies from token times, grouped by request without a loop over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lem_domain.evidence.streams import StreamName
from lem_domain.results.method import MethodVersion
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


class TokenTimes(NamedTuple):
    """Tokens in order of request and index: the request's position among those of its rank, index, and time in ns."""

    position: IntArray
    index: IntArray  # type: ignore[assignment]  # the column's name hides tuple.index
    time_ns: IntArray


def silent_ranks(reader: EvidenceReader, ranks: Sequence[RankRequests], method: MethodVersion) -> str | None:
    """Return why the token times are not known if a rank that generated tokens recorded none.

    Under `m1` also if a rank's finished requests have no token.
    """
    recorded = set(reader.processes_with(StreamName.TOKENS))
    silent = [rank.process for rank in ranks if rank.process not in recorded and _has_tokens(rank, method)]
    return f"no token times were recorded by {', '.join(silent)}" if silent else None


def _has_tokens(rank: RankRequests, method: MethodVersion) -> bool:
    finished = rank.finished if method is MethodVersion.M1 else rank.finished & (rank.generated_tokens > 0)
    return bool(finished.any())


def read_token_times(reader: EvidenceReader, requests: RankRequests) -> TokenTimes:
    """Read the token times of one rank, those of unknown requests left out.

    Raises:
        EvidenceInvalid: a token is recorded twice or has a negative index, or a request's token times run backwards.
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    table = reader.read(requests.process, StreamName.TOKENS, ("request_id", "index", "time_ns"))
    request_id, index, time_ns = (integers(table, name) for name in ("request_id", "index", "time_ns"))
    if len(requests) == 0 or len(request_id) == 0:
        return TokenTimes(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    _refuse_negative(requests.process, index)
    position, known = _positions(requests.request_id, request_id)
    if not known.all():
        position, index, time_ns = position[known], index[known], time_ns[known]
    if len(position) == 0:
        return TokenTimes(position, index, time_ns)
    order, _ = _order(requests.process, position, index)
    if order is not None:
        position, index, time_ns = position[order], index[order], time_ns[order]
    if ((np.diff(position) == 0) & (np.diff(time_ns) < 0)).any():
        raise _runs_backwards(requests.process)
    return TokenTimes(position, index, time_ns)


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
    _refuse_negative(requests.process, index)
    position, known = _positions(requests.request_id, request_id)
    counts = np.bincount(position[known], minlength=len(requests))
    miscounted = int((requests.finished & (counts != requests.generated_tokens)).sum())
    wanted = known & requests.finished[position]
    if not wanted.all():
        position, index, time_ns = position[wanted], index[wanted], time_ns[wanted]
    if len(position) == 0:
        return TokenIntervals(empty, miscounted, int((~known).sum()), 0)
    order, steps = _order(requests.process, position, index)
    if order is not None:
        time_ns = time_ns[order]
    itl_ns = np.diff(time_ns)[steps == 1]
    if len(itl_ns) and int(itl_ns.min()) < 0:
        raise _runs_backwards(requests.process)
    in_span = 0 if span is None else int(((time_ns > span.begin_ns) & (time_ns <= span.end_ns)).sum())
    return TokenIntervals(itl_ns, miscounted, int((~known).sum()), in_span)


def _order(process: str, position: IntArray, index: IntArray) -> tuple[IntArray | None, IntArray]:
    """Return the order of the tokens by request and index (None if they have it), and in it the step to each next one.

    The step is 1 from one token of a request to its successive one.
    """
    # One number per token that sorts by request and index. The stride leaves a gap after each request, so that only
    # neighbours within one request differ by exactly 1.
    key = position * (int(index.max()) + 2) + index
    steps: IntArray = np.diff(key)
    if not (steps <= 0).any():
        return None, steps
    order = np.argsort(key)
    steps = np.diff(key[order])
    if (steps == 0).any():
        raise EvidenceInvalid(f"a token of {process} is recorded twice; report this as a defect of the backend.")
    return order, steps


def _refuse_negative(process: str, index: IntArray) -> None:
    if int(index.min()) < 0:
        raise EvidenceInvalid(f"a token of {process} has a negative index; report this as a defect of the backend.")


def _runs_backwards(process: str) -> EvidenceInvalid:
    return EvidenceInvalid(f"token times of {process} run backwards; report this as a defect of the backend.")


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
