"""The asynchronous twin of `sender.py`, written by `make reference` from it. Do not edit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import IO, TypeVar

import httpx
from pydantic import BaseModel
from tenacity import AsyncRetrying

from lem_client.errors import TransferInterrupted, answer_error
from lem_client.operations import Operation
from lem_client.transport import STREAM_TIMEOUT, AsyncSleep, Exchange, async_file_parts
from lem_domain.bundle import OnBytes
from lem_domain.retries import CLIENT_RETRIES, RetryPolicy

M = TypeVar("M", bound=BaseModel)


class AsyncSender:
    """One HTTP client for one server."""

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        retries: RetryPolicy = CLIENT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: AsyncSleep = asyncio.sleep,
    ) -> None:
        self._exchange = Exchange(url, token, retries)
        self._client = httpx.AsyncClient(**self._exchange.client_options(), transport=transport)
        self.url = url
        self.sleep = sleep
        "Replaced by tests."

    async def send(self, operation: Operation[M]) -> M:
        """Send an operation, again where the retry policy allows it, and return its answer.

        Raises:
            AnswerError: the server refused.
            ServerUnreachable: no connection, after every attempt.
            NoAnswerInTime: the answer did not come within the read timeout.
        """
        retrying = AsyncRetrying(sleep=self.sleep, **self._exchange.retrying(operation))
        try:
            response: httpx.Response = await retrying(
                self._client.send, self._exchange.request(self._client, operation)
            )
        except httpx.TransportError as error:
            raise self._exchange.error(error) from error
        return self._exchange.answer(operation, response)

    @asynccontextmanager
    async def stream(
        self, path: str, headers: Mapping[str, str], parameters: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Open an event stream. httpx's transport errors pass through: the follower resumes after them.

        Raises:
            AnswerError: the server refused.
        """
        async with self._client.stream(
            "GET", path, params=parameters, headers=dict(headers), timeout=STREAM_TIMEOUT
        ) as response:
            if not response.is_success:
                raise answer_error(response.status_code, await response.aread(), url=self.url)
            yield response

    async def receive(self, path: str, parameters: Mapping[str, str] | None = None) -> AsyncIterator[bytes]:
        """Receive a large answer part by part.

        Raises:
            AnswerError: the server refused.
            TransferInterrupted: the answer ended early.
        """
        try:
            async with self.stream(path, {}, parameters) as response:
                async for item in response.aiter_raw():
                    yield item
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._exchange.error(error) from error
        except httpx.TransportError as error:
            raise TransferInterrupted from error

    async def transmit(self, operation: Operation[M], file: IO[bytes], size: int, progress: OnBytes | None) -> M:
        """Send a file as an operation's body, once, and return the answer; an early answer ends the transfer."""
        parts = async_file_parts(file, progress)
        try:
            response = await self._client.post(operation.path, content=parts, **self._exchange.file_options(size))
        except httpx.TransportError as error:
            raise self._exchange.error(error) from error
        return self._exchange.answer(operation, response)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
