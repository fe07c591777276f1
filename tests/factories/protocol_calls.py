"""Every request of the lease protocol, made of the server's own services, with its answer as a worker would read it."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.evidence import MadeChunk
from factories.protocol_world import EFFECTIVE, MANIFEST, PROCESS, Machine
from factories.worker import device_body
from lem_domain.errors import LemError, ProblemCode
from lem_domain.ids import IdKind, format_id
from lem_domain.states import FailureReason
from lem_domain.wire.runs import EffectiveConfig, RunView
from lem_domain.wire.workers import (
    AttemptHeartbeat,
    ClaimRequest,
    CompleteAttempt,
    Device,
    EndAttempt,
    Heartbeat,
    ProcessCompletion,
    RegisterWorker,
    StartAttempt,
)
from lem_server.attempts import service as attempts
from lem_server.campaigns import service as campaigns
from lem_server.database.listener import Hub
from lem_server.evidence import service as evidence
from lem_server.evidence.validation import ChunkKey
from lem_server.http.idempotency import KeyedRequest, run_once
from lem_server.http.problems import problem_of
from lem_server.leases import claims
from lem_server.leases import service as leases
from lem_server.leases.fence import FencedAttempt
from lem_server.runs import changes as runs
from lem_server.settings import LeaseTerms
from lem_server.workers import service as workers

TERMS = LeaseTerms(ttl_s=60, grace_s=300, heartbeat_interval_s=15)
USER = "tester"
OK = "ok"
NOTHING = "nothing"
BUSY = ProblemCode.NOT_READY.value

_START = StartAttempt(environment={"python": "3.11"}, effective_config=EffectiveConfig.model_validate(EFFECTIVE))
_COMPLETE = CompleteAttempt(processes=(PROCESS,), manifest=MANIFEST)
_MARKER = ProcessCompletion(streams=MANIFEST, summary={})
_PRINCIPAL = uuid4()


class Answer(NamedTuple):
    """`ok`, `nothing` (204) or a problem's code, with what came along."""

    code: str
    body: Any = None


Call = Callable[[], Awaitable[Answer]]
"""One request; called again it is the same request sent again."""


def holder_of(attempt: UUID, machine: Machine) -> FencedAttempt:
    """Who a worker says that it is when it writes to an attempt."""
    return FencedAttempt(attempt, machine.id, machine.boot)


async def answered(call: Call) -> Answer:
    """What one sending is answered, errors as the application would answer them."""
    try:
        return await call()
    except Exception as error:
        if isinstance(error, LemError) and not hasattr(error, "code"):
            raise
        problem = problem_of(error, None)
        return Answer(problem.code.value, problem.members or f"{type(error).__name__}: {error}")


