"""The event-stream parser and the memory of a follower."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lem_client.errors import ServerFailed, ServerUnreachable
from lem_client.events import EventFollower, ServerSentEvent, SseParser
from lem_domain.retries import STREAM_RETRIES

STREAM = (
    "\ufeff: hello\r\n\r\n"
    'event: transition\nid: 7-1\ndata: {"a":\ndata: 1}\n\n'
    "data: grün ✓ \u2028 same line\r\r"
    "event: progress\r\ndata:no space\r\n\r\n"
    "event: nothing\n\n"
    "id: 9-2\nretry: 100\nunknown: field\ndata\n\n"
    "data: never ended"
).encode()
MESSAGES = [
    ServerSentEvent("transition", '{"a":\n1}', "7-1"),
    ServerSentEvent("message", "grün ✓ \u2028 same line", "7-1"),
    ServerSentEvent("progress", "no space", "7-1"),
    ServerSentEvent("message", "", "9-2"),
]


def parse(pieces: list[bytes]) -> list[ServerSentEvent]:
    parser = SseParser()
    return [message for piece in pieces for message in parser.feed(piece)]


@given(st.lists(st.integers(0, len(STREAM))))
def test_a_stream_means_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    assert parse([STREAM[begin:end] for begin, end in pairwise(places)]) == MESSAGES


def test_a_stream_means_the_same_byte_by_byte() -> None:
    assert parse([bytes([byte]) for byte in STREAM]) == MESSAGES


def test_an_endless_event_is_refused() -> None:
    parser = SseParser()
    with pytest.raises(ServerFailed, match="larger than 4 MiB"):
        for _ in range(6):
            list(parser.feed(b"data: " + b"x" * 2**20 + b"\n"))


def transition(target: str, event_id: str) -> bytes:
    data = {"type": "transition", "run_id": f"run_{'0' * 32}", "display_name": "a", "cycle": 1, "source": "running"}
    data |= {"target": target, "at": "2026-01-01T00:00:00Z", "reason": None, "message": None}
    return f"event: transition\nid: {event_id}\ndata: {json.dumps(data)}\n\n".encode()


def campaign(*, settled: bool) -> bytes:
    view = {"id": f"cmp_{'0' * 32}", "name": "a", "state": "active", "created_at": "2026-01-01T00:00:00Z"}
    view |= {"submitted_by": "owner", "execution": {}, "priority": 0, "labels": {}, "experiments": 1, "runs": {}}
    data = {"type": "campaign", "campaign": view, "settled": settled}
    return f"event: campaign\ndata: {json.dumps(data)}\n\n".encode()


def test_following_continues_after_the_last_event() -> None:
    following = EventFollower("/events")
    assert "Last-Event-ID" not in following.headers()
    list(following.feed(campaign(settled=False) + transition("completed", "12-3")))
    following.stream_ended()
    assert not following.is_finished
    assert following.headers()["Last-Event-ID"] == "12-3"


def test_what_a_broken_connection_left_half_is_forgotten() -> None:
    following = EventFollower("/events")
    list(following.feed(campaign(settled=False)[:-5]))
    following.headers()
    assert len(list(following.feed(campaign(settled=True)))) == 1


def test_following_a_campaign_is_over_when_it_is_settled_and_the_stream_ended() -> None:
    following = EventFollower("/events")
    list(following.feed(campaign(settled=True) + transition("completed", "1-1")))
    assert not following.is_finished
    following.stream_ended()
    assert following.is_finished


def test_following_a_run_is_over_when_that_run_ended() -> None:
    following = EventFollower("/events", one_run=True)
    list(following.feed(campaign(settled=False) + transition("failed", "1-1") + campaign(settled=False)))
    following.stream_ended()
    assert following.is_finished


def test_events_of_a_newer_server_are_left_out() -> None:
    assert list(EventFollower("/events").feed(b"event: confetti\ndata: {}\n\n")) == []


def test_an_event_that_is_no_event_is_an_error() -> None:
    with pytest.raises(ServerFailed, match="does not understand"):
        list(EventFollower("/events").feed(b"event: progress\ndata: {}\n\n"))


def test_following_gives_up_after_failures_in_a_row_but_not_after_some_in_all() -> None:
    following = EventFollower("/events", retries=replace(STREAM_RETRIES, attempts=3))
    for _ in range(5):
        following.delay_s("http://x", None)
        list(following.feed(campaign(settled=False)))
    following.delay_s("http://x", None)
    following.delay_s("http://x", None)
    with pytest.raises(ServerUnreachable):
        following.delay_s("http://x", None)
