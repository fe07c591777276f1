"""What the workers were told, written down outside of the system: each answered chunk, fsynced before delivery."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_CHUNK = re.compile(r"/api/v1/attempts/(att_[0-9a-f]{32})/processes/([^/]+)/streams/([^/]+)/chunks/(\d+)")
_COMPLETE = re.compile(r"/api/v1/attempts/(att_[0-9a-f]{32}):complete")
_DIGEST = re.compile(r"sha-256=:([^:]+):")
_UNIMPORTANT = re.compile(r"/heartbeat$|:sign_off$")


class Exchange(NamedTuple):
    """A request and its answer."""

    at: float
    """By the monotonic clock."""
    method: str
    path: str
    digest: str
    status: int
    delivered: bool
    """The whole answer was handed to whoever asked."""

    @property
    def is_step(self) -> bool:
        """Whether it moved something on: a change that was accepted, other than a sign of life."""
        return (
            self.delivered and self.method != "GET" and 200 <= self.status < 300 and not _UNIMPORTANT.search(self.path)
        )


class Acknowledged(NamedTuple):
    """A chunk that a server said to have stored."""

    attempt: str
    process: str
    stream: str
    seq: int
    sha256: str
    delivered: bool
    """Its worker was told so; otherwise the answer got lost on its way."""


class Entries(NamedTuple):
    """Everything in a journal."""

    chunks: frozenset[Acknowledged]
    completed: frozenset[str]
    """Attempts whose workers were told that their runs are completed."""


class Journal:
    """A file of one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a")

    def note(self, exchange: Exchange) -> None:
        """Write down a chunk or a completion that was accepted; anything else is passed over."""
        if not 200 <= exchange.status < 300:
            return
        if exchange.method == "PUT" and (place := _CHUNK.fullmatch(exchange.path)) is not None:
            digest = _DIGEST.search(exchange.digest)
            assert digest is not None, f"{exchange.path} was accepted without a digest"
            attempt, process, stream, seq = place.groups()
            sha256 = base64.b64decode(digest[1]).hex()
            self._write("chunk", Acknowledged(attempt, process, stream, int(seq), sha256, exchange.delivered)._asdict())
        elif exchange.delivered and (attempt_of := _COMPLETE.fullmatch(exchange.path)) is not None:
            self._write("completed", attempt_of[1])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @staticmethod
    def read(path: Path) -> Entries:
        """Everything in a journal's file."""
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return Entries(
            frozenset(Acknowledged(**line["chunk"]) for line in lines if "chunk" in line),
            frozenset(line["completed"] for line in lines if "completed" in line),
        )

    def _write(self, kind: str, entry: object) -> None:
        self._file.write(json.dumps({kind: entry}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


class HttpTap:
    """Reads HTTP/1.1 as it passes over one connection, as far as requests and answers with a known length go."""

    def __init__(self, told: Callable[[Exchange], None]) -> None:
        self._told = told
        self._requests = _Messages()
        self._answers = _Messages()
        self._waiting: deque[_Head] = deque()

    def request(self, piece: bytes) -> None:
        """A piece of a request."""
        self._requests.feed(piece)
        # An answer may come before the last byte of what it answers.
        self._waiting.extend(self._requests.heads())

    def answer(self, piece: bytes) -> None:
        """A piece of an answer that is delivered."""
        self._answers.feed(piece)
        for head in self._answers.complete():
            self._tell(head, delivered=True)

    def dropped(self, piece: bytes) -> None:
        """An answer that is not."""
        self._answers.feed(piece)
        for head in self._answers.heads():
            self._tell(head, delivered=False)

    def _tell(self, answer: _Head, *, delivered: bool) -> None:
        status = int(answer.first.split()[1])
        if status < 200 or not self._waiting:
            return
        request = self._waiting.popleft()
        method, target, _ = request.first.split(" ", 2)
        digest = request.headers.get("content-digest", "")
        self._told(Exchange(time.monotonic(), method, target.partition("?")[0], digest, status, delivered))


class _Head(NamedTuple):
    first: str
    headers: dict[str, str]


class _Messages:
    """Cuts a stream of bytes into messages whose length is said ahead or chunk by chunk."""

    def __init__(self) -> None:
        self._buffer = b""
        self._left = 0
        self._more_chunks = False
        self._head: _Head | None = None
        self._begun: list[_Head] = []
        self._ended: list[_Head] = []

    def feed(self, piece: bytes) -> None:
        self._buffer += piece
        while self._step():
            pass

    def heads(self) -> list[_Head]:
        """Messages whose head has come since the last call."""
        self._begun, found = [], self._begun
        return found

    def complete(self) -> list[_Head]:
        """Messages whose last byte has come since the last call."""
        self._ended, found = [], self._ended
        return found

    def _step(self) -> bool:
        if self._head is None:
            return self._read_head()
        taken = min(self._left, len(self._buffer))
        self._buffer, self._left = self._buffer[taken:], self._left - taken
        if self._left:
            return False
        if self._more_chunks:
            return self._read_chunk_size()
        self._ended.append(self._head)
        self._head = None
        return True

    def _read_head(self) -> bool:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return False
        self._buffer = rest
        first, *lines = head.decode("latin-1").split("\r\n")
        named = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in named}
        self._head = _Head(first, headers)
        self._begun.append(self._head)
        self._left = int(headers.get("content-length", 0))
        self._more_chunks = headers.get("transfer-encoding", "").lower() == "chunked"
        return True

    def _read_chunk_size(self) -> bool:
        line, found, rest = self._buffer.partition(b"\r\n")
        if not found:
            return False
        self._buffer = rest
        size = int(line.partition(b";")[0], 16)
        self._left = size + 2
        self._more_chunks = size > 0
        return True
