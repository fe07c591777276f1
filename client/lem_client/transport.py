"""Sends operations and reads their answers, synchronously or not, and sends again what may be sent again."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import IO, Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import AsyncRetrying, RetryCallState, Retrying, stop_after_attempt, stop_never

from lem_client.errors import (
    NoAnswerInTime,
    ServerFailed,
    ServerUnreachable,
    TransferBroken,
    error_of,
    unexpected,
)
from lem_client.operations import Operation
from lem_domain.bundle import MEDIA_TYPE, Progress
from lem_domain.retries import CLIENT_RETRIES, RetryPolicy

M = TypeVar("M", bound=BaseModel)

READ_TIMEOUT_S = 300.0
"""Aggregating a long run takes the server that long at most; everything else answers in milliseconds."""
TIMEOUT = httpx.Timeout(10.0, read=READ_TIMEOUT_S, write=60.0)
STORE_TIMEOUT_S = 3600.0
"""A bundle of many gigabytes is stored before it is answered; until then nothing is sent back."""
TRANSFER_TIMEOUT = httpx.Timeout(10.0, read=STORE_TIMEOUT_S, write=60.0)
TRANSFER_PIECE = 2**18
STREAM_SILENCE_S = 45.0
"""The server sends a comment every 15 s; a stream that misses three is dead."""
STREAM_TIMEOUT = httpx.Timeout(10.0, read=STREAM_SILENCE_S)


class Exchange:
    """What both senders share: how a request is made, when it is sent again, what its answer means."""

    def __init__(self, url: str, token: str | None, retries: RetryPolicy) -> None:
        self.url = url
        self._token = token
        self._retries = retries

    def client_options(self) -> dict[str, Any]:
        """Options of the httpx client."""
        try:
            version = package_version("llm-energy-measurement")
        except PackageNotFoundError:
            version = "0"
        headers = {"User-Agent": f"lem-client/{version}"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        # A proxy for the outside world must not get what is meant for this machine.
        return {"base_url": self.url, "headers": headers, "timeout": TIMEOUT, "trust_env": not _is_loopback(self.url)}

    def request(self, client: httpx.Client | httpx.AsyncClient, operation: Operation[M]) -> httpx.Request:
        """The request of an operation."""
        headers = {"Accept": "application/json"}
        content = None
        if operation.body is not None:
            headers["Content-Type"] = "application/json"
            content = operation.body.model_dump_json(exclude_unset=True).encode()
        if operation.idempotency_key is not None:
            headers["Idempotency-Key"] = operation.idempotency_key
        return client.build_request(
            operation.method, operation.path, params=dict(operation.parameters), content=content, headers=headers
        )

    def retrying(self, operation: Operation[M]) -> dict[str, Any]:
        """Options of tenacity's loop around the sending of an operation; it ends with the last response or error."""
        limit = self._retries.attempts

        def is_retried(state: RetryCallState) -> bool:
            match _outcome(state):
                case httpx.Response() as response:
                    return operation.repeatable and self._retries.is_transient(response.status_code)
                case httpx.ConnectError() | httpx.ConnectTimeout():
                    return True  # without a connection nothing was sent
                case httpx.ReadTimeout():
                    return False  # another attempt would wait for the same five minutes
                case error:
                    return operation.repeatable and isinstance(error, httpx.TransportError)

        return {
            "retry": is_retried,
            "wait": self._delay_s,
            "stop": stop_never if limit is None else stop_after_attempt(limit),
            "retry_error_callback": lambda state: state.outcome and state.outcome.result(),
        }

    def _delay_s(self, state: RetryCallState) -> float:
        outcome = _outcome(state)
        asked = outcome.headers.get("Retry-After") if isinstance(outcome, httpx.Response) else None
        return self._retries.delay_s(state.attempt_number, asked)

    def headers_of_file(self, size: int) -> dict[str, str]:
        """The headers of a bundle that is sent."""
        return {"Content-Type": MEDIA_TYPE, "Content-Length": str(size), "Accept": "application/json"}

    def failure(self, error: httpx.TransportError) -> ServerUnreachable | NoAnswerInTime:
        """The error that a failed exchange stands for."""
        if isinstance(error, httpx.ReadTimeout):
            return NoAnswerInTime(self.url, READ_TIMEOUT_S)
        return ServerUnreachable(self.url, str(error))

    def answer(self, operation: Operation[M], response: httpx.Response) -> M:
        """The answer's model.

        Raises:
            AnswerError: the answer is no success, or not what this client understands.
        """
        if not response.is_success:
            raise error_of(response.status_code, response.content, url=self.url)
        try:
            return operation.answer.model_validate_json(response.content)
        except ValidationError as error:
            what = f"{self.url}{operation.path} answered something this client does not understand"
            raise ServerFailed(response.status_code, unexpected(response.status_code, what)) from error


