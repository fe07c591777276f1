"""When requests arrive: at their own times (open), as others finish (closed), or all at once (offline).

All send the rank's prompts in whole repetitions until the window's minima hold, then nothing more; what is in flight
by then is still finished. Of several ranks each gets its part of the rate or of the concurrency. Offline arrivals are
for engines that take any number of requests; lockstep engines are fed by `lem_worker.rank.measured_window`.

An open arrival does not wait for the engine: a request that a busy engine takes late has its planned time as arrival,
so that the wait is in its latency (otherwise a slow answer would thin out the load that follows it: coordinated
omission).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from lem_domain.config.measurement import TrafficConfig
from lem_domain.errors import LemError
from lem_worker.rank.prompts import PreparedPrompt, Request, requests_of
from lem_worker.rank.window_length import Goal


class TrafficRefused(LemError):
    """Traffic that a rank can't take part in."""


class Arrival(NamedTuple):
    """A request and when it arrived, in ns of the rank's clock."""

    request: Request
    arrival_ns: int


class Feed(Protocol):
    """Where an engine, or the loop that feeds it, gets its requests from."""

    def take(self, now_ns: int) -> Sequence[Arrival]:
        """What has arrived by now and was not taken yet."""

    def next_ns(self) -> int | None:
        """When the next one arrives; None when that depends on others, or nothing more comes."""

    def finished(self, requests: int) -> None:
        """So many requests are done."""

    @property
    def over(self) -> bool:
        """Nothing more comes."""


class OfflineFeed:
    """All requests of a repetition arrive in one moment, those of the next when the last of them is done.

    `worked_until_ns` says when that was, so that a window that has to last for a while does.
    """

    def __init__(
        self,
        prompts: Sequence[PreparedPrompt],
        *,
        goal: Goal,
        seed: int,
        worked_until_ns: Callable[[], int],
    ) -> None:
        self._prompts = prompts
        self._goal = goal
        self._seed = seed
        self._begin_ns: int | None = None
        """The first arrival: where the window begins."""
        self._worked_until_ns = worked_until_ns
        self._repetition = 0
        self._in_flight = 0
        self._over = False

    def take(self, now_ns: int) -> Sequence[Arrival]:
        """A whole repetition, or nothing."""
        if self._in_flight or self._over:
            return ()
        sent = self._repetition * len(self._prompts)
        if self._begin_ns is None:
            self._begin_ns = now_ns
        elif self._goal.is_met(self._worked_until_ns() - self._begin_ns, sent):
            self._over = True
            return ()
        requests = requests_of(self._prompts, repetition=self._repetition, first_id=sent, seed=self._seed)
        self._repetition += 1
        self._in_flight = len(requests)
        return [Arrival(request, now_ns) for request in requests]

    def next_ns(self) -> int | None:
        """It depends on the others."""
        return None

    def finished(self, requests: int) -> None:
        """So many are done."""
        self._in_flight -= requests

    @property
    def over(self) -> bool:
        """The last repetition is done."""
        return self._over


class OnceFeed:
    """The given requests, now, and nothing more (warm-up)."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def take(self, now_ns: int) -> Sequence[Arrival]:
        """All of them, the first time."""
        taken, self._requests = self._requests, ()
        return [Arrival(request, now_ns) for request in taken]

    def next_ns(self) -> int | None:
        """Nothing more comes."""
        return None

    def finished(self, requests: int) -> None:
        """Nothing to do with arrivals."""

    @property
    def over(self) -> bool:
        """They were taken."""
        return not self._requests


class OpenFeed:
    """Arrivals at times that are fixed before the first of them."""

    def __init__(
        self,
        prompts: Sequence[PreparedPrompt],
        gaps_s: Iterator[float],
        *,
        goal: Goal,
        seed: int,
        begin_ns: int,
    ) -> None:
        # The window begins with its first request and ends with what the last one gets: its length counts from the
        # first arrival, not from `begin_ns`, and to the last one that is sent, not to the one that would follow.
        self._requests = _in_repetitions(prompts, seed, lambda sent: goal.is_met(self._last_ns - self._first_ns, sent))
        self._goal = goal
        self._gaps_s = gaps_s
        self._first_ns = self._last_ns = begin_ns + _ns(next(gaps_s))
        self._next = self._arrival(self._first_ns)

    def take(self, now_ns: int) -> Sequence[Arrival]:
        """All whose time has come."""
        taken = []
        while self._next is not None and self._next.arrival_ns <= now_ns:
            taken.append(self._next)
            self._last_ns = self._next.arrival_ns
            self._next = self._arrival(self._last_ns + _ns(next(self._gaps_s)))
        return taken

    def next_ns(self) -> int | None:
        """The next one's time."""
        return None if self._next is None else self._next.arrival_ns

    def finished(self, requests: int) -> None:
        """Nothing to do with arrivals."""

    @property
    def over(self) -> bool:
        """All have arrived."""
        return self._next is None

    def _arrival(self, at_ns: int) -> Arrival | None:
        is_over = self._goal.is_over(at_ns - self._first_ns)
        request = None if is_over else next(self._requests, None)
        return None if request is None else Arrival(request, at_ns)


