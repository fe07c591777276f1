"""Arrival times of requests: at planned times (open), as others finish (closed), or all at once (offline).

Every kind sends the rank's prompts in whole repetitions until the window's minima are reached; requests in flight then
still finish. Each of several ranks gets its part of the rate or of the concurrency. `OfflineArrivals` is for engines
that take any number of requests; `lem_worker.rank.measured_window` feeds lockstep engines.

Open arrivals don't wait for the engine: a request that a busy engine takes late keeps its planned time as arrival, so
that the wait is part of its latency. Otherwise a slow answer would reduce the load that follows (coordinated omission).
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lem_domain.config.measurement import TrafficConfig
from lem_domain.errors import LemError
from lem_worker.rank.prompts import PreparedPrompt, Request, requests_of
from lem_worker.rank.window_length import WindowLength


class TrafficRefused(LemError):
    """The traffic leaves no requests for a rank."""


class Arrival(NamedTuple):
    """A request and its arrival, in ns of the rank's clock."""

    request: Request
    arrival_ns: int


class Arrivals(ABC):
    """The requests of a phase with their arrival times."""

    over = False
    """Whether no more requests arrive; exact only after `take`."""

    @abstractmethod
    def take(self, now_ns: int) -> Sequence[Arrival]:
        """The requests that have arrived since the last call."""

    def next_ns(self) -> int | None:
        """The next arrival; None where it depends on requests in flight, or none follows."""
        return None

    def ended(self, requests: int) -> None:  # noqa: B027 - planned arrivals don't depend on the end of others
        """Report that so many requests ended."""


class OfflineArrivals(Arrivals):
    """All prompts arrive at once, and those of the next repetition when fewer than `refill_below` are in flight.

    With 1 a repetition begins as a whole when the one before it is done. A higher number keeps so many in flight, so
    that the engine doesn't drain between repetitions. `worked_until_ns` returns when the last request ended, from which
    the length of the window is counted.
    """

    def __init__(
        self,
        prompts: Sequence[PreparedPrompt],
        *,
        length: WindowLength,
        seed: int,
        worked_until_ns: Callable[[], int],
        refill_below: int = 1,
    ) -> None:
        self._prompts = len(prompts)
        self._begin_ns: int | None = None
        """The first arrival, which begins the window."""
        self._length = length
        self._worked_until_ns = worked_until_ns
        self._requests = _in_repetitions(prompts, seed, lambda sent: length.is_met(self._elapsed_ns(), sent))
        self._refill_below = refill_below
        self._in_flight = 0

    def take(self, now_ns: int) -> Sequence[Arrival]:
        """Return the first repetition as a whole, later the requests that are due."""
        if self.over or self._in_flight >= self._refill_below:
            return ()
        whole = self._begin_ns is None or self._refill_below == 1
        count = self._prompts if whole else self._refill_below - self._in_flight
        if self._begin_ns is None:
            self._begin_ns = now_ns
        elif self._length.is_over(self._elapsed_ns()):
            count = 0
        taken = [Arrival(request, now_ns) for request in itertools.islice(self._requests, count)]
        self.over = not count or len(taken) < count
        self._in_flight += len(taken)
        return taken

    def ended(self, requests: int) -> None:
        """Subtract ended requests from those in flight."""
        self._in_flight -= requests

    def _elapsed_ns(self) -> int:
        return self._worked_until_ns() - (self._begin_ns or 0)


