"""What an engine that batches continuously gets its requests from, and where its loop has a moment for the evidence.

Such an engine owns its loop: it takes what has arrived whenever it can, and tells the recorder itself when a request
was scheduled, when tokens came, and how it ended. A loop of steps and one of asynchronous streams use this alike:

    while True:
        for request in feed.take(): …                     # hand it to the engine
        if nothing_is_in_flight:
            if feed.over: return
            feed.wait()                                   # or: await asyncio.wait(streams, timeout=feed.wait_s())
            continue
        …                                                   # one step, or whatever stream says something first
        feed.between_steps()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lem_worker.rank.prompts import Request
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.traffic import Feed

_DRAIN_NS = 500_000_000
_DRAIN_TOKENS = 32_768
"""A drain of so many takes a few milliseconds."""


class RequestFeed:
    """The arrivals of one phase, told to the recorder as they are taken."""

    def __init__(self, feed: Feed, recorder: Recorder, between: Callable[[], None] = lambda: None) -> None:
        self._feed = feed
        self._recorder = recorder
        self._between = between
        self._told_ended = recorder.requests_ended
        self._drain_due_ns = recorder.clock() + _DRAIN_NS
        self._waited = False

    def take(self) -> Sequence[Request]:
        """What has arrived by now and was not taken yet.

        An engine that was at work when a request arrived could not have looked at it sooner; one that waited could, so
        after `wait` or `wait_s` the time of the hand-over is recorded where it is later than the arrival.
        """
        ended = self._recorder.requests_ended
        if ended != self._told_ended:
            self._feed.finished(ended - self._told_ended)
            self._told_ended = ended
        now_ns = self._recorder.clock()
        arrivals = self._feed.take(now_ns)
        for request, arrival_ns in arrivals:
            late = self._waited and now_ns > arrival_ns
            self._recorder.release([request], arrival_ns, released_ns=now_ns if late else None)
        if arrivals:
            self._waited = False
        return [arrival.request for arrival in arrivals]

    @property
    def over(self) -> bool:
        """Nothing more comes; known for sure only after `take`."""
        return self._feed.over

    def wait_s(self) -> float | None:
        """Seconds until the next arrival; None when that depends on others being done, or nothing more comes."""
        self._waited = True
        next_ns = self._feed.next_ns()
        return None if next_ns is None else max(0, next_ns - self._recorder.clock()) / 1e9

    def wait(self) -> None:
        """Sleep until the next arrival, with nothing in flight."""
        seconds = self.wait_s()
        if seconds:
            self._keep_evidence()
            time.sleep(seconds)

    def between_steps(self) -> None:
        """Now and then turn what was recorded into evidence; cheap when it isn't due."""
        if self._recorder.undrained >= _DRAIN_TOKENS or self._recorder.clock() >= self._drain_due_ns:
            self._keep_evidence()

    def _keep_evidence(self) -> None:
        self._recorder.drain()
        self._between()
        self._drain_due_ns = self._recorder.clock() + _DRAIN_NS
