"""Server-Sent Events: an incremental parser, and the state that a follower keeps between connections. No I/O.

Parsing is written here because httpx has none and httpx-sse neither limits the size of an event nor resumes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from lem_client.errors import AnswerError, ServerFailed, ServerUnreachable, unexpected_answer
from lem_domain.retries import STREAM_RETRIES, RetryPolicy
from lem_domain.states import ENDED_STATES
from lem_domain.wire.events import AggregationEvent, CampaignEvent, RunProgressEvent, RunTransitionEvent

Event: TypeAlias = CampaignEvent | RunTransitionEvent | RunProgressEvent | AggregationEvent

_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Annotated[Event, Field(discriminator="type")])
_KNOWN: Final = frozenset({"campaign", "transition", "progress", "aggregation"})

_LINE_PARTS: Final = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
"""A line with its end, or the beginning of one. (`str.splitlines` also splits at U+2028 and other characters.)"""

MAX_EVENT_CHARACTERS: Final = 4 * 2**20


class ServerSentEvent(NamedTuple):
    """One dispatched event of a stream."""

    event: str
    data: str
    id: str
    """The last id received so far; empty if there was none."""


class SseParser:
    """Parser of the event-stream format (HTML standard §9.2.6); input may be split anywhere."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending: list[str] = []
        self._after_cr = False
        self._at_start = True
        self._last_id = ""
        self._event = ""
        self._data: list[str] = []
        self._buffered = 0

    def feed(self, part: bytes) -> Iterator[ServerSentEvent]:
        """Yield the events that this part completes.

        Raises:
            ServerFailed: one event is larger than any that a server of this version sends.
        """
        for line in self._lines(self._decoder.decode(part)):
            event = self._line(line)
            if event is not None:
                yield event
        if self._buffered > MAX_EVENT_CHARACTERS:
            raise ServerFailed(200, unexpected_answer(200, "the event stream holds an event larger than 4 MiB"))

    def _lines(self, text: str) -> Iterator[str]:
        if self._at_start and text:
            text = text.removeprefix("\ufeff")
            self._at_start = False
        for part in _LINE_PARTS.findall(text):
            # CR and LF of one line end may arrive in two parts.
            if self._after_cr and part == "\n":
                self._after_cr = False
                continue
            self._after_cr = part.endswith("\r")
            self._pending.append(part)
            self._buffered += len(part)
            if part.endswith(("\r", "\n")):
                whole = "".join(self._pending)
                self._pending.clear()
                yield whole.rstrip("\r\n")

    def _line(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._dispatch()
        name, separator, value = line.partition(":")
        if not name and separator:
            return None  # a comment: the server sends one to keep the connection open
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._last_id = value
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        event, data = self._event or "message", self._data
        self._event, self._data, self._buffered = "", [], 0
        return ServerSentEvent(event, "\n".join(data), self._last_id) if data else None


class EventFollower:
    """State of one followed stream over any number of connections: its position, its end and its failures."""

    def __init__(
        self,
        path: str,
        *,
        one_run: bool = False,
        last_event_id: str | None = None,
        retries: RetryPolicy = STREAM_RETRIES,
    ) -> None:
        self.path = path
        self.is_finished = False
        self._one_run = one_run
        self._is_settled = False
        self._last_event_id = last_event_id or ""
        self._retries = retries
        self._failures = 0
        self._parser = SseParser()

    def headers(self) -> dict[str, str]:
        """Headers of the next connection. Resets the parser."""
        self._parser = SseParser()
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._last_event_id:
            headers["Last-Event-ID"] = self._last_event_id
        return headers

    def feed(self, part: bytes) -> Iterator[Event]:
        """Yield the events in a part of the stream. Skips kinds that this version does not know.

        Raises:
            ServerFailed: an event of a known kind is invalid.
        """
        for received in self._parser.feed(part):
            self._failures = 0
            if received.id:
                self._last_event_id = received.id
            if received.event not in _KNOWN:
                continue
            try:
                event = _EVENT.validate_json(received.data)
            except ValidationError as error:
                what = "the event stream holds an event that this client does not understand"
                raise ServerFailed(200, unexpected_answer(200, what)) from error
            self._note(event)
            yield event

    def stream_ended(self) -> None:
        """Note an orderly end: everything is settled, or the server is shutting down and the stream is resumed."""
        self.is_finished = self._is_settled

    def resumes_after(self, error: Exception) -> bool:
        """Whether the connection broke, or the server is only starting, stopping or overloaded."""
        return not isinstance(error, AnswerError) or self._retries.is_transient(error.status)

    def delay_s(self, url: str, problem: Exception | None) -> float:
        """Seconds until the next connection.

        Raises:
            ServerUnreachable: the policy's number of connections failed without an event.
        """
        self._failures += 1
        if self._retries.attempts is not None and self._failures >= self._retries.attempts:
            raise ServerUnreachable(url, str(problem or "the stream ended repeatedly")) from problem
        return self._retries.delay_s(self._failures)

    def _note(self, event: Event) -> None:
        if isinstance(event, CampaignEvent):
            self._is_settled = event.settled or (self._one_run and self._is_settled)
        elif isinstance(event, RunTransitionEvent) and self._one_run:
            self._is_settled = event.target in ENDED_STATES
