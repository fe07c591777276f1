"""The measured window of one rank: whole repetitions of its prompts until the asked length is reached.

Under `offline` traffic a backend that works in lockstep gets a batch when the one before it is done, as many requests
at a time as it takes. A request's arrival is therefore the moment its batch is handed to the backend, and queueing
behind earlier batches is no part of its latency. A backend that batches continuously gets all prompts at once, and the
next repetition when the last of them is done; it queues them itself, and says for how long. Under `open` and `closed`
traffic requests arrive by themselves (see `lem_worker.rank.traffic`), and their wait for a place in a batch is part of
their latency.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lem_domain.config.measurement import TrafficConfig
from lem_domain.evidence.streams import PhaseName
from lem_worker.backends.protocol import ContinuousBackend, InferenceBackend, LockstepBackend
from lem_worker.process.protocol import ControlMessage, Tick
from lem_worker.rank.prompts import PreparedPrompt, Request, repeated, requests_of
from lem_worker.rank.recorder import Recorder
from lem_worker.rank.request_feed import RequestFeed
from lem_worker.rank.traffic import Arrival, Feed, OfflineFeed, OnceFeed, make_feed
from lem_worker.rank.window_length import Goal

_ENDLESS = 2**31
"""More requests than any batch has rows."""
_TICK_NS = 500_000_000
"""The protocol allows about two ticks a second."""


class Ticker:
    """Turns progress into ticks, at most two a second."""

    def __init__(
        self,
        phase: PhaseName,
        send: Callable[[ControlMessage], None],
        begin_ns: int,
        fraction: Callable[[int, int], float] | None = None,
    ) -> None:
        self._phase = phase
        self._send = send
        self._fraction = fraction
        self._begin_ns = begin_ns
        self._last_ns = begin_ns
        self._last_tokens = 0

    def due_ns(self) -> int:
        """When to be told next."""
        return self._last_ns + _TICK_NS

    def report(self, now_ns: int, *, requests_done: int, generated_tokens: int) -> None:
        """Send a tick with the rate since the last one."""
        rate = (generated_tokens - self._last_tokens) / ((now_ns - self._last_ns) / 1e9)
        fraction = self._fraction(now_ns - self._begin_ns, requests_done) if self._fraction is not None else None
        self._last_ns, self._last_tokens = now_ns, generated_tokens
        self._send(
            Tick(
                phase=self._phase,
                requests_done=requests_done,
                generated_tokens=generated_tokens,
                fraction=fraction,
                output_rate_tok_s=rate,
            )
        )


class Share(NamedTuple):
    """Which of the ranks this is."""

    rank: int = 0
    world_size: int = 1


def measure(
    backend: InferenceBackend,
    prompts: Sequence[PreparedPrompt],
    recorder: Recorder,
    *,
    goal: Goal,
    seed: int,
    between_batches: Callable[[], None],
    traffic: TrafficConfig | None = None,
    share: Share | None = None,
    arrivals_s: Sequence[float] = (),
) -> int:
    """Run the window; the answer is the number of repetitions."""
    traffic, share = traffic or TrafficConfig(), share or Share()
    if traffic.mode == "offline" and not isinstance(backend, ContinuousBackend):
        return _in_batches(
            backend,
            prompts,
            recorder,
            goal=goal,
            seed=seed,
            between_batches=between_batches,
        )
    feed: Feed
    if traffic.mode == "offline":
        feed = OfflineFeed(prompts, goal=goal, seed=seed, worked_until_ns=lambda: recorder.worked_until_ns)
    else:
        feed = make_feed(
            traffic,
            prompts,
            goal=goal,
            seed=seed,
            begin_ns=recorder.clock(),
            worked_until_ns=lambda: recorder.worked_until_ns,
            arrivals_s=arrivals_s,
            **share._asdict(),
        )
    if isinstance(backend, ContinuousBackend):
        backend.serve(RequestFeed(feed, recorder, between_batches), recorder)
        recorder.drain()
        between_batches()
    else:
        _serve(backend, feed, recorder, between_batches=between_batches)
    return recorder.requests_ended // len(prompts)


def send_once(backend: InferenceBackend, requests: Sequence[Request], recorder: Recorder) -> int:
    """Send the requests together, through the path that measured ones take; ns until the last token."""
    begin_ns = recorder.clock()
    if isinstance(backend, ContinuousBackend):
        backend.serve(RequestFeed(OnceFeed(requests), recorder), recorder)
    else:
        recorder.release(requests, begin_ns)
        backend.run(requests, recorder)
    recorder.drain()
    return recorder.last_token_ns - begin_ns


def most_waiting(traffic: TrafficConfig, world_size: int) -> int | None:
    """How many requests may wait at once where they arrive by themselves; None where all are there at once."""
    match traffic.mode:
        case "offline":
            return None
        case "closed":
            return -(-(traffic.concurrency or 1) // world_size)
        case "open":
            return _ENDLESS


def other_sizes(
    backend: InferenceBackend, batches: Sequence[Sequence[Request]], known: Sequence[Request], waiting: int | None
) -> list[Sequence[Request]]:
    """A batch of each number of rows that the window has beside that of `known`; where requests arrive by themselves,
    which makes batches of any size, those of one row, of two, of four, and so on to the most rows."""
    if isinstance(backend, ContinuousBackend):
        return []
    found = (
        [*batches] if waiting is None else [*_arriving(backend, [one for batch in batches for one in batch], waiting)]
    )
    return list({len(batch): batch for batch in found if len(batch) != len(known)}.values())


def _arriving(backend: LockstepBackend, requests: Sequence[Request], waiting: int) -> Iterator[Sequence[Request]]:
    rows = 1
    while True:
        batch = next(backend.batches(repeated(requests, min(rows, waiting))))
        yield batch
        if len(batch) < rows or rows >= waiting:
            return
        rows *= 2


def _in_batches(
    backend: LockstepBackend,
    prompts: Sequence[PreparedPrompt],
    recorder: Recorder,
    *,
    goal: Goal,
    seed: int,
    between_batches: Callable[[], None],
) -> int:
    """One full batch after the other; the answer is the number of repetitions."""
    repetition = 0
    begin_ns: int | None = None
    while True:
        requests = requests_of(prompts, repetition=repetition, first_id=repetition * len(prompts), seed=seed)
        for batch in backend.batches(requests):
            released_ns = recorder.clock()
            # The window begins with its first request, and has to last from there.
            begin_ns = released_ns if begin_ns is None else begin_ns
            recorder.release(batch, released_ns)
            backend.run(batch, recorder)
            recorder.drain()
            between_batches()
            if goal.is_over(recorder.worked_until_ns - begin_ns):
                return recorder.requests_ended // len(prompts)
        repetition += 1
        if begin_ns is not None and goal.is_met(recorder.worked_until_ns - begin_ns, recorder.requests_ended):
            return repetition


class _Waiting(NamedTuple):
    """An arrival, and when it was taken where that was late."""

    arrival: Arrival
    released_ns: int | None


def _serve(
    backend: LockstepBackend,
    feed: Feed,
    recorder: Recorder,
    *,
    between_batches: Callable[[], None],
) -> None:
    """Batches of what waits, as large as the backend takes, as soon as it is free.

    A backend at work could not have looked at an arrival sooner. One that waited could, so what it takes then is late
    where it is not taken on its time, and the time of the hand-over is recorded.
    """
    waiting: list[_Waiting] = []
    waited = False
    while True:
        now_ns = recorder.clock()
        taken = feed.take(now_ns)
        waiting += [_Waiting(one, now_ns if waited and now_ns > one.arrival_ns else None) for one in taken]
        waited = waited and not taken
        if not waiting:
            next_ns = feed.next_ns()
            if next_ns is None:
                return
            time.sleep(max(0, next_ns - recorder.clock()) / 1e9)
            waited = True
            continue
        batch = next(backend.batches([one.arrival.request for one in waiting]))
        chosen = {request.request_id for request in batch}
        for one in waiting:
            if one.arrival.request.request_id in chosen:
                recorder.release([one.arrival.request], one.arrival.arrival_ns, released_ns=one.released_ns)
        waiting = [one for one in waiting if one.arrival.request.request_id not in chosen]
        backend.run(batch, recorder)
        feed.finished(len(batch))
        recorder.drain()
        between_batches()
