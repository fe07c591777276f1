"""What goes wrong: a fault every few seconds, drawn by a seeded generator until every kind had its turn, and again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from chaos.world import Server, Worker, World
from factories.fault_proxy import FaultProxy

T = TypeVar("T")

DROPPED = (b"/chunks/", b":complete", b":start", b"/claims", b"/completion", b":end", b"POST /api/v1/workers ")
"""Requests whose answers are swallowed."""
DROP_WITHIN_S = 8.0


@dataclass
class Fault:
    """One fault that was made."""

    kind: str
    subject: str
    worker: str | None
    """Whose next step ends the recovery; None where anybody's does."""
    began: float
    ended: float | None = None
    """When it was over by itself, for those that last: the recovery is counted from here."""


class Skipped(Exception):
    """There is nothing at the moment that this fault could hit."""


@dataclass
class Chaos:
    """Makes faults in a world."""

    world: World
    random: random.Random
    made: list[Fault] = field(default_factory=list)
    skipped: int = 0
    tell: Callable[[str], None] = lambda _: None
    _busy: set[str] = field(default_factory=set)
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, seconds: float, pause_s: tuple[float, float] = (1.0, 3.5)) -> None:
        """Make faults for so long, and wait until the last one is over and mended."""
        deadline = time.monotonic() + seconds
        kinds = self._kinds()
        while time.monotonic() < deadline:
            task = asyncio.create_task(self._make(next(kinds)))
            self._under_way.add(task)
            await asyncio.sleep(self.random.uniform(*pause_s))
            for done in [one for one in self._under_way if one.done()]:
                self._under_way.discard(done)
                done.result()
        await asyncio.gather(*self._under_way)
        for wire in self.world.wires():
            wire.heal()
            await wire.start()

    def _kinds(self) -> Iterator[Callable[[Chaos], Awaitable[None]]]:
        while True:
            bag = list(KINDS)
            self.random.shuffle(bag)
            yield from bag

    async def _make(self, kind: Callable[[Chaos], Awaitable[None]]) -> None:
        try:
            await kind(self)
        except Skipped:
            self.skipped += 1

    @contextlib.contextmanager
    def on(self, kind: str, subject: str, worker: str | None = None, *, lasts: bool = False) -> Iterator[Fault]:
        """A fault at somebody who has no other one at the moment."""
        fault = Fault(kind, subject, worker, time.monotonic())
        self.made.append(fault)
        self.tell(f"{kind} {subject}")
        self._busy.add(subject)
        try:
            yield fault
        finally:
            self._busy.discard(subject)
            if lasts:
                fault.ended = time.monotonic()

    def one_of(self, candidates: list[T], name: Callable[[T], str]) -> T:
        """Somebody who has no fault at the moment."""
        free = [one for one in candidates if name(one) not in self._busy]
        if not free:
            raise Skipped
        return self.random.choice(free)

    def server(self) -> Server:
        """A server that is up."""
        return self.one_of([one for one in self.world.servers if one.alive], lambda one: one.name)

    def worker(self) -> Worker:
        """A worker that is up."""
        return self.one_of([one for one in self.world.workers if one.alive], lambda one: one.name)

    def require_free(self, subject: str) -> None:
        """Skip where this has a fault at the moment."""
        if subject in self._busy:
            raise Skipped


# --- processes that are killed ----------------------------------------------------------------------------------------


async def server_killed(chaos: Chaos) -> None:
    """SIGKILL of a replica, which is started again."""
    server = chaos.server()
    with chaos.on("server killed", server.name):
        await server.kill()
        await asyncio.sleep(chaos.random.uniform(0, 3))
        await chaos.world.start_server(server)


async def worker_killed(chaos: Chaos) -> None:
    """SIGKILL of a daemon, which is started again with the same state folder."""
    worker = chaos.worker()
    with chaos.on("worker killed", worker.name, worker.name):
        await worker.kill()
        await asyncio.sleep(chaos.random.uniform(0, 2))
        await worker.start()


def _child_killed(kind: str, module: str) -> Callable[[Chaos], Awaitable[None]]:
    async def fault(chaos: Chaos) -> None:
        families = [(worker, child) for worker in chaos.world.workers for child in worker.family(module)]
        worker, child = chaos.one_of(families, lambda pair: pair[0].name)
        with chaos.on(kind, worker.name, worker.name), contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)

    fault.__doc__ = f"SIGKILL of a `{module}`."
    return fault


def _postgres_killed(kind: str, number: signal.Signals) -> Callable[[Chaos], Awaitable[None]]:
    async def fault(chaos: Chaos) -> None:
        chaos.require_free("postgres")
        with chaos.on(kind, "postgres"):
            chaos.world.postgres.kill(number)
            await chaos.world.start_postgres()

    fault.__doc__ = f"{number.name} to the postmaster, which is started again."
    return fault


# --- processes that are frozen ----------------------------------------------------------------------------------------


async def worker_frozen(chaos: Chaos) -> None:
    """SIGSTOP of a worker with all its processes until its lease is lost: a zombie that must be fenced off."""
    worker = chaos.worker()
    with chaos.on("worker frozen", worker.name, worker.name, lasts=True):
        await _frozen([worker.pid, *(child.pid for child in worker.family())], chaos.world.terms.lost_after_s)


async def daemon_frozen(chaos: Chaos) -> None:
    """SIGSTOP of a daemon alone; its beats go on."""
    worker = chaos.worker()
    with chaos.on("daemon frozen", worker.name, worker.name, lasts=True):
        await _frozen([worker.pid], chaos.world.terms.lost_after_s)


