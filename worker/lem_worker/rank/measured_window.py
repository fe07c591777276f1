"""The measured window of one rank: whole repetitions of its prompts until the requested length is reached.

Under `offline` traffic a lockstep backend gets one batch after the other. The arrival of a request is therefore the
moment when its batch goes to the backend, and its latency excludes the wait behind earlier batches. A continuous
backend gets all prompts at once and queues them. The next repetition replaces finished requests one by one, or begins
when all are done (`window.repeat`).
Under `open` and `closed` traffic requests arrive one by one (`lem_worker.rank.traffic`), and their latency includes
the wait for a batch.
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
from lem_worker.rank.traffic import Arrival, Arrivals, OfflineArrivals, OnceArrivals, make_arrivals
from lem_worker.rank.window_length import WindowLength

_UNLIMITED = 2**31
"""More rows than any batch has."""
_TICK_NS = 500_000_000
"""The protocol between rank and daemon allows about two ticks a second."""


class Ticker:
    """Sends progress to the daemon as ticks; `due_ns` spaces them half a second apart."""

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
        """The time of the next tick."""
        return self._last_ns + _TICK_NS

    def report(self, now_ns: int, *, requests_ended: int, generated_tokens: int) -> None:
        """Send a tick with the token rate since the last one."""
        rate = (generated_tokens - self._last_tokens) / ((now_ns - self._last_ns) / 1e9)
        fraction = self._fraction(now_ns - self._begin_ns, requests_ended) if self._fraction is not None else None
        self._last_ns, self._last_tokens = now_ns, generated_tokens
        self._send(
            Tick(
                phase=self._phase,
                requests_ended=requests_ended,
                generated_tokens=generated_tokens,
                fraction=fraction,
                output_rate_tok_s=rate,
            )
        )


class RankIndex(NamedTuple):
    """The number of this rank among all."""

    rank: int = 0
    world_size: int = 1


def measure(
    backend: InferenceBackend,
    prompts: Sequence[PreparedPrompt],
    recorder: Recorder,
    *,
    length: WindowLength,
    seed: int,
    flush_evidence: Callable[[], None],
    traffic: TrafficConfig | None = None,
    drained: bool = False,
    rank: RankIndex | None = None,
    arrivals_s: Sequence[float] = (),
) -> int:
    """Run a window and return the number of whole repetitions.

    Under offline traffic a continuous backend works on the next repetition before the last one is done, unless
    `drained` is set.
    """
    traffic, rank = traffic or TrafficConfig(), rank or RankIndex()
    arrivals: Arrivals
    if traffic.mode == "offline":
        if not isinstance(backend, ContinuousBackend):
            return _in_batches(backend, prompts, recorder, length=length, seed=seed, flush_evidence=flush_evidence)
        arrivals = OfflineArrivals(
            prompts,
            length=length,
            seed=seed,
            worked_until_ns=lambda: recorder.worked_until_ns,
            # Twice what fits into a step, because every request of a step may end with it.
            refill_below=1 if drained else min(len(prompts), 2 * backend.in_flight()),
        )
    else:
        arrivals = make_arrivals(
            traffic,
            prompts,
            length=length,
            seed=seed,
            begin_ns=recorder.clock(),
            worked_until_ns=lambda: recorder.worked_until_ns,
            arrivals_s=arrivals_s,
            **rank._asdict(),
        )
    if isinstance(backend, ContinuousBackend):
        backend.serve(RequestFeed(arrivals, recorder, flush_evidence), recorder)
        recorder.drain()
        flush_evidence()
    else:
        _serve(backend, arrivals, recorder, flush_evidence=flush_evidence)
    return recorder.requests_ended // len(prompts)


def send_once(backend: InferenceBackend, requests: Sequence[Request], recorder: Recorder) -> int:
    """Send requests together, on the path of measured ones; returns the ns to the last token."""
    begin_ns = recorder.clock()
    if isinstance(backend, ContinuousBackend):
        backend.serve(RequestFeed(OnceArrivals(requests), recorder), recorder)
    else:
        recorder.release(requests, begin_ns)
        backend.run(requests, recorder)
    recorder.drain()
    return recorder.last_token_ns - begin_ns


def most_waiting(traffic: TrafficConfig, world_size: int) -> int | None:
    """The most requests that may wait at once under open or closed traffic; None under offline traffic."""
    match traffic.mode:
        case "offline":
            return None
        case "closed":
            return -(-(traffic.concurrency or 1) // world_size)
        case "open":
            return _UNLIMITED


def batches_of_other_sizes(
    backend: InferenceBackend,
    batches: Sequence[Sequence[Request]],
    already_sent: Sequence[Request],
    waiting: int | None,
) -> list[Sequence[Request]]:
    """One batch of each number of rows that the window may have, except that of `already_sent`.

    Under open and closed traffic batches have any size; these are of one row, two, four, and so on to the most rows.
    """
    if isinstance(backend, ContinuousBackend):
        return []
    if waiting is not None:
        requests = [request for batch in batches for request in batch]
        batches = [*_batches_of_doubling_size(backend, requests, waiting)]
    return list({len(batch): batch for batch in batches if len(batch) != len(already_sent)}.values())


def _batches_of_doubling_size(
    backend: LockstepBackend, requests: Sequence[Request], waiting: int
) -> Iterator[Sequence[Request]]:
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
    length: WindowLength,
    seed: int,
    flush_evidence: Callable[[], None],
) -> int:
    """Run one full batch after the other and return the number of repetitions."""
    repetition = 0
    begin_ns: int | None = None
    while True:
        requests = requests_of(prompts, repetition=repetition, first_id=repetition * len(prompts), seed=seed)
        for batch in backend.batches(requests):
            released_ns = recorder.clock()
            # The window begins with its first request, not with the preparation of it.
            begin_ns = released_ns if begin_ns is None else begin_ns
            recorder.release(batch, released_ns)
            backend.run(batch, recorder)
            recorder.drain()
            flush_evidence()
            if length.is_over(recorder.worked_until_ns - begin_ns):
                return recorder.requests_ended // len(prompts)
        repetition += 1
        if begin_ns is not None and length.is_met(recorder.worked_until_ns - begin_ns, recorder.requests_ended):
            return repetition


class _Waiting(NamedTuple):
    """An arrival, and the time of its release where that was late."""

    arrival: Arrival
    released_ns: int | None


def _serve(
    backend: LockstepBackend,
    arrivals: Arrivals,
    recorder: Recorder,
    *,
    flush_evidence: Callable[[], None],
) -> None:
    """Send batches of the waiting requests, as large as the backend takes, whenever it is idle.

    A release to a busy backend is late because the backend is busy. An idle one should take a request on time, so a
    late release after a wait is recorded separately.
    """
    waiting: list[_Waiting] = []
    waited = False
    while True:
        now_ns = recorder.clock()
        taken = arrivals.take(now_ns)
        waiting += [_Waiting(one, now_ns if waited and now_ns > one.arrival_ns else None) for one in taken]
        waited = waited and not taken
        if not waiting:
            next_ns = arrivals.next_ns()
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
        arrivals.ended(len(batch))
        recorder.drain()
        flush_evidence()