class ClosedFeed:
    """Always the same number in flight: one arrives in the moment in which another is done."""

    def __init__(
        self,
        prompts: Sequence[PreparedPrompt],
        *,
        concurrency: int,
        goal: Goal,
        seed: int,
        worked_until_ns: Callable[[], int],
    ) -> None:
        self._begin_ns: int | None = None
        """The first arrival: where the window begins. It ends with what the last one gets, so its length is counted to
        what came last, not to the look at the clock after it."""

        def enough(sent: int) -> bool:
            return self._begin_ns is not None and goal.is_met(worked_until_ns() - self._begin_ns, sent)

        self._requests = _in_repetitions(prompts, seed, enough)
        self._goal = goal
        self._free = concurrency
        self._over = False

    def take(self, now_ns: int) -> Sequence[Arrival]:
        """One for each that is free."""
        self._begin_ns = now_ns if self._begin_ns is None else self._begin_ns
        taken = []
        while self._free and not self._over:
            is_over = self._goal.is_over(now_ns - self._begin_ns)
            request = None if is_over else next(self._requests, None)
            if request is None:
                self._over = True
                break
            self._free -= 1
            taken.append(Arrival(request, now_ns))
        return taken

    def next_ns(self) -> int | None:
        """It depends on the others."""
        return None

    def finished(self, requests: int) -> None:
        """So many are free again."""
        self._free += requests

    @property
    def over(self) -> bool:
        """The last repetition has arrived."""
        return self._over


def make_feed(
    traffic: TrafficConfig,
    prompts: Sequence[PreparedPrompt],
    *,
    goal: Goal,
    seed: int,
    rank: int,
    world_size: int,
    begin_ns: int,
    worked_until_ns: Callable[[], int],
    arrivals_s: Sequence[float] = (),
) -> Feed:
    """The feed of a rank under open or closed traffic, from `begin_ns` on; `worked_until_ns` is when tokens came last.

    Raises:
        TrafficRefused: there is less concurrency than there are ranks.
    """
    if traffic.mode == "open":
        gaps_s = arrival_gaps(traffic, rank=rank, world_size=world_size, arrivals_s=arrivals_s)
        return OpenFeed(prompts, gaps_s, goal=goal, seed=seed, begin_ns=begin_ns)
    concurrency = (traffic.concurrency or 0) // world_size + (rank < (traffic.concurrency or 0) % world_size)
    if not concurrency:
        raise TrafficRefused(
            f"traffic.concurrency {traffic.concurrency} leaves nothing for rank {rank} of {world_size}; raise it."
        )
    return ClosedFeed(prompts, concurrency=concurrency, goal=goal, seed=seed, worked_until_ns=worked_until_ns)


def arrival_gaps(
    traffic: TrafficConfig, *, rank: int, world_size: int, arrivals_s: Sequence[float] = ()
) -> Iterator[float]:
    """Seconds between the arrivals at one rank; the first is from the beginning of the window.

    A Poisson stream divided at random among ranks is a Poisson stream of the divided rate at each. Constant arrivals
    and recorded ones are dealt out in turn. A trace begins again one of its mean distances after its end.
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
        replay, place = divmod(number, len(arrivals_s))
        at = replay * length + arrivals_s[place]
        yield at - before
        before = at


def _in_repetitions(prompts: Sequence[PreparedPrompt], seed: int, enough: Callable[[int], bool]) -> Iterator[Request]:
    """The requests of one repetition after the other; `enough` is asked, with how many there were, before each."""
    repetition = 0
    while repetition == 0 or not enough(repetition * len(prompts)):
        yield from requests_of(prompts, repetition=repetition, first_id=repetition * len(prompts), seed=seed)
        repetition += 1


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
