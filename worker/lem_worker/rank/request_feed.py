"""The interface between a continuously batching engine's loop and the requests that arrive.

Such an engine owns its loop: it takes arrived requests when it can, and records when each was scheduled, got tokens and
ended. A loop of steps and a loop of asynchronous streams use the feed in the same way:

    while True:
        for request in feed.take(): …                     # hand it to the engine
        if nothing_is_in_flight:
            if feed.over: return
            feed.wait()                                   # or: await asyncio.wait(streams, timeout=feed.wait_s())
            continue
        …                                                   # one step, or the first stream with news
        feed.between_steps()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.traffic import Arrivals

_DRAIN_NS = 500_000_000
_DRAIN_TOKENS = 32_768
"""A drain of so many tokens takes a few milliseconds."""


class RequestFeed:
    """The requests of one phase; records each release as the engine takes it."""

    def __init__(
        self, arrivals: Arrivals, recorder: Recorder, flush_evidence: Callable[[], None] = lambda: None
    ) -> None:
        self._arrivals = arrivals
        self._recorder = recorder
        self._flush_evidence = flush_evidence
        self._ended_before = recorder.requests_ended
        self._drain_due_ns = recorder.clock() + _DRAIN_NS
        self._waited = False

    def take(self) -> Sequence[Request]:
        """The requests that have arrived since the last call.

        A release to a busy engine is late because the engine is busy. An engine that waited should take a request on
        time, so after `wait` or `wait_s` the release is recorded separately where it is later than the arrival.
        """
        ended = self._recorder.requests_ended
        if ended != self._ended_before:
            self._arrivals.ended(ended - self._ended_before)
            self._ended_before = ended
        now_ns = self._recorder.clock()
        taken = self._arrivals.take(now_ns)
        for request, arrival_ns in taken:
            late = self._waited and now_ns > arrival_ns
            self._recorder.release([request], arrival_ns, released_ns=now_ns if late else None)
        if taken:
            self._waited = False
        return [arrival.request for arrival in taken]

    @property
    def over(self) -> bool:
        """Whether no more requests arrive; exact only after `take`."""
        return self._arrivals.over

    def wait_s(self) -> float | None:
        """Seconds until the next arrival; None where it depends on requests in flight, or none follows."""
        self._waited = True
        next_ns = self._arrivals.next_ns()
        return None if next_ns is None else max(0, next_ns - self._recorder.clock()) / 1e9

    def wait(self) -> None:
        """Sleep until the next arrival; for an engine with nothing in flight."""
        seconds = self.wait_s()
        if seconds:
            self._drain()
            time.sleep(seconds)

    def between_steps(self) -> None:
        """Drain the recorder where that is due; costs little where it is not."""
        if self._recorder.undrained >= _DRAIN_TOKENS or self._recorder.clock() >= self._drain_due_ns:
            self._drain()

    def _drain(self) -> None:
        self._recorder.drain()
        self._flush_evidence()
        self._drain_due_ns = self._recorder.clock() + _DRAIN_NS