class Sender:
    """Sends operations and waits for their answers."""

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        retries: RetryPolicy = CLIENT_RETRIES,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._exchange = Exchange(url, token, retries)
        self._client = httpx.Client(**self._exchange.client_options(), transport=transport)
        self._sleep = sleep

    @property
    def url(self) -> str:
        """The server's address."""
        return self._exchange.url

    def send(self, operation: Operation[M]) -> M:
        """The operation's answer."""
        retrying = Retrying(sleep=self._sleep, **self._exchange.retrying(operation))
        try:
            response = retrying(self._client.send, self._exchange.request(self._client, operation))
        except httpx.TransportError as error:
            raise self._exchange.failure(error) from error
        return self._exchange.answer(operation, response)

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """An open event stream; transport errors come through as they are, for the follower to go on after them."""
        with self._client.stream("GET", path, headers=dict(headers), timeout=STREAM_TIMEOUT) as response:
            if not response.is_success:
                raise error_of(response.status_code, response.read(), url=self.url)
            yield response

    def receive(self, path: str) -> Iterator[bytes]:
        """The pieces of a large answer.

        Raises:
            AnswerError: the server refuses.
            TransferBroken: it ended before all was there.
        """
        try:
            with self._client.stream("GET", path, timeout=STREAM_TIMEOUT) as response:
                if not response.is_success:
                    raise error_of(response.status_code, response.read(), url=self.url)
                yield from response.iter_raw()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._exchange.failure(error) from error
        except httpx.TransportError as error:
            raise TransferBroken from error

    def transmit(self, operation: Operation[M], file: IO[bytes], size: int, progress: Progress | None) -> M:
        """The answer of an operation that a file is sent with. An answer that comes early ends the sending."""
        try:
            response = self._client.post(
                operation.path,
                content=pieces_of(file, progress),
                headers=self._exchange.headers_of_file(size),
                timeout=TRANSFER_TIMEOUT,
            )
        except httpx.TransportError as error:
            raise self._exchange.failure(error) from error
        return self._exchange.answer(operation, response)

    def wait(self, seconds: float) -> None:
        """Wait before something is tried again."""
        self._sleep(seconds)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncSender:
    """Sends operations without blocking."""

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        retries: RetryPolicy = CLIENT_RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._exchange = Exchange(url, token, retries)
        self._client = httpx.AsyncClient(**self._exchange.client_options(), transport=transport)
        self._sleep = sleep

    @property
    def url(self) -> str:
        """The server's address."""
        return self._exchange.url

    async def send(self, operation: Operation[M]) -> M:
        """The operation's answer."""
        retrying = AsyncRetrying(sleep=self._sleep, **self._exchange.retrying(operation))
        try:
            response: httpx.Response = await retrying(
                self._client.send, self._exchange.request(self._client, operation)
            )
        except httpx.TransportError as error:
            raise self._exchange.failure(error) from error
        return self._exchange.answer(operation, response)

    @asynccontextmanager
    async def stream(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """An open event stream; transport errors come through as they are, for the follower to go on after them."""
        async with self._client.stream("GET", path, headers=dict(headers), timeout=STREAM_TIMEOUT) as response:
            if not response.is_success:
                raise error_of(response.status_code, await response.aread(), url=self.url)
            yield response

    async def receive(self, path: str) -> AsyncIterator[bytes]:
        """The pieces of a large answer.

        Raises:
            AnswerError: the server refuses.
            TransferBroken: it ended before all was there.
        """
        try:
            async with self._client.stream("GET", path, timeout=STREAM_TIMEOUT) as response:
                if not response.is_success:
                    raise error_of(response.status_code, await response.aread(), url=self.url)
                async for piece in response.aiter_raw():
                    yield piece
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self._exchange.failure(error) from error
        except httpx.TransportError as error:
            raise TransferBroken from error

    async def transmit(self, operation: Operation[M], file: IO[bytes], size: int, progress: Progress | None) -> M:
        """The answer of an operation that a file is sent with."""

        async def pieces() -> AsyncIterator[bytes]:
            for piece in pieces_of(file, progress):
                yield piece

        try:
            response = await self._client.post(
                operation.path,
                content=pieces(),
                headers=self._exchange.headers_of_file(size),
                timeout=TRANSFER_TIMEOUT,
            )
        except httpx.TransportError as error:
            raise self._exchange.failure(error) from error
        return self._exchange.answer(operation, response)

    async def wait(self, seconds: float) -> None:
        """Wait before something is tried again."""
        await self._sleep(seconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _outcome(state: RetryCallState) -> httpx.Response | BaseException:
    assert state.outcome is not None  # noqa: S101 - tenacity sets it before it decides
    return state.outcome.exception() or state.outcome.result()


def pieces_of(file: IO[bytes], progress: Progress | None) -> Iterator[bytes]:
    """A file as it is sent."""
    while piece := file.read(TRANSFER_PIECE):
        yield piece
        if progress is not None:
            progress(len(piece))


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