async def server_frozen(chaos: Chaos) -> None:
    """SIGSTOP of a replica, which may hold locks in the database meanwhile."""
    server = chaos.server()
    with chaos.on("server frozen", server.name, lasts=True):
        await _frozen([server.pid], chaos.random.uniform(2, 10))


async def _frozen(pids: list[int], seconds: float) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# --- wires ------------------------------------------------------------------------------------------------------------


def _on_worker_wire(
    kind: str, make: Callable[[Chaos, FaultProxy], Awaitable[object]], *, lasts: bool = False
) -> Callable[[Chaos], Awaitable[None]]:
    async def fault(chaos: Chaos) -> None:
        worker = chaos.one_of(chaos.world.workers, lambda one: f"wire of {one.name}")
        with chaos.on(kind, f"wire of {worker.name}", worker.name, lasts=lasts):
            await make(chaos, worker.wire)

    return fault


def _on_user_wire(
    kind: str, make: Callable[[Chaos, FaultProxy], Awaitable[object]]
) -> Callable[[Chaos], Awaitable[None]]:
    async def fault(chaos: Chaos) -> None:
        chaos.require_free("wire of user")
        assert chaos.world.user_wire is not None
        with chaos.on(kind, "wire of user", "user"):
            await make(chaos, chaos.world.user_wire)

    return fault


def _on_database_wire(
    kind: str, make: Callable[[Chaos, FaultProxy], Awaitable[object]], *, lasts: bool = False
) -> Callable[[Chaos], Awaitable[None]]:
    async def fault(chaos: Chaos) -> None:
        server = chaos.one_of(chaos.world.servers, lambda one: f"database wire of {one.name}")
        with chaos.on(kind, f"database wire of {server.name}", lasts=lasts):
            await make(chaos, server.database)

    return fault


async def _cut(_: Chaos, wire: FaultProxy) -> None:
    wire.cut()


async def _forsake(_: Chaos, wire: FaultProxy) -> None:
    wire.forsake()


async def _refuse(chaos: Chaos, wire: FaultProxy) -> None:
    wire.cut()
    await wire.refuse_for(chaos.random.uniform(1, 5))


async def _short_hole(chaos: Chaos, wire: FaultProxy) -> None:
    await wire.black_hole_for(chaos.random.uniform(1, chaos.world.terms.ttl_s))


async def _long_hole(chaos: Chaos, wire: FaultProxy) -> None:
    await wire.black_hole_for(chaos.world.terms.lost_after_s)


async def _slow(chaos: Chaos, wire: FaultProxy) -> None:
    wire.delay(chaos.random.uniform(0.05, 0.4))
    await asyncio.sleep(chaos.random.uniform(1, 4))
    wire.delay(0)


async def _drop_answer(chaos: Chaos, wire: FaultProxy) -> None:
    await _within(wire, wire.drop_next_answer(chaos.random.choice(DROPPED)))


async def _drop_answer_to_user(_: Chaos, wire: FaultProxy) -> None:
    await _within(wire, wire.drop_next_answer(b"POST "))


async def _drop_commit(_: Chaos, wire: FaultProxy) -> None:
    await _within(wire, wire.drop_next_answer(b"COMMIT;"))


async def _cut_request(chaos: Chaos, wire: FaultProxy) -> None:
    await _within(wire, wire.cut_after(chaos.random.randrange(1, 8000), "request"))


async def _cut_answer(chaos: Chaos, wire: FaultProxy) -> None:
    await _within(wire, wire.cut_after(chaos.random.randrange(1, 3000), "answer"))


async def _within(wire: FaultProxy, done: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(DROP_WITHIN_S):
            await done.wait()
    except TimeoutError:
        wire.forget()


KINDS: tuple[Callable[[Chaos], Awaitable[None]], ...] = (
    server_killed,
    worker_killed,
    _child_killed("rank killed", "lem_worker.rank.main"),
    _child_killed("sampler killed", "lem_worker.sampler.main"),
    _child_killed("beat process killed", "lem_worker.heartbeat.sender"),
    _postgres_killed("PostgreSQL killed (SIGKILL)", signal.SIGKILL),
    _postgres_killed("PostgreSQL stopped (SIGQUIT)", signal.SIGQUIT),
    worker_frozen,
    daemon_frozen,
    server_frozen,
    _on_worker_wire("worker's connections cut", _cut),
    _on_worker_wire("worker's connections refused", _refuse, lasts=True),
    _on_worker_wire("worker's wire silent, briefly", _short_hole, lasts=True),
    _on_worker_wire("worker's wire silent, lease lost", _long_hole, lasts=True),
    _on_worker_wire("worker's wire slow", _slow, lasts=True),
    _on_worker_wire("answer to worker dropped", _drop_answer),
    _on_worker_wire("worker's request cut inside", _cut_request),
    _on_worker_wire("answer to worker cut inside", _cut_answer),
    _on_user_wire("answer to user dropped", _drop_answer_to_user),
    _on_database_wire("database connections cut", _cut),
    _on_database_wire("database connections forgotten", _forsake),
    _on_database_wire("database connections refused", _refuse, lasts=True),
    _on_database_wire("database's wire silent", _short_hole, lasts=True),
    _on_database_wire("answer to COMMIT dropped", _drop_commit),
    _on_database_wire("statement cut inside", _cut_request),
)
"""Every kind of fault."""
