"""Shared by both senders: building requests, retries, interpreting answers. No I/O."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import IO, Any, TypeAlias, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState, stop_after_attempt, stop_never

from lem_client.errors import NoAnswerInTime, ServerFailed, ServerUnreachable, answer_error, unexpected_answer
from lem_client.operations import Operation
from lem_domain.bundle import MEDIA_TYPE, OnBytes
from lem_domain.retries import RetryPolicy

M = TypeVar("M", bound=BaseModel)

Sleep: TypeAlias = Callable[[float], None]
AsyncSleep: TypeAlias = Callable[[float], Awaitable[None]]

CONNECT_TIMEOUT_S = 10.0
"""Long enough for a lost packet or two: the kernel repeats one after 1 s, 3 s and 7 s."""
WRITE_TIMEOUT_S = 60.0
"""For each part of a body, not for the whole transfer."""
IMPORT_TIMEOUT = httpx.Timeout(CONNECT_TIMEOUT_S, read=3600.0, write=WRITE_TIMEOUT_S)
"""The server stores a bundle of many gigabytes before it answers, and sends nothing until then."""
STREAM_TIMEOUT = httpx.Timeout(CONNECT_TIMEOUT_S, read=45.0)
"""The server sends a comment every 15 s; a stream that misses three is dead."""

_FILE_PART_BYTES = 2**18


class Exchange:
    """Builds the requests to one server and interprets their outcome."""

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
        # HTTP_PROXY is meant for other machines: a proxy must get neither the loopback requests nor their token.
        return {"base_url": self.url, "headers": headers, "trust_env": not _is_loopback(self.url)}

    def request(self, client: httpx.Client | httpx.AsyncClient, operation: Operation[M]) -> httpx.Request:
        """The HTTP request of an operation."""
        headers = {"Accept": "application/json"}
        content = None
        if operation.file is not None:
            headers["Content-Type"], content = operation.media_type, operation.file
        elif operation.body is not None:
            headers["Content-Type"] = operation.media_type
            # Unset fields stay out, so the server's defaults apply.
            content = operation.body.model_dump_json(exclude_unset=True).encode()
        if operation.idempotency_key is not None:
            headers["Idempotency-Key"] = operation.idempotency_key
        return client.build_request(
            operation.method,
            operation.path,
            params={name: value for name, value in operation.parameters.items() if value is not None},
            content=content,
            headers=headers,
            timeout=httpx.Timeout(CONNECT_TIMEOUT_S, read=operation.read_timeout_s, write=WRITE_TIMEOUT_S),
        )

    def file_options(self, size: int) -> dict[str, Any]:
        """Options of the request that sends a bundle of `size` bytes."""
        headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(size), "Accept": "application/json"}
        return {"headers": headers, "timeout": IMPORT_TIMEOUT}

    def retrying(self, operation: Operation[M]) -> dict[str, Any]:
        """Options of tenacity's loop for an operation; it returns the last response or raises the last error."""
        limit = self._retries.attempts

        def is_retried(state: RetryCallState) -> bool:
            match _outcome(state):
                case httpx.Response() as response:
                    return operation.repeatable and self._retries.is_transient(response.status_code)
                case httpx.ConnectError() | httpx.ConnectTimeout():
                    return True  # without a connection nothing was sent
                case httpx.ReadTimeout():
                    return False  # another attempt would wait for as long
                case error:
                    return operation.repeatable and isinstance(error, httpx.TransportError)

        return {
            "retry": is_retried,
            "wait": self._delay_s,
            "stop": stop_never if limit is None else stop_after_attempt(limit),
            "retry_error_callback": lambda state: state.outcome and state.outcome.result(),
        }

    def error(self, error: httpx.TransportError) -> ServerUnreachable | NoAnswerInTime:
        """The client's error for one of httpx."""
        if isinstance(error, httpx.ReadTimeout):
            return NoAnswerInTime(self.url, error.request.extensions["timeout"]["read"])
        return ServerUnreachable(self.url, str(error))

    def answer(self, operation: Operation[M], response: httpx.Response) -> M:
        """The answer's model.

        Raises:
            AnswerError: the server refused, or this client does not understand the answer.
        """
        if not response.is_success:
            raise answer_error(response.status_code, response.content, url=self.url)
        try:
            return operation.answer.model_validate_json(response.content)
        except ValidationError as error:
            what = f"{self.url}{operation.path} sent an answer that this client does not understand"
            raise ServerFailed(response.status_code, unexpected_answer(response.status_code, what)) from error

    def _delay_s(self, state: RetryCallState) -> float:
        outcome = _outcome(state)
        asked = outcome.headers.get("Retry-After") if isinstance(outcome, httpx.Response) else None
        return self._retries.delay_s(state.attempt_number, asked)


def file_parts(file: IO[bytes], progress: OnBytes | None) -> Iterator[bytes]:
    """The content of a file, part by part; `progress` gets the size of each part once it is sent."""
    while part := file.read(_FILE_PART_BYTES):
        yield part
        if progress is not None:
            progress(len(part))


async def async_file_parts(file: IO[bytes], progress: OnBytes | None) -> AsyncIterator[bytes]:
    """The same as an asynchronous iterator, which httpx's AsyncClient requires. Reading the file blocks."""
    for part in file_parts(file, progress):
        yield part


def _outcome(state: RetryCallState) -> httpx.Response | BaseException:
    assert state.outcome is not None  # noqa: S101 - tenacity sets it before it decides
    return state.outcome.exception() or state.outcome.result()


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
