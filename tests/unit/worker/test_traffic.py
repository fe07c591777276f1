"""Arrivals that don't wait for answers, and a concurrency that is kept: in a time of the test's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_domain.config.measurement import TrafficConfig, WindowConfig
from lem_domain.evidence.streams import PhaseName
from lem_worker.rank import measured_window as measuring
from lem_worker.rank.measured_window import RankIndex, measure
from lem_worker.rank.prompts import PreparedPrompt, Request, batches_of
from lem_worker.rank.recorder import Recorder, Sinks
from lem_worker.rank.traffic import OfflineArrivals, TrafficRefused, arrival_gaps, make_arrivals
from lem_worker.rank.window_length import WindowLength

MS = 1_000_000
PROMPTS = tuple(PreparedPrompt(index, (1, 2)) for index in range(3))


@dataclass
class World:
    """A clock that only moves when somebody works or sleeps, and an engine that takes its time for a batch."""

    batch_ms: float = 10.0
    batch_size: int = 2
    now_ns: int = 1_000
    sizes: list[int] = field(default_factory=list)

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += max(1, round(seconds * 1e9))

    def batches(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        return batches_of(requests, self.batch_size)

    def run(self, requests: Sequence[Request], recorder: Recorder) -> None:
        ids = np.array([request.request_id for request in requests], dtype=np.int64)
        recorder.scheduled(ids, self.now_ns, batch_id=len(self.sizes))
        self.sizes.append(len(requests))
        self.now_ns += round(self.batch_ms * MS)
        recorder.tokens(ids, self.now_ns)
        for request in requests:
            recorder.finished(request.request_id, "length", [1])


class Rows:
    def __init__(self) -> None:
        self.rows: list[dict[str, int]] = []

    def append(self, **columns: object) -> None:
        raise NotImplementedError

    def extend(self, **columns: Sequence[object]) -> None:
        names = list(columns)
        self.rows += [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]  # type: ignore[arg-type]

    def add(self, prompt_index: int, token_ids: Sequence[int]) -> None:
        pass


def measured(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    *,
    length: WindowLength,
    rank: RankIndex | None = None,
    **traffic: object,
) -> tuple[list[dict[str, int]], int]:
    monkeypatch.setattr(measuring.time, "sleep", world.sleep)
    rows = Rows()
    recorder = Recorder(PhaseName.MEASURE, Sinks(rows, None, rows), clock=world.clock)
    repetitions = measure(
        world,  # type: ignore[arg-type]
        PROMPTS,
        recorder,
        length=length,
        seed=0,
        flush_evidence=lambda: None,
        traffic=TrafficConfig.model_validate(traffic),
        rank=rank,
    )
    return rows.rows, repetitions


def test_lateness_of_open_arrivals_is_recorded_where_it_is_not_the_engine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that wakes up 7 ms late hands requests over 7 ms late; an engine at work makes nothing late."""

    class Sleepy(World):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds + 0.007)

    traffic: dict[str, Any] = {"mode": "open", "rate_per_s": 20, "arrivals": "constant"}
    length = WindowLength.of(WindowConfig(min_duration_s=0, min_requests=6), world_size=1)
    late, _ = measured(Sleepy(batch_ms=1), monkeypatch, length=length, **traffic)
    assert [row["released_ns"] - row["arrival_ns"] for row in late[1:]] == [7 * MS] * (len(late) - 1)
    busy, _ = measured(World(batch_ms=200), monkeypatch, length=length, **traffic)
    assert {row["released_ns"] for row in busy[1:]} == {None}


@pytest.mark.parametrize(
    "traffic",
    [{}, {"mode": "closed", "concurrency": 2}, {"mode": "open", "rate_per_s": 100, "arrivals": "constant"}],
    ids=["offline", "closed", "open"],
)
def test_a_window_lasts_from_its_first_arrival(monkeypatch: pytest.MonkeyPatch, traffic: dict[str, Any]) -> None:
    """However long it takes from the look at the clock to the first request, that is no part of the window."""

    class Slow(World):
        def clock(self) -> int:
            self.now_ns += 3 * MS
            return self.now_ns

    for least_ms in range(90, 120):
        length = WindowLength.of(WindowConfig(min_duration_s=least_ms / 1e3), world_size=1)
        rows, _ = measured(Slow(batch_ms=1), monkeypatch, length=length, **traffic)
        assert max(row["last_token_ns"] for row in rows) - min(row["arrival_ns"] for row in rows) >= least_ms * MS


