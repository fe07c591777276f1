"""Sends operations over HTTP and returns their answers, blocking. Source of `async_sender.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TypeVar

import httpx
from pydantic import BaseModel
from tenacity import Retrying

from lem_client.errors import TransferInterrupted, answer_error
from lem_client.operations import Operation
from lem_client.transport import STREAM_TIMEOUT, Exchange, Sleep, file_parts
from lem_domain.bundle import OnBytes
from lem_domain.retries import CLIENT_RETRIES, RetryPolicy

M = TypeVar("M", bound=BaseModel)


class Sender:
    """One HTTP client for one server."""

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        retries: RetryPolicy = CLIENT_RETRIES,
        transport: httpx.BaseTransport | None = None,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._exchange = Exchange(url, token, retries)
        self._client = httpx.Client(**self._exchange.client_options(), transport=transport)
        self.url = url
        self.sleep = sleep
        """Replaced by tests."""

    def send(self, operation: Operation[M]) -> M:
        """Send an operation, again where the retry policy allows it, and return its answer.

        Raises:
            AnswerError: the server refused.
            ServerUnreachable: no connection, after every attempt.
            NoAnswerInTime: the answer did not come within the read timeout.
        """
        retrying = Retrying(sleep=self.sleep, **self._exchange.retrying(operation))
        try:
            response: httpx.Response = retrying(self._client.send, self._exchange.request(self._client, operation))
        except httpx.TransportError as error:
            raise self._exchange.error(error) from error
        return self._exchange.answer(operation, response)

    @contextmanager
    def stream(
        self, path: str, headers: Mapping[str, str], parameters: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """Open an event stream. httpx's transport errors pass through: the follower resumes after them.

        Raises:
            AnswerError: the server refused.
        """
        with self._client.stream(
            "GET", path, params=parameters, headers=dict(headers), timeout=STREAM_TIMEOUT
        ) as response:
            if not response.is_success:
                raise answer_error(response.status_code, response.read(), url=self.url)
            yield response

    def receive(self, path: str, parameters: Mapping[str, str] | None = None) -> Iterator[bytes]:
        """Receive a large answer part by part.

        Raises:
            AnswerError: the server refused.
            TransferInterrupted: the answer ended early.
        """
        try:
            with self.stream(path, {}, parameters) as response:
                yield from response.iter_raw()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._exchange.error(error) from error
        except httpx.TransportError as error:
            raise TransferInterrupted from error

    def transmit(self, operation: Operation[M], file: IO[bytes], size: int, progress: OnBytes | None) -> M:
        """Send a file as an operation's body, once, and return the answer; an early answer ends the transfer."""
        parts = file_parts(file, progress)
        try:
            response = self._client.post(operation.path, content=parts, **self._exchange.file_options(size))
        except httpx.TransportError as error:
            raise self._exchange.error(error) from error
        return self._exchange.answer(operation, response)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
