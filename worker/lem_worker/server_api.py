"""The worker's client of the REST API: one method per endpoint, with retries for as long as an outage lasts."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote
from uuid import UUID

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, retry_if_result, stop_after_attempt

from lem_domain.errors import LemError, Problem, ProblemCode
from lem_domain.evidence.streams import CHUNK_MEDIA_TYPE
from lem_domain.retries import WORKER_RETRIES, RetryPolicy
from lem_domain.wire.base import BOOT_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION, WORKER_HEADER, Page
from lem_domain.wire.datasets import DatasetContent
from lem_domain.wire.runs import AttemptView
from lem_domain.wire.workers import (
    Assignment,
    ClaimRequest,
    CompleteAttempt,
    EndAttempt,
    Heartbeat,
    HeartbeatAnswer,
    LogText,
    MissingChunks,
    ProcessCompletion,
    Registered,
    RegisterWorker,
    StartAttempt,
    WorkerView,
)

if TYPE_CHECKING:  # the heartbeat process imports this module too and must not load Arrow
    from lem_worker.process.spool import SpooledChunk

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)


class NoAssignment(Enum):
    """An answer to a claim that assigns no run."""

    RUN_WAITS = "run_waits"
    """A run for this worker exists, but waits for a gap, its turn or another run."""


class ServerRefused(LemError):
    """The server refuses a request; sending it again would not change that."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


class LeaseLost(ServerRefused):
    """The attempt's lease is no longer this worker's."""


class NotAllowed(ServerRefused):
    """The server does not accept the token or the worker's version."""


class ManifestIncomplete(ServerRefused):
    """The server lacks chunks of the manifest: those in `missing`."""

    def __init__(self, problem: Problem, missing: tuple[MissingChunks, ...]) -> None:
        super().__init__(problem)
        self.missing = missing