def test_a_continuous_engine_s_window_lasts_from_its_first_arrival() -> None:
    worked_until_ns = 0
    feed = OfflineArrivals(PROMPTS, length=WindowLength(100 * MS, 1), seed=0, worked_until_ns=lambda: worked_until_ns)
    assert len(feed.take(7 * MS)) == 3
    feed.ended(3)
    worked_until_ns = 106 * MS
    assert len(feed.take(107 * MS)) == 3
    feed.ended(3)
    worked_until_ns = 108 * MS
    assert not feed.take(109 * MS)
    assert feed.over


@pytest.mark.proves("traffic.mode", "traffic.rate_per_s", on="worker")
def test_open_arrivals_do_not_wait_for_a_slow_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(batch_ms=100, batch_size=1)
    rows, repetitions = measured(
        world, monkeypatch, length=WindowLength(0, 6), mode="open", rate_per_s=100, arrivals="constant"
    )
    assert repetitions == 2
    assert [row["arrival_ns"] - 1_000 for row in rows] == [place * 10 * MS for place in range(6)]
    waits = [(row["last_token_ns"] - row["arrival_ns"]) / MS for row in rows]
    assert waits == [100 + 90 * place for place in range(6)], "the queue is in the latency"


def test_an_engine_with_nothing_to_do_waits_for_the_next_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(batch_ms=1)
    rows, _ = measured(
        world, monkeypatch, length=WindowLength(50 * MS, 1), mode="open", rate_per_s=50, arrivals="constant"
    )
    assert [round((row["last_token_ns"] - row["arrival_ns"]) / MS) for row in rows] == [1] * 6
    assert world.sizes == [1] * 6


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
@given(rate_per_s=st.floats(1, 200), seed=st.integers(0, 2**62), least_ms=st.integers(0, 3000))
def test_an_open_window_is_as_long_as_asked_from_its_first_arrival_on(
    arrivals: str, rate_per_s: float, seed: int, least_ms: int
) -> None:
    traffic: dict[str, Any] = {"mode": "open", "rate_per_s": rate_per_s, "arrivals": arrivals, "seed": seed}
    with pytest.MonkeyPatch.context() as monkeypatch:
        rows, _ = measured(World(batch_ms=0.01), monkeypatch, length=WindowLength(least_ms * MS, 1), **traffic)
    sent = sorted(row["arrival_ns"] for row in rows)
    assert sent[-1] - sent[0] >= least_ms * MS
    assert len(rows) == 3 or sent[-4] - sent[0] < least_ms * MS, "no repetition more than that needs"


@pytest.mark.parametrize(
    "traffic", [{}, {"mode": "closed", "concurrency": 2}, {"mode": "open", "rate_per_s": 100, "arrivals": "constant"}]
)
def test_a_window_ends_though_its_engine_fails_every_request(
    monkeypatch: pytest.MonkeyPatch, traffic: dict[str, Any]
) -> None:
    class Failing(World):
        def run(self, requests: Sequence[Request], recorder: Recorder) -> None:
            self.now_ns += 10 * MS
            for request in requests:
                recorder.failed(request.request_id, "no")

    rows, _ = measured(Failing(), monkeypatch, length=WindowLength(100 * MS, 5), **traffic)
    assert len(rows) >= 6
    assert {(row["error"], row["generated_tokens"], row["first_token_ns"]) for row in rows} == {("no", 0, None)}


