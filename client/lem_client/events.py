"""Server-Sent Events: a parser that takes bytes as they come, and what a follower must remember between connections."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from lem_client.errors import AnswerError, ServerFailed, ServerUnreachable, unexpected
from lem_domain.retries import STREAM_RETRIES, RetryPolicy
from lem_domain.states import ENDED_STATES
from lem_domain.wire.events import CampaignEvent, RunProgressEvent, RunTransitionEvent

Event: TypeAlias = CampaignEvent | RunTransitionEvent | RunProgressEvent

_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Annotated[Event, Field(discriminator="type")])
_KNOWN: Final = frozenset({"campaign", "transition", "progress"})

_PIECES: Final = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
"""Up to and with the line's end, or the rest. (`splitlines` would split at U+2028 and such, too.)"""

MAX_EVENT_CHARACTERS: Final = 4 * 2**20


class Message(NamedTuple):
    """One dispatched event of a stream."""

    event: str
    data: str
    id: str
    """The last id seen so far; empty where there was none."""


class SseParser:
    """The event-stream format of the HTML standard (§9.2.6), fed piece by piece; pieces may end anywhere."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending: list[str] = []
        self._after_cr = False
        self._at_start = True
        self._last_id = ""
        self._event = ""
        self._data: list[str] = []
        self._held = 0

    def feed(self, piece: bytes) -> Iterator[Message]:
        """The events that are complete with this piece.

        Raises:
            ServerFailed: one event alone is larger than any server of this version sends.
        """
        for line in self._lines(self._decoder.decode(piece)):
            message = self._line(line)
            if message is not None:
                yield message
        if self._held > MAX_EVENT_CHARACTERS:
            raise ServerFailed(200, unexpected(200, "the event stream holds an event larger than 4 MiB"))

    def _lines(self, text: str) -> Iterator[str]:
        if self._at_start and text:
            text = text.removeprefix("\ufeff")
            self._at_start = False
        for piece in _PIECES.findall(text):
            # A line that ended with CR may go on with the LF of the same line end, in the next piece.
            if self._after_cr and piece == "\n":
                self._after_cr = False
                continue
            self._after_cr = piece.endswith("\r")
            self._pending.append(piece)
            self._held += len(piece)
            if piece.endswith(("\r", "\n")):
                whole = "".join(self._pending)
                self._pending.clear()
                yield whole.rstrip("\r\n")

    def _line(self, line: str) -> Message | None:
        if not line:
            return self._dispatch()
        name, separator, value = line.partition(":")
        if not name and separator:
            return None  # a comment, which keeps the connection awake
        value = value.removeprefix(" ")
        if name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        elif name == "id" and "\0" not in value:
            self._last_id = value
        return None

    def _dispatch(self) -> Message | None:
        event, data = self._event or "message", self._data
        self._event, self._data, self._held = "", [], 0
        return Message(event, "\n".join(data), self._last_id) if data else None


class Following:
    """One followed stream over any number of connections: where to go on, and when to give up."""

    def __init__(
        self,
        path: str,
        *,
        one_run: bool = False,
        last_event_id: str | None = None,
        retries: RetryPolicy = STREAM_RETRIES,
    ) -> None:
        self.path = path
        self.over = False
        self._one_run = one_run
        self._nothing_more = False
        self._last_event_id = last_event_id or ""
        self._retries = retries
        self._failures = 0
        self._parser = SseParser()

    def headers(self) -> dict[str, str]:
        """The headers of the next connection, which begins with a fresh parser."""
        self._parser = SseParser()
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._last_event_id:
            headers["Last-Event-ID"] = self._last_event_id
        return headers

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events in a piece of the stream. Kinds that this version doesn't know are left out."""
        for message in self._parser.feed(piece):
            self._failures = 0
            if message.id:
                self._last_event_id = message.id
            if message.event not in _KNOWN:
                continue
            try:
                event = _EVENT.validate_json(message.data)
            except ValidationError as error:
                problem = unexpected(200, "the event stream holds an event this client does not understand")
                raise ServerFailed(200, problem) from error
            self._note(event)
            yield event

    def ended(self) -> None:
        """The server ended the stream in an orderly way: nothing more will happen, or the server is being stopped."""
        self.over = self._nothing_more

    def _note(self, event: Event) -> None:
        if isinstance(event, CampaignEvent):
            self._nothing_more = event.settled or (self._one_run and self._nothing_more)
        elif isinstance(event, RunTransitionEvent) and self._one_run:
            self._nothing_more = event.target in ENDED_STATES

    def may_pass(self, error: AnswerError) -> bool:
        """Whether a refusal is one that goes away: the server is starting, stopping or busy."""
        return self._retries.is_transient(error.status)

    def pause_s(self, url: str, problem: Exception | None) -> float:
        """How long to wait before connecting again.

        Raises:
            ServerUnreachable: it was tried often enough without one event.
        """
        self._failures += 1
        if self._retries.attempts is not None and self._failures >= self._retries.attempts:
            raise ServerUnreachable(url, str(problem or "the stream ends again and again")) from problem
        return self._retries.delay_s(self._failures)