class ServerApi:
    """Calls of one boot of one worker.

    Every request is idempotent. After a connection error, 408, 429 or 5xx it is sent again until the server answers, as
    `WORKER_RETRIES` states.
    """

    def __init__(
        self,
        server: str,
        token: str,
        *,
        worker_id: str,
        boot_id: UUID,
        transport: httpx.AsyncBaseTransport | None = None,
        retries: RetryPolicy | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not server.startswith(("http://", "https://")):
            raise LemError(f"{server!r} is not a server address; write it like http://lem.example:8420.")
        self._worker_id = worker_id
        self._client = httpx.AsyncClient(
            base_url=server,
            headers={
                "Authorization": f"Bearer {token}",
                WORKER_HEADER: worker_id,
                BOOT_HEADER: str(boot_id),
                PROTOCOL_HEADER: str(PROTOCOL_VERSION),
            },
            # 60 s: above CLAIM_WAIT_S, for which the server holds a claim open. 5 s: a reachable server accepts a
            # connection in milliseconds; without one, the request is retried.
            timeout=httpx.Timeout(60, connect=5),
            transport=transport,
        )
        self._server = server
        self._retries = retries or WORKER_RETRIES
        self._sleep = sleep
        self._is_outage = False

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def register(self, request: RegisterWorker) -> Registered:
        """Register this boot."""
        return _read(Registered, await self._send("POST", "/api/v1/workers", body=request))

    async def sign_off(self, boot_id: UUID) -> None:
        """Sign off, with one attempt: a worker that ends must not wait for a server that is away.

        A second attempt follows where the server had just closed the idle connection.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(2), retry=retry_if_exception_type(httpx.RemoteProtocolError), reraise=True
        )
        path = f"/api/v1/workers/{self._worker_id}:sign_off"
        try:
            await retrying(self._client.post, path, json={"boot_id": str(boot_id)}, timeout=5)
        except httpx.HTTPError as error:
            logger.warning("could not sign off: %s", str(error) or type(error).__name__)

    async def claim(self, request: ClaimRequest) -> Assignment | NoAssignment | None:
        """Return the next run. If none is assigned within the wait: `RUN_WAITS` if one has to wait, else None."""
        answer = await self._send("POST", f"/api/v1/workers/{self._worker_id}/claims", body=request)
        if answer.status_code == HTTPStatus.NO_CONTENT:
            return NoAssignment.RUN_WAITS if "retry-after" in answer.headers else None
        return _read(Assignment, answer)

    async def heartbeat(self, request: Heartbeat) -> HeartbeatAnswer:
        """Renew leases, with one attempt: the next heartbeat follows anyway.

        Raises:
            httpx.HTTPError: the server did not answer, or reported a transient state.
            ServerRefused: it refused.
        """
        answer = await self._client.post(
            f"/api/v1/workers/{self._worker_id}/heartbeat",
            content=request.model_dump_json(),
            headers={"Content-Type": "application/json"},
            timeout=10,
        )
        if self._is_transient(answer):
            answer.raise_for_status()
        _raise_refusal(answer)
        return _read(HeartbeatAnswer, answer)

    async def start(self, attempt_id: str, request: StartAttempt) -> AttemptView:
        """Start the attempt: after this returns the window may open."""
        return _read(AttemptView, await self._send("POST", f"/api/v1/attempts/{attempt_id}:start", body=request))

    async def put_chunk(self, attempt_id: str, chunk: SpooledChunk) -> None:
        """Send a spooled chunk; after this returns it is durable on the server."""
        digest = base64.b64encode(bytes.fromhex(chunk.sha256)).decode()
        await self._send(
            "PUT",
            f"/api/v1/attempts/{attempt_id}/processes/{chunk.process}/streams/{chunk.stream.value}/chunks/{chunk.seq}",
            content=chunk.path.read_bytes(),
            headers={"Content-Type": CHUNK_MEDIA_TYPE, "Content-Digest": f"sha-256=:{digest}:"},
        )

    async def put_log(self, attempt_id: str, process: str, seq: int, text: str) -> None:
        """Send a part of a process's output."""
        await self._send(
            "PUT", f"/api/v1/attempts/{attempt_id}/processes/{process}/logs/{seq}", body=LogText(text=text)
        )

    async def put_completion(self, attempt_id: str, process: str, marker: ProcessCompletion) -> None:
        """Send the completion marker of a process."""
        await self._send("PUT", f"/api/v1/attempts/{attempt_id}/processes/{process}/completion", body=marker)

    async def complete(self, attempt_id: str, request: CompleteAttempt) -> AttemptView:
        """End the attempt with its manifest.

        Raises:
            ManifestIncomplete: the server lacks chunks.
        """
        return _read(AttemptView, await self._send("POST", f"/api/v1/attempts/{attempt_id}:complete", body=request))

    async def end(self, attempt_id: str, request: EndAttempt) -> AttemptView:
        """End the attempt without a result."""
        return _read(AttemptView, await self._send("POST", f"/api/v1/attempts/{attempt_id}:end", body=request))

    async def dataset(self, sha256: str) -> DatasetContent:
        """Return a prompt set."""
        return _read(DatasetContent, await self._send("GET", f"/api/v1/datasets/{sha256}"))

    async def workers(self) -> tuple[WorkerView, ...]:
        """Return every worker that has registered."""
        found: list[WorkerView] = []
        cursor = ""
        while True:
            page = _read(Page[WorkerView], await self._send("GET", f"/api/v1/workers{cursor}"))
            found += page.items
            if page.next is None:
                return tuple(found)
            cursor = f"?cursor={quote(page.next)}"

    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        content: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        if body is not None:
            content, headers = body.model_dump_json().encode(), {"Content-Type": "application/json"}
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(httpx.TransportError) | retry_if_result(self._is_transient),
            wait=self._delay_s,
            before_sleep=self._log_once,
            sleep=self._sleep,
        )
        answer: httpx.Response = await retrying(self._client.request, method, path, content=content, headers=headers)
        if self._is_outage:
            logger.info("the server answers again")
            self._is_outage = False
        _raise_refusal(answer)
        return answer

    def _is_transient(self, answer: httpx.Response) -> bool:
        return self._retries.is_transient(answer.status_code)

    def _delay_s(self, state: RetryCallState) -> float:
        outcome = _outcome(state)
        asked = outcome.headers.get("retry-after") if isinstance(outcome, httpx.Response) else None
        return self._retries.delay_s(state.attempt_number, asked)

    def _log_once(self, state: RetryCallState) -> None:
        """Log the first failure of an outage: one that lasts a night must not fill the log."""
        if self._is_outage:
            return
        self._is_outage = True
        outcome = _outcome(state)
        if isinstance(outcome, httpx.Response):
            why = f"{self._server} answered {outcome.status_code}"
        else:
            why = f"no answer from {self._server} ({str(outcome) or type(outcome).__name__})"
        logger.warning("%s; retrying until it answers, nothing is lost meanwhile", why)


def _outcome(state: RetryCallState) -> httpx.Response | BaseException:
    assert state.outcome is not None  # noqa: S101 - tenacity sets it before it decides
    return state.outcome.exception() or state.outcome.result()


def _read(model: type[M], answer: httpx.Response) -> M:
    try:
        return model.model_validate_json(answer.content)
    except ValidationError:
        raise ServerRefused(_not_lem(answer)) from None


def _raise_refusal(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValueError:
        problem = _not_lem(answer)
    if problem.code in (ProblemCode.LEASE_LOST, ProblemCode.ATTEMPT_CLOSED, ProblemCode.BOOT_SUPERSEDED):
        raise LeaseLost(problem)
    if problem.code is ProblemCode.MANIFEST_INCOMPLETE:
        missing: Sequence[object] = (problem.model_extra or {}).get("missing", ())
        raise ManifestIncomplete(problem, tuple(MissingChunks.model_validate(one) for one in missing))
    if answer.status_code in (401, 403, 426):
        raise NotAllowed(problem)
    raise ServerRefused(problem)


def _not_lem(answer: httpx.Response) -> Problem:
    return Problem(
        type="about:blank",
        title="Unexpected answer",
        status=answer.status_code,
        code=ProblemCode.INTERNAL,
        detail=f"the server answered {answer.status_code} in a way that no LEM server of this "
        "version does; check that LEM_SERVER names one.",
    )
