"""Event streams: where they go on, and how often progress is told."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from lem_domain.wire.events import RunProgressEvent
from lem_server.events.queries import EventCursor
from lem_server.events.stream import BEGINNING, LatestProgress, parse_cursor
from lem_server.http.problems import ProblemError


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def busy(run_id: UUID, tokens: int) -> RunProgressEvent:
    progress = {"phase": "measure", "generated_tokens": tokens}
    row = {"run_id": run_id, "attempt_id": UUID(int=1), "display_name": "e", "cycle": 1, "progress": progress}
    return RunProgressEvent.model_validate(row)


def test_a_stream_continues_after_the_last_event() -> None:
    assert parse_cursor("75-12") == EventCursor(75, 12)


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_stream_without_a_last_event_begins_at_the_start(nothing: str | None) -> None:
    assert parse_cursor(nothing) == BEGINNING


@pytest.mark.parametrize("wrong", ["x", "1", "-1", "1-", "1-2-3", "1 - 2", "9" * 20 + "-1", "9" * 19 + "-1", "١-٢"])
def test_an_unknown_last_event_is_refused_with_a_sentence(wrong: str) -> None:
    with pytest.raises(ProblemError, match="Last-Event-ID"):
        parse_cursor(wrong)


def test_progress_is_reported_at_once_and_then_only_when_it_changed() -> None:
    clock, run_id = Clock(), uuid4()
    latest = LatestProgress(clock)
    assert [event.progress.generated_tokens for event in latest.changes([busy(run_id, 1)])] == [1]
    clock.now += 10
    assert list(latest.changes([busy(run_id, 1)])) == []
    assert [event.progress.generated_tokens for event in latest.changes([busy(run_id, 2)])] == [2]


def test_progress_of_a_run_is_reported_at_most_once_a_second_and_the_latest_is_not_lost() -> None:
    clock, run_id, other = Clock(), uuid4(), uuid4()
    latest = LatestProgress(clock)
    list(latest.changes([busy(run_id, 1)]))
    clock.now += 0.5
    told = list(latest.changes([busy(run_id, 2), busy(other, 7)]))
    assert [event.progress.generated_tokens for event in told] == [7]
    clock.now += 0.6
    told = list(latest.changes([busy(run_id, 3), busy(other, 7)]))
    assert [event.progress.generated_tokens for event in told] == [3]
