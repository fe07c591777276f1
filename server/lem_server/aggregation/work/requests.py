"""Reads the requests of one rank as columns, refuses contradictions, and sums the work over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lem_domain.evidence.streams import StreamName
from lem_domain.results.run import WorkResult
from lem_server.aggregation.errors import EvidenceInvalid
from lem_server.aggregation.evidence_reader import NULL, BoolArray, EvidenceReader, IntArray, integers

_COLUMNS = (
    "request_id",
    "prompt_index",
    "arrival_ns",
    "released_ns",
    "scheduled_ns",
    "first_token_ns",
    "last_token_ns",
    "prompt_tokens",
    "cached_prompt_tokens",
    "generated_tokens",
    "batch_id",
    "error",
)


@dataclass(frozen=True)
class RankRequests:
    """One rank's requests, ordered by id: equally long columns, times in ns, `NULL` for null.

    `released_ns` is the arrival if the evidence has no release.
    """

    process: str
    request_id: IntArray
    prompt_index: IntArray
    arrival_ns: IntArray
    released_ns: IntArray
    scheduled_ns: IntArray
    first_token_ns: IntArray
    last_token_ns: IntArray
    prompt_tokens: IntArray
    cached_prompt_tokens: IntArray
    generated_tokens: IntArray
    batch_id: IntArray
    finished: BoolArray
    first_error: str | None
    cut_outputs: int
    """Finished requests that ended at their most tokens."""

    def __len__(self) -> int:
        return len(self.request_id)


def read_requests(reader: EvidenceReader, process: str) -> RankRequests:
    """Read the requests of one rank; a request without an error has finished.

    Raises:
        EvidenceInvalid: a request is recorded twice, its times run backwards, a count is negative, or tokens have no
            time.
        EvidenceCorrupt, EvidenceMissing: see `EvidenceReader.read`.
    """
    table = reader.read(process, StreamName.REQUESTS, (*_COLUMNS, "finish_reason"))
    ids = integers(table, "request_id")
    order = np.argsort(ids, kind="stable")
    failed = table.column("error").is_valid().to_numpy()
    errors = table.column("error").drop_null()
    reasons = table.column("finish_reason").to_numpy()[~failed]
    columns = {name: integers(table, name)[order] for name in _COLUMNS if name != "error"}
    columns["released_ns"] = np.where(columns["released_ns"] == NULL, columns["arrival_ns"], columns["released_ns"])
    requests = RankRequests(
        process=process,
        **columns,
        finished=~failed[order],
        first_error=errors[0].as_py() if len(errors) else None,
        cut_outputs=int((reasons == "length").sum()),
    )
    _refuse_contradictions(requests)
    return requests


def work_result(ranks: Sequence[RankRequests]) -> WorkResult:
    """Sum the work over all ranks.

    `requests` counts all released requests and `failed_requests` those with an error; tokens are those of finished
    requests. Cached prompt tokens are null if one request does not report them: a partial sum would look complete.
    """
    cached: int | None = 0
    for rank in ranks:
        values = rank.cached_prompt_tokens[rank.finished]
        cached = None if cached is None or bool((values == NULL).any()) else cached + int(values.sum())
    return WorkResult(
        requests=sum(len(rank) for rank in ranks),
        failed_requests=sum(int((~rank.finished).sum()) for rank in ranks),
        prompt_tokens=sum(int(rank.prompt_tokens[rank.finished].sum()) for rank in ranks),
        cached_prompt_tokens=cached if any(rank.finished.any() for rank in ranks) else None,
        generated_tokens=sum(int(rank.generated_tokens[rank.finished].sum()) for rank in ranks),
    )


def _refuse_contradictions(requests: RankRequests) -> None:
    first, last = requests.first_token_ns, requests.last_token_ns
    arrival, scheduled = requests.arrival_ns, requests.scheduled_ns
    has_first, has_last = first != NULL, last != NULL
    twice = np.append(np.diff(requests.request_id) == 0, False)[: len(requests)]
    problems: tuple[tuple[BoolArray, str], ...] = (
        (twice, "is recorded twice"),
        (has_first & (first < arrival), "has its first token before its arrival"),
        (has_last & (last < arrival), "has its last token before its arrival"),
        (has_first & has_last & (last < first), "has its last token before its first"),
        ((scheduled != NULL) & (scheduled < arrival), "was scheduled before its arrival"),
        ((requests.prompt_tokens < 0) | (requests.generated_tokens < 0), "has a negative number of tokens"),
        (
            requests.finished & (requests.generated_tokens > 0) & ~has_last,
            "finished with tokens but has no time of its last token",
        ),
    )
    for mask, problem in problems:
        if mask.any():
            request_id = requests.request_id[int(np.argmax(mask))]
            raise EvidenceInvalid(
                f"request {request_id} of {requests.process} {problem}; correct the backend and run again."
            )
