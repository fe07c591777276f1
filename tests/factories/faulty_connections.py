"""Requests whose statements run in a scripted order, over connections that break where a script says so.

A request's steps are its statements and commits. It stops before the step that its script names until it is told to go
on; while it waits for a lock that another one holds, the others go on. A fault kills the connection's process or cuts
its socket before a statement, before a commit, or after the commit and before its answer; then the request is sent
again, as a worker does that got no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from factories.protocol_calls import BUSY, Answer, Call, answered
from lem_server.database.engine import make_engine

_LOOK_S, _LONGEST_LOOK_S = 0.003, 0.05
"""How long a request may be silent before it is looked up whether it waits for a lock; each time twice as long."""
_LIMIT_S = 600.0
_MOST_SENDINGS = 20
_MOST_FAULTS = 2
"""A request that has met so many is spared, so that every story ends."""

_current: ContextVar[Request | None] = ContextVar("request", default=None)


class Request:
    """One request on its way through its steps."""

    def __init__(self, name: str, call: Call, control: Control, *, fault_rate: float = 0.0, seed: str = "") -> None:
        self.name = name
        self.steps = 0
        self.faults = 0
        self.sendings = 0
        self.answer: Answer | None = None
        self._call = call
        self._control = control
        self._rate = fault_rate
        self._random = random.Random(f"{seed}:{name}")
        self._stop_at: int | None = None
        self._settled = asyncio.Event()
        self._go = asyncio.Event()
        self._pid: int | None = None
        self._task: asyncio.Task[None] | None = None
        self.finished = False
        self.sent_after: frozenset[str] = frozenset()

    async def advance(self, until: int | None) -> None:
        """Go on to the given step, to the answer (None), or until it waits for a lock."""
        if self.finished:
            return
        self._stop_at = until
        if self._task is None:
            self._task = asyncio.create_task(self._send(), name=self.name)
        elif self._settled.is_set() and (until is None or until > self.steps):
            self._settled.clear()
            self._go.set()
        patience = _LOOK_S
        while not self._settled.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._settled.wait()
                    break
            patience = min(2 * patience, _LONGEST_LOOK_S)
            if self._pid is not None and await self._control.waits_for_lock(self._pid):
                return

    async def result(self) -> Answer:
        """Its answer, which it must have by now or get without anybody's help."""
        assert self._task is not None
        async with asyncio.timeout(_LIMIT_S):
            await self._task
        assert self.answer is not None
        return self.answer

    async def _send(self) -> None:
        _current.set(self)
        try:
            while self.answer is None or self.answer.code == BUSY:
                self.sendings += 1
                assert self.sendings <= _MOST_SENDINGS, f"{self.name} gets no answer: {self.answer}"
                self.answer = await answered(self._call)
        finally:
            self.finished = True
            self._settled.set()

    async def step(self, dbapi: Any, *, is_commit: bool) -> None:
        """Called before each statement and commit."""
        connection: asyncpg.Connection = dbapi.driver_connection
        self._pid = connection.get_server_pid()
        while self._stop_at is not None and self.steps >= self._stop_at:
            self._settled.set()
            self._go.clear()
            await self._go.wait()
        self.steps += 1
        if self.faults < _MOST_FAULTS and self._random.random() < self._rate:
            self.faults += 1
            self._control.faults += 1
            await self._break(dbapi, connection, after_commit=is_commit and self._random.random() < 0.5)

    async def _break(self, dbapi: Any, connection: asyncpg.Connection, *, after_commit: bool) -> None:
        pid = connection.get_server_pid()
        if after_commit:
            dbapi._transaction = _AnswerLost(dbapi._transaction, connection)
        elif self._random.random() < 0.5:
            await self._control.kill(pid)
        else:
            connection._transport.abort()
            await self._control.until_gone(pid)


class _AnswerLost:
    """A transaction whose commit is carried out and whose answer never comes."""

    def __init__(self, transaction: Any, connection: asyncpg.Connection) -> None:
        self._transaction = transaction
        self._connection = connection

    async def commit(self) -> None:
        """Commit, then lose the connection."""
        await self._transaction.commit()
        self._connection._transport.abort()
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    async def rollback(self) -> None:
        """As ever."""
        await self._transaction.rollback()


class Control:
    """Sees and ends the processes of a database."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._one_at_a_time = asyncio.Lock()
        self.deadlocks = 0
        self.faults = 0

    async def waits_for_lock(self, pid: int) -> bool:
        """Whether this process waits for a lock of another."""
        return await self._ask("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE pid = $1 AND NOT granted)", pid)

    async def kill(self, pid: int) -> None:
        """End a process and wait until it is gone."""
        await self._ask("SELECT pg_terminate_backend($1)", pid)
        await self.until_gone(pid)

    async def until_gone(self, pid: int) -> None:
        """Wait until a process has ended and let go of everything."""
        async with asyncio.timeout(_LIMIT_S):
            gone = False
            while not gone:
                gone = await self._ask("SELECT NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = $1)", pid)

    async def _ask(self, question: str, pid: int) -> bool:
        async with self._one_at_a_time:
            found: bool = await self._connection.fetchval(question, pid)
            return found


@contextlib.asynccontextmanager
async def scripted_engines(url: URL, control: Control, count: int) -> AsyncIterator[list[AsyncEngine]]:
    """Engines of as many replicas, whose requests can be stopped and broken; deadlocks are found at once."""
    engines = [make_engine(url, pool_size=4) for _ in range(count)]
    for engine in engines:
        event.listen(engine.sync_engine, "connect", _find_deadlocks_early, insert=True)
        event.listen(engine.sync_engine, "before_cursor_execute", _before_statement)
        event.listen(engine.sync_engine, "commit", _before_commit)
        event.listen(engine.sync_engine, "handle_error", lambda context: _count_deadlock(control, context))
    yield engines
    for engine in engines:
        await engine.dispose()


async def play(requests: Sequence[Request], turns: Sequence[tuple[int, int | None]]) -> list[Answer]:
    """Let requests take turns, each to the given step; what waits for a lock goes on when the others have moved."""
    for which, until in turns:
        if not requests[which].sendings:
            requests[which].sent_after = frozenset(one.name for one in requests if one.finished)
        await requests[which].advance(until)
    async with asyncio.timeout(_LIMIT_S):
        while not all(request.finished for request in requests):
            for request in requests:
                await request.advance(None)
    return [await request.result() for request in requests]


def _find_deadlocks_early(dbapi: Any, _record: Any) -> None:
    cursor = dbapi.cursor()
    cursor.execute("SET deadlock_timeout = '20ms'")
    cursor.close()
    dbapi.commit()


def _before_statement(connection: Any, *_: Any) -> None:
    request = _current.get()
    if request is not None:
        await_only(request.step(connection.connection.dbapi_connection, is_commit=False))


def _before_commit(connection: Any) -> None:
    request = _current.get()
    if request is not None:
        await_only(request.step(connection.connection.dbapi_connection, is_commit=True))


def _count_deadlock(control: Control, context: Any) -> None:
    if getattr(context.original_exception, "sqlstate", None) == "40P01":
        control.deadlocks += 1
