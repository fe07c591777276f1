"""The journal of the chaos run: what counts as told to a worker, read from the bytes that passed."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from chaos.journal import Acknowledged, Exchange, HttpTap, Journal

ATTEMPT = "att_" + "0" * 32
BODY = b"evidence\r\n\r\nwith lines"
DIGEST = hashlib.sha256(BODY)
PATH = f"/api/v1/attempts/{ATTEMPT}/processes/rank-0/streams/tokens/chunks/3"
REQUEST = (
    f"PUT {PATH} HTTP/1.1\r\nHost: here\r\nContent-Digest: sha-256=:{base64.b64encode(DIGEST.digest()).decode()}:\r\n"
    f"Content-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY
ANSWER = b'HTTP/1.1 201 Created\r\ncontent-length: 12\r\n\r\n{"new":true}'


@pytest.fixture
def told() -> list[Exchange]:
    """What the tap told."""
    return []


@pytest.fixture
def tap(told: list[Exchange]) -> HttpTap:
    """A tap on one connection."""
    return HttpTap(told.append)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal in a file of its own."""
    return Journal(tmp_path / "journal.jsonl")


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_exchanges_are_read_however_the_bytes_are_cut(tap: HttpTap, told: list[Exchange], size: int) -> None:
    for _ in range(2):
        for at in range(0, len(REQUEST), size):
            tap.request(REQUEST[at : at + size])
        for at in range(0, len(ANSWER), size):
            tap.answer(ANSWER[at : at + size])
    assert [(one.method, one.path, one.status, one.delivered, one.is_step) for one in told] == [
        ("PUT", PATH, 201, True, True)
    ] * 2


@pytest.mark.parametrize("size", [1, 4, 10_000])
def test_an_answer_in_chunks_ends_with_its_last_chunk(tap: HttpTap, told: list[Exchange], size: int) -> None:
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n0\r\n0\r\n0\r\n\r\n" + ANSWER
    for _ in range(2):
        tap.request(b"GET /events HTTP/1.1\r\nHost: here\r\n\r\n")
    for at in range(0, len(answer), size):
        tap.answer(answer[at : at + size])
    assert [one.status for one in told] == [200, 201]


def test_an_answer_that_came_in_part_was_not_reported(tap: HttpTap, told: list[Exchange]) -> None:
    tap.request(REQUEST)
    tap.answer(ANSWER[:-1])
    assert told == []


def test_an_accepted_chunk_is_written_down_with_its_digest(
    tap: HttpTap, told: list[Exchange], journal: Journal
) -> None:
    tap.request(REQUEST)
    tap.answer(ANSWER)
    journal.note(told[0])
    assert Journal.read(journal.path).chunks == {Acknowledged(ATTEMPT, "rank-0", "tokens", 3, DIGEST.hexdigest(), True)}


def test_a_chunk_whose_answer_was_dropped_is_not_acknowledged(
    tap: HttpTap, told: list[Exchange], journal: Journal
) -> None:
    tap.request(REQUEST)
    tap.dropped(ANSWER[:50])
    journal.note(told[0])
    [one] = Journal.read(journal.path).chunks
    assert (one.seq, one.delivered) == (3, False)


@pytest.mark.parametrize("status", [409, 503])
def test_a_refused_chunk_is_not_written_down(journal: Journal, status: int) -> None:
    journal.note(Exchange(0.0, "PUT", PATH, "", status, True))
    assert Journal.read(journal.path) == (frozenset(), frozenset())


@pytest.mark.parametrize(("delivered", "completed"), [(True, {ATTEMPT}), (False, set())])
def test_a_completion_is_written_down_where_its_worker_got_the_answer(
    journal: Journal, delivered: bool, completed: set[str]
) -> None:
    journal.note(Exchange(0.0, "POST", f"/api/v1/attempts/{ATTEMPT}:complete", "", 200, delivered))
    assert Journal.read(journal.path).completed == completed