class Server:
    """One replica: an engine and what belongs to it."""

    def __init__(self, engine: AsyncEngine, backend: str = "simulated") -> None:
        self.engine = engine
        self.backend = backend
        self._hub = Hub(engine)

    # --- workers ------------------------------------------------------------------------------------------------------

    def register(self, machine: Machine) -> Call:
        """A worker announces a boot."""
        request = RegisterWorker(
            id=machine.name,
            boot_id=machine.boot,
            name="worker",
            host="host",
            backend=self.backend,
            devices=tuple(Device.model_validate(device_body(uuid)) for uuid in machine.devices),
        )
        return _said(lambda: workers.register(self.engine, TERMS, request))

    def sign_off(self, machine: Machine) -> Call:
        """A worker leaves."""
        return _said(lambda: workers.sign_off(self.engine, machine.id, machine.boot))

    def drain(self, machine: Machine) -> Call:
        """A user drains a worker."""
        return _said(lambda: workers.drain(self.engine, TERMS, machine.id))

    def claim(self, machine: Machine, claim_id: UUID | None = None, devices: Sequence[str] | None = None) -> Call:
        """A worker asks for work; the body is the attempt's assignment."""
        request = ClaimRequest(
            claim_id=claim_id or uuid4(),
            boot_id=machine.boot,
            devices=tuple(machine.devices if devices is None else devices),
            wait_s=0,
        )

        async def call() -> Answer:
            found = await claims.claim(self.engine, self._hub, TERMS, worker_id=machine.id, request=request)
            return Answer(NOTHING) if found.assignment is None else Answer(OK, found.assignment)

        return call

    def beat(self, machine: Machine, attempts: Sequence[UUID]) -> Call:
        """A worker beats; the body is the verdict on each attempt."""
        request = Heartbeat(
            boot_id=machine.boot,
            attempts=tuple(AttemptHeartbeat(attempt_id=format_id(IdKind.ATTEMPT, one)) for one in attempts),
        )

        async def call() -> Answer:
            found = await leases.heartbeat(self.engine, TERMS, worker_id=machine.id, request=request)
            return Answer(OK, tuple(one.verdict.value for one in found.attempts))

        return call

    # --- attempts -----------------------------------------------------------------------------------------------------

    def start(self, holder: FencedAttempt) -> Call:
        """The window may open."""
        return _said(lambda: attempts.start_attempt(self.engine, holder, _START))

    def put_chunk(self, holder: FencedAttempt, chunk: MadeChunk) -> Call:
        """One chunk; the body says whether it is new, and whether to cancel."""
        digest = hashlib.sha256(chunk.body).digest()
        key = ChunkKey(holder.attempt_id, chunk.process, chunk.stream, chunk.seq)
        return _said(lambda: evidence.put_chunk(self.engine, holder, key, chunk.body, digest))

    def put_log(self, holder: FencedAttempt) -> Call:
        """A piece of log."""
        return _said(lambda: evidence.put_log(self.engine, holder, process=PROCESS, seq=0, content="words"))

    def put_completion(self, holder: FencedAttempt) -> Call:
        """The marker of the only process."""
        return _said(lambda: evidence.put_completion(self.engine, holder, process=PROCESS, marker=_MARKER))

    def complete(self, holder: FencedAttempt) -> Call:
        """The manifest of all chunks."""
        return _said(lambda: attempts.complete_attempt(self.engine, holder, _COMPLETE))

    def end(
        self, holder: FencedAttempt, outcome: Literal["failed", "interrupted", "cancelled"], reason: FailureReason
    ) -> Call:
        """An attempt ends without a result."""
        request = EndAttempt(outcome=outcome, reason=reason, message="it ended")
        return _said(lambda: attempts.end_attempt(self.engine, holder, request))

    # --- the server's own ---------------------------------------------------------------------------------------------

    def expire(self) -> Call:
        """Maintenance ends what ran out."""
        return _said(lambda: attempts.end_expired(self.engine, TERMS))

    def mark_suspects(self) -> Call:
        """Maintenance notes what is late."""
        return _said(lambda: leases.mark_suspects(self.engine))

    # --- users --------------------------------------------------------------------------------------------------------

    def cancel_run(self, run: UUID) -> Call:
        """Cancel one run."""

        async def work() -> RunView:
            async with self.engine.begin() as connection:
                return await runs.cancel_run(connection, run, cancelled_by=USER)

        return _said(work)

    def cancel(self, campaign: UUID) -> Call:
        """Cancel a campaign."""
        return _said(lambda: campaigns.cancel(self.engine, campaign, cancelled_by=USER))

    def pause(self, campaign: UUID, live_runs: Literal["finish", "stop"]) -> Call:
        """Pause a campaign."""
        return _said(lambda: campaigns.pause(self.engine, campaign, live_runs=live_runs))

    def resume(self, campaign: UUID) -> Call:
        """Resume a campaign."""
        return _said(lambda: campaigns.resume(self.engine, campaign))

    def retry_run(self, run: UUID) -> Call:
        """Queue one run again, under a key as clients send it."""
        return self._keyed(lambda connection: campaigns.retry_run(connection, run, retried_by=USER))

    def retry_failed(self, campaign: UUID) -> Call:
        """Queue again what failed, under a key."""
        return self._keyed(lambda connection: campaigns.retry_failed(connection, campaign, retried_by=USER))

    def _keyed(self, produce: Callable[[Any], Awaitable[BaseModel]]) -> Call:
        key = uuid4().hex

        async def call() -> Answer:
            async with self.engine.begin() as connection:
                request = KeyedRequest(_PRINCIPAL, "retry", key, b"")
                found = await run_once(connection, request, lambda: produce(connection))
            return Answer(OK, found.body)

        return call


def _said(work: Callable[[], Awaitable[object]]) -> Call:
    async def call() -> Answer:
        return Answer(OK, await work())

    return call
