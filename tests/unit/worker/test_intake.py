"""Engines that own their loop: arrivals, queueing, repetitions, steps of several tokens, in a time of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from lem_domain.config.measurement import TrafficConfig
from lem_domain.evidence.streams import PhaseName
from lem_worker.rank import request_feed as intake_module
from lem_worker.rank.measured_window import measure, send_once
from lem_worker.rank.prompts import PreparedPrompt, Request
from lem_worker.rank.recorder import Recorder, Sinks
from lem_worker.rank.request_feed import RequestFeed
from lem_worker.rank.window_length import WindowLength

MS = 1_000_000
PROMPTS = tuple(PreparedPrompt(index, (1, 2)) for index in range(5))
TOKENS = 4


class Rows:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def append(self, **columns: object) -> None:
        raise NotImplementedError

    def extend(self, **columns: Sequence[object]) -> None:
        self.rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def add(self, prompt_index: int, token_ids: Sequence[int]) -> None:
        pass


class Unused:
    """What the measured window asks no backend for."""

    def capabilities(self) -> None: ...
    def load(self, job: object) -> None: ...
    def prepare(self, prompts: object) -> None: ...
    def effective_config(self, sample: object) -> None: ...
    def facts(self) -> None: ...
    def text(self, token_ids: object) -> None: ...
    def unload(self) -> None: ...


@dataclass
class StepEngine(Unused):
    """Gives at most `slots` requests `per_step` tokens each in a step; the clock only moves by steps and sleeps."""

    slots: int = 2
    step_ms: float = 10.0
    per_step: int = 1
    now_ns: int = 1_000
    seen: list[Request] = field(default_factory=list)

    def clock(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += max(1, round(seconds * 1e9))

    def in_flight(self) -> int:
        return self.slots

    def serve(self, feed: RequestFeed, recorder: Recorder) -> None:
        waiting: deque[Request] = deque()
        running: dict[int, int] = {}
        while True:
            taken = feed.take()
            self.seen += taken
            waiting.extend(taken)
            if not waiting and not running:
                if feed.over:
                    return
                feed.wait()
                continue
            while waiting and len(running) < self.slots:
                running[waiting.popleft().request_id] = 0
            new = [request_id for request_id, count in running.items() if not count]
            recorder.scheduled(new, self.now_ns)
            self.now_ns += round(self.step_ms * MS)
            ids = np.repeat(np.fromiter(running, dtype=np.int64), self.per_step)
            recorder.tokens(ids, self.now_ns)
            for request_id in list(running):
                running[request_id] += self.per_step
                if running[request_id] == TOKENS:
                    del running[request_id]
                    recorder.finished(request_id, "length", [7] * TOKENS)
            feed.between_steps()


def measured(
    engine: StepEngine,
    monkeypatch: pytest.MonkeyPatch,
    *,
    length: WindowLength,
    drained: bool = False,
    **traffic: object,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    monkeypatch.setattr(intake_module.time, "sleep", engine.sleep)
    requests, tokens = Rows(), Rows()
    flushes: list[int] = []
    repetitions = measure(
        engine,  # type: ignore[arg-type]
        PROMPTS,
        Recorder(PhaseName.MEASURE, Sinks(requests, tokens, requests), clock=engine.clock),
        length=length,
        seed=0,
        flush_evidence=lambda: flushes.append(1),
        traffic=TrafficConfig.model_validate(traffic),
        drained=drained,
    )
    assert flushes
    return sorted(requests.rows, key=lambda row: row["request_id"]), tokens.rows, repetitions


def test_offline_everything_arrives_at_once_and_queues_in_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _, repetitions = measured(StepEngine(), monkeypatch, length=WindowLength(0, 1))
    assert repetitions == 1
    assert {row["arrival_ns"] for row in rows} == {1_000}
    queued = [(row["scheduled_ns"] - row["arrival_ns"]) / MS for row in rows]
    assert queued == [0, 0, 40, 40, 80], "three waves through two places"
    assert {row["batch_id"] for row in rows} == {None}


@pytest.mark.proves("window.repeat", on="worker")
def test_drained_repetitions_begin_when_the_last_request_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = StepEngine()
    rows, _, repetitions = measured(engine, monkeypatch, length=WindowLength(250 * MS, 1), drained=True)
    assert repetitions == 3
    assert sorted({(row["arrival_ns"] - 1_000) / MS for row in rows}) == [0, 120, 240]
    assert max(row["last_token_ns"] for row in rows) - 1_000 >= 250 * MS, "the window lasts as long as it has to"
    assert [request.repetition for request in engine.seen] == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.proves("window.repeat", on="worker")
@pytest.mark.parametrize("slots", [1, 2, 5, 8])
def test_repetitions_back_to_back_never_let_the_engine_drain(monkeypatch: pytest.MonkeyPatch, slots: int) -> None:
    engine = StepEngine(slots=slots)
    rows, _, repetitions = measured(engine, monkeypatch, length=WindowLength(500 * MS, 1))
    sent = len(rows)
    assert sent == 5 * repetitions, "whole repetitions"
    assert [request.repetition for request in engine.seen] == [number // 5 for number in range(sent)]
    last_begin = max(row["scheduled_ns"] for row in rows)
    for now in range(1_000, last_begin, 10 * MS):
        running = sum(row["scheduled_ns"] <= now < row["last_token_ns"] for row in rows)
        assert running == min(slots, 5)
    assert max(row["last_token_ns"] for row in rows) - 1_000 >= 500 * MS


def test_a_repetition_is_not_begun_long_before_the_engine_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _, repetitions = measured(StepEngine(slots=1), monkeypatch, length=WindowLength(100 * MS, 1))
    assert repetitions == 1, "after 100 ms two of five requests are done, and three still wait"
    assert {row["arrival_ns"] for row in rows} == {1_000}


def test_no_request_begins_after_the_longest_window_back_to_back(monkeypatch: pytest.MonkeyPatch) -> None:
    length = WindowLength(1000 * MS, 1, longest_ns=200 * MS)
    rows, _, _ = measured(StepEngine(), monkeypatch, length=length)
    assert max(row["arrival_ns"] for row in rows) - 1_000 <= 200 * MS


def test_closed_traffic_replaces_what_is_done_in_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _, repetitions = measured(
        StepEngine(slots=8), monkeypatch, length=WindowLength(0, 10), mode="closed", concurrency=3
    )
    assert repetitions == 2
    assert [(row["arrival_ns"] - 1_000) / MS for row in rows] == [0, 0, 0, 40, 40, 40, 80, 80, 80, 120]


def test_an_open_arrival_during_a_step_keeps_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = StepEngine(slots=8, step_ms=100)
    rows, _, _ = measured(
        engine, monkeypatch, length=WindowLength(0, 1), mode="open", rate_per_s=40, arrivals="constant"
    )
    assert [(row["arrival_ns"] - 1_000) / MS for row in rows] == [0, 25, 50, 75, 100]
    assert [(row["scheduled_ns"] - 1_000) / MS for row in rows] == [0, 100, 100, 100, 100]
    assert {row["released_ns"] for row in rows} == {None}, "the engine could not have looked sooner"


def test_an_idle_engine_that_is_woken_late_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = StepEngine(slots=8, step_ms=1)
    sleep = engine.sleep
    monkeypatch.setattr(engine, "sleep", lambda seconds: sleep(seconds + 0.003))
    rows, _, _ = measured(
        engine, monkeypatch, length=WindowLength(0, 1), mode="open", rate_per_s=40, arrivals="constant"
    )
    late = [None if row["released_ns"] is None else (row["released_ns"] - row["arrival_ns"]) / MS for row in rows]
    assert late == [None, 3, 3, 3, 3]


def test_tokens_of_one_step_share_their_time_and_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tokens, _ = measured(StepEngine(slots=8, per_step=2), monkeypatch, length=WindowLength(0, 1))
    assert {row["generated_tokens"] for row in rows} == {TOKENS}
    one = [row for row in tokens if row["request_id"] == 3]
    assert [row["index"] for row in one] == [0, 1, 2, 3]
    assert [(row["time_ns"] - 1_000) / MS for row in one] == [10, 10, 20, 20], "the step size can be read from them"


def test_long_windows_are_drained_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_DRAIN_NS", 30 * MS)
    drained: list[int] = []
    drain = Recorder.drain
    monkeypatch.setattr(Recorder, "drain", lambda recorder: (drained.append(recorder.undrained), drain(recorder)))
    rows, tokens, _ = measured(StepEngine(), monkeypatch, length=WindowLength(0, 1))
    assert len(drained) > 3
    assert max(drained) <= 3 * 2
    assert len(tokens) == len(rows) * TOKENS


def test_warm_up_takes_the_same_path_and_reports_how_long_it_took() -> None:
    engine = StepEngine()
    recorder = Recorder(PhaseName.WARMUP, clock=engine.clock)
    requests = [Request(number, number, (1,), 0) for number in range(4)]
    assert send_once(engine, requests, recorder) == 80 * MS  # type: ignore[arg-type]
    assert recorder.requests_done == 4


class StreamEngine(Unused):
    """One task for each request, as engines with asynchronous streams have it; real time, no work."""

    def in_flight(self) -> int:
        return 64

    def serve(self, feed: RequestFeed, recorder: Recorder) -> None:
        asyncio.run(self._serve(feed, recorder))

    async def _serve(self, feed: RequestFeed, recorder: Recorder) -> None:
        streams: set[asyncio.Task[None]] = set()
        while True:
            streams |= {asyncio.create_task(self._stream(request, recorder)) for request in feed.take()}
            if not streams and feed.over:
                return
            _, streams = await asyncio.wait(
                streams or {asyncio.create_task(asyncio.sleep(0))},
                timeout=feed.wait_s(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            feed.between_steps()

    async def _stream(self, request: Request, recorder: Recorder) -> None:
        ids = np.array([request.request_id], dtype=np.int64)
        recorder.scheduled(ids, recorder.clock())
        for _ in range(TOKENS):
            await asyncio.sleep(0)
            recorder.tokens(ids, recorder.clock())
        recorder.finished(request.request_id, "length", [7] * TOKENS)


@pytest.mark.parametrize("traffic", [{}, {"mode": "closed", "concurrency": 2}, {"mode": "open", "rate_per_s": 2000}])
def test_asynchronous_streams_fit_as_well(traffic: dict[str, object]) -> None:
    requests, tokens = Rows(), Rows()
    repetitions = measure(
        StreamEngine(),  # type: ignore[arg-type]
        PROMPTS,
        Recorder(PhaseName.MEASURE, Sinks(requests, tokens, requests)),
        length=WindowLength(0, 12),
        seed=0,
        flush_evidence=lambda: None,
        traffic=TrafficConfig.model_validate(traffic),
    )
    assert repetitions == 3
    assert sorted(row["request_id"] for row in requests.rows) == list(range(15))
    assert len(tokens.rows) == 15 * TOKENS