@pytest.mark.proves("traffic.mode", "traffic.concurrency", on="worker")
@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 30))
def test_closed_traffic_keeps_its_concurrency_and_whole_repetitions(
    concurrency: int, batch_size: int, least: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        world = World(batch_size=batch_size)
        rows, repetitions = measured(
            world, monkeypatch, length=WindowLength(0, least), mode="closed", concurrency=concurrency
        )
    assert len(rows) == repetitions * len(PROMPTS) >= least
    assert sorted(row["request_id"] for row in rows) == list(range(len(rows)))
    edges = sorted(
        [(row["arrival_ns"], 1) for row in rows] + [(row["last_token_ns"], -1) for row in rows],
        key=lambda edge: (edge[0], edge[1]),
    )
    in_flight = np.cumsum([change for _, change in edges])
    assert in_flight.max() <= concurrency
    last_arrival = max(row["arrival_ns"] for row in rows)
    between = [count for (at, _), count in zip(edges, in_flight, strict=True) if 1_000 < at < last_arrival]
    if len(rows) > concurrency:
        assert all(count >= concurrency - batch_size for count in between), "what is done is replaced at once"


@pytest.mark.proves("traffic.rate_per_s", "traffic.arrivals", on="worker")
@given(st.integers(1, 6), st.sampled_from(["poisson", "constant"]), st.integers(0, 2**62))
def test_ranks_together_have_the_rate_that_was_asked_for(world_size: int, arrivals: str, seed: int) -> None:
    traffic = TrafficConfig.model_validate({"mode": "open", "rate_per_s": 40, "arrivals": arrivals, "seed": seed})
    streams = [
        np.cumsum(list(islice(arrival_gaps(traffic, rank=rank, world_size=world_size), 3000)))
        for rank in range(world_size)
    ]
    horizon = min(stream[-1] for stream in streams)
    together = sorted(time for stream in streams for time in stream if time <= horizon)
    assert len(together) / horizon == pytest.approx(40, rel=0.15)
    if arrivals == "constant":
        assert [later - earlier for earlier, later in pairwise(together)] == pytest.approx(
            [1 / 40] * (len(together) - 1)
        )


@pytest.mark.proves("traffic.arrivals", "traffic.seed", on="worker")
def test_poisson_gaps_spread_as_an_exponential_does_and_repeat_with_their_seed() -> None:
    traffic = TrafficConfig(mode="open", rate_per_s=10, seed=3)
    gaps = list(islice(arrival_gaps(traffic, rank=0, world_size=1), 20_000))
    assert np.mean(gaps) == pytest.approx(0.1, rel=0.03)
    assert np.std(gaps) == pytest.approx(0.1, rel=0.05)
    assert gaps == list(islice(arrival_gaps(traffic, rank=0, world_size=1), 20_000))
    assert gaps[:10] != list(islice(arrival_gaps(traffic, rank=1, world_size=2), 10))


def test_the_concurrency_is_divided_without_loss_and_never_to_nothing() -> None:
    traffic = TrafficConfig(mode="closed", concurrency=5)

    def first(rank: int, world_size: int) -> int:
        feed = make_arrivals(
            traffic,
            PROMPTS * 4,
            length=WindowLength.of(WindowConfig(), world_size=world_size),
            seed=0,
            rank=rank,
            world_size=world_size,
            begin_ns=0,
            worked_until_ns=lambda: 0,
        )
        return len(feed.take(0))

    assert [first(rank, 3) for rank in range(3)] == [2, 2, 1]
    with pytest.raises(TrafficRefused, match=r"traffic.concurrency 5 leaves no requests for rank 5 of 6"):
        first(5, 6)


@pytest.mark.parametrize(
    ("given_keys", "message"),
    [
        ({"mode": "open"}, "traffic.mode open needs rate_per_s"),
        ({"mode": "closed"}, "traffic.mode closed needs concurrency"),
        ({"concurrency": 3}, "concurrency has no effect under traffic.mode offline"),
        ({"mode": "closed", "concurrency": 3, "rate_per_s": 2}, "rate_per_s has no effect under traffic.mode closed"),
        ({"slo": {}}, "slo has no limit"),
    ],
)
def test_traffic_that_says_too_little_or_too_much_is_refused(given_keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrafficConfig.model_validate(given_keys)


def test_a_trace_begins_again_one_mean_distance_after_its_end() -> None:
    traffic = TrafficConfig.model_validate({"mode": "open", "arrivals": "trace", "trace": "0" * 64})
    gaps = arrival_gaps(traffic, rank=0, world_size=1, arrivals_s=(1.0, 2.0, 5.0))
    assert list(np.cumsum(list(islice(gaps, 6)))) == [1, 2, 5, 8, 9, 12]
    second = arrival_gaps(traffic, rank=1, world_size=2, arrivals_s=(1.0, 2.0, 5.0))
    assert list(np.cumsum(list(islice(second, 3)))) == [2, 8, 12]


def test_a_trace_is_replayed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    length = WindowLength.of(WindowConfig(min_duration_s=0), world_size=2, min_requests=7)
    assert length.requests == 4


@pytest.mark.parametrize(
    "traffic", [{}, {"mode": "closed", "concurrency": 2}, {"mode": "open", "rate_per_s": 100, "arrivals": "constant"}]
)
def test_no_request_begins_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch, traffic: dict[str, Any]) -> None:
    world = World(batch_ms=10, batch_size=1)
    rows, _ = measured(world, monkeypatch, length=WindowLength(0, 1000, 35 * MS), **traffic)
    assert 3 <= len(rows) <= 5
    assert max(row["arrival_ns"] for row in rows) < 1_000 + 40 * MS
    assert WindowLength(0, 1000, 35 * MS).cut(len(rows), share=len(PROMPTS))