class OnceArrivals(Arrivals):
    """The given requests at once, and no more (warm-up)."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def take(self, now_ns: int) -> Sequence[Arrival]:
        """All of them, at the first call."""
        taken, self._requests, self.over = self._requests, (), True
        return [Arrival(request, now_ns) for request in taken]


class OpenArrivals(Arrivals):
    """Arrivals at times that are planned in advance."""

    def __init__(
        self,
        prompts: Sequence[PreparedPrompt],
        gaps_s: Iterator[float],
        *,
        length: WindowLength,
        seed: int,
        begin_ns: int,
    ) -> None:
        # The window begins with its first request and ends with the last token of the last one. Its length therefore
        # counts from the first arrival, not from `begin_ns`, to the last request that is sent.
        self._requests = _in_repetitions(
            prompts, seed, lambda sent: length.is_met(self._last_ns - self._first_ns, sent)
        )
        self._length = length
        self._gaps_s = gaps_s
        self._first_ns = self._last_ns = begin_ns + _ns(next(gaps_s))
        self._next = self._arrival(self._first_ns)

    def take(self, now_ns: int) -> Sequence[Arrival]:
        """Return the requests that are due."""
        taken = []
        while self._next is not None and self._next.arrival_ns <= now_ns:
            taken.append(self._next)
            self._last_ns = self._next.arrival_ns
            self._next = self._arrival(self._last_ns + _ns(next(self._gaps_s)))
        return taken

    def next_ns(self) -> int | None:
        """The planned time of the next request."""
        return None if self._next is None else self._next.arrival_ns

    def _arrival(self, at_ns: int) -> Arrival | None:
        is_over = self._length.is_over(at_ns - self._first_ns)
        request = None if is_over else next(self._requests, None)
        self.over = request is None
        return None if request is None else Arrival(request, at_ns)


class ClosedArrivals(Arrivals):
    """A constant number in flight: a request arrives at the moment in which another ends."""

    def __init__(
        self,
        prompts: Sequence[PreparedPrompt],
        *,
        concurrency: int,
        length: WindowLength,
        seed: int,
        worked_until_ns: Callable[[], int],
    ) -> None:
        self._begin_ns: int | None = None
        """The first arrival, which begins the window. Its length counts to the last token, not to the call after it."""

        def enough(sent: int) -> bool:
            return self._begin_ns is not None and length.is_met(worked_until_ns() - self._begin_ns, sent)

        self._requests = _in_repetitions(prompts, seed, enough)
        self._length = length
        self._free = concurrency

    def take(self, now_ns: int) -> Sequence[Arrival]:
        """One request for each free slot."""
        self._begin_ns = now_ns if self._begin_ns is None else self._begin_ns
        taken = []
        while self._free and not self.over:
            is_over = self._length.is_over(now_ns - self._begin_ns)
            request = None if is_over else next(self._requests, None)
            if request is None:
                self.over = True
                break
            self._free -= 1
            taken.append(Arrival(request, now_ns))
        return taken

    def ended(self, requests: int) -> None:
        """Free their slots."""
        self._free += requests


def make_arrivals(
    traffic: TrafficConfig,
    prompts: Sequence[PreparedPrompt],
    *,
    length: WindowLength,
    seed: int,
    rank: int,
    world_size: int,
    begin_ns: int,
    worked_until_ns: Callable[[], int],
    arrivals_s: Sequence[float] = (),
) -> Arrivals:
    """The arrivals of a rank under open or closed traffic, from `begin_ns` on.

    `worked_until_ns` returns the time of the last token or failure.

    Raises:
        TrafficRefused: the concurrency is below the number of ranks.
    """
    if traffic.mode == "open":
        gaps_s = arrival_gaps(traffic, rank=rank, world_size=world_size, arrivals_s=arrivals_s)
        return OpenArrivals(prompts, gaps_s, length=length, seed=seed, begin_ns=begin_ns)
    concurrency = (traffic.concurrency or 0) // world_size + (rank < (traffic.concurrency or 0) % world_size)
    if not concurrency:
        raise TrafficRefused(
            f"traffic.concurrency {traffic.concurrency} leaves no requests for rank {rank} of {world_size}; raise it."
        )
    return ClosedArrivals(prompts, concurrency=concurrency, length=length, seed=seed, worked_until_ns=worked_until_ns)


def arrival_gaps(
    traffic: TrafficConfig, *, rank: int, world_size: int, arrivals_s: Sequence[float] = ()
) -> Iterator[float]:
    """Yield the seconds between the arrivals at one rank; the first counts from the beginning of the window.

    A Poisson process divided at random among ranks is a Poisson process of the divided rate at each. Constant and
    recorded arrivals are assigned round-robin. A trace restarts one of its mean gaps after its end.
    """
    if arrivals_s:
        yield from _replayed(arrivals_s, rank, world_size)
    if traffic.rate_per_s is None:
        return
    if traffic.arrivals == "constant":
        yield rank / traffic.rate_per_s
        while True:
            yield world_size / traffic.rate_per_s
    random = np.random.default_rng([traffic.seed, rank])
    while True:
        yield from random.exponential(world_size / traffic.rate_per_s, size=1024).tolist()


def _replayed(arrivals_s: Sequence[float], rank: int, world_size: int) -> Iterator[float]:
    length = arrivals_s[-1] + (arrivals_s[-1] - arrivals_s[0]) / max(1, len(arrivals_s) - 1)
    before = 0.0
    for number in itertools.count(rank, world_size):
        replay, index = divmod(number, len(arrivals_s))
        at = replay * length + arrivals_s[index]
        yield at - before
        before = at


def _in_repetitions(prompts: Sequence[PreparedPrompt], seed: int, enough: Callable[[int], bool]) -> Iterator[Request]:
    """Yield the requests of repetition after repetition until `enough(requests so far)`, checked before each."""
    repetition = 0
    while repetition == 0 or not enough(repetition * len(prompts)):
        yield from requests_of(prompts, repetition=repetition, first_id=repetition * len(prompts), seed=seed)
        repetition += 1


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
