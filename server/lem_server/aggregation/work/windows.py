"""The measured window: per process from its requests, and the union over all processes."""

from __future__ import annotations

from collections.abc import Sequence

from lem_domain.results.run import WindowResult
from lem_server.aggregation.errors import EvidenceInvalid
from lem_server.aggregation.evidence_reader import NULL
from lem_server.aggregation.work.requests import RankRequests


def process_window(requests: RankRequests) -> tuple[int, int] | None:
    """Return (begin, end) of one process in ns: earliest release to latest last token (docs/measurement.md).

    Tokens of failed requests count. None if no request of the process got a token.
    """
    ends = requests.last_token_ns[requests.last_token_ns != NULL]
    if len(ends) == 0:
        return None
    return int(requests.released_ns.min()), int(ends.max())


def union_window(windows: Sequence[tuple[int, int]]) -> WindowResult:
    """Return the attempt's window from those of its processes, (begin, end) in ns each.

    It is from the earliest begin to the latest end; `overlap` is the time in which all processes worked ([latest begin,
    earliest end]) divided by the whole, 1 for a single process.

    Raises:
        EvidenceInvalid: there is no window, or it has no length.
    """
    if not windows:
        raise EvidenceInvalid("no request got a token, so there is no window; see the run's log.")
    begin, end = min(begin for begin, _ in windows), max(end for _, end in windows)
    if end <= begin:
        raise EvidenceInvalid("the measured window has no length; send more requests or longer ones.")
    shared = max(0, min(end for _, end in windows) - max(begin for begin, _ in windows))
    return WindowResult(
        begin_ns=begin,
        end_ns=end,
        duration_s=(end - begin) / 1e9,
        processes=len(windows),
        overlap=shared / (end - begin),
    )
