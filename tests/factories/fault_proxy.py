"""A TCP proxy that breaks connections where it is told to: cut, refused, slow, silent, or without the answer.

It listens on loopback and hands each connection to the next of its targets (TCP or unix sockets) that accepts it. A
tap may watch what passes; it sees only what is delivered, and sees it before the other side does.

`python -m factories.fault_proxy HOST:PORT|SOCKET ...` runs one as a process: it prints its port and takes one fault a
line on standard input, for example `cut`, `refuse 3`, `black_hole 3`, `delay 0.2`, `drop_next_answer /chunks/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

PIECE_BYTES = 65_536
TRIES_PER_TARGET_S = 5.0

Direction = Literal["request", "answer"]
"""From whoever connected to the proxy, or back to it."""


class Tcp(NamedTuple):
    """A target that listens on TCP."""

    host: str
    port: int


class Unix(NamedTuple):
    """A target that listens on a unix socket."""

    path: Path


Target = Tcp | Unix


class Tap(Protocol):
    """Watches one connection."""

    def request(self, piece: bytes) -> None:
        """This is about to be handed to the target."""

    def answer(self, piece: bytes) -> None:
        """This is about to be handed back."""

    def dropped(self, piece: bytes) -> None:
        """This was the answer's begin, and is handed to nobody."""


class FaultProxy:
    """One listening port in front of some targets."""

    def __init__(self, targets: Sequence[Target], *, tap: Callable[[], Tap] | None = None) -> None:
        self.targets = list(targets)
        self.connected = 0
        """Connections that reached a target so far."""
        self._tap = tap
        self._turn = 0
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._delay_s = 0.0
        self._drops: list[tuple[bytes, asyncio.Event]] = []
        self._limits: list[_Limit] = []
        # Bound and never listening: keeps the port while connections are refused.
        self._reserved = _bound(0)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._reserved.getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._links)

    async def start(self) -> None:
        """Accept connections, also again after `refuse`."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, sock=_bound(self.port))

    async def close(self) -> None:
        """End every connection and give the port back."""
        await self.refuse()
        tasks = [link.task for link in self._links if link.task is not None]
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._reserved.close()

    # --- faults -------------------------------------------------------------------------------------------------------

    def cut(self) -> int:
        """Reset every open connection; says how many."""
        links = tuple(self._links)
        for link in links:
            link.abort()
        return len(links)

    async def refuse(self) -> None:
        """Refuse new connections until `start`."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    async def refuse_for(self, seconds: float) -> None:
        """Refuse new connections for so long."""
        await self.refuse()
        try:
            await asyncio.sleep(seconds)
        finally:
            await self.start()

    def cut_after(self, count: int, direction: Direction) -> asyncio.Event:
        """Let so many more bytes pass in one direction, all connections together, and end the one that carries more.

        The event is set when that has happened.
        """
        limit = _Limit(count, direction, asyncio.Event())
        self._limits.append(limit)
        return limit.done

    def drop_next_answer(self, containing: bytes = b"") -> asyncio.Event:
        """Hand the next request over whole, swallow its answer, and end the connection.

        It is the first answer on a connection over which, from now on, a piece of a request came that contains this.
        The event is set when that has happened.
        """
        done = asyncio.Event()
        self._drops.append((containing, done))
        return done

    def delay(self, seconds: float) -> None:
        """Hold every piece so long in either direction; 0 ends it."""
        self._delay_s = seconds

    def black_hole(self) -> None:
        """Accept connections and bytes, and hand nothing over in either direction until `heal`."""
        self._open.clear()

    async def black_hole_for(self, seconds: float) -> None:
        """Be a black hole for so long; what came meanwhile arrives late, as after a network's partition."""
        self.black_hole()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._open.set()

    def forsake(self) -> int:
        """Hand nothing over any more on the open connections and never end them, as a firewall that forgot them; says
        how many. New connections are welcome."""
        links = tuple(self._links)
        for link in links:
            link.forsaken = True
        return len(links)

    def forget(self) -> None:
        """Give up the cuts and drops that have not happened."""
        self._drops.clear()
        self._limits.clear()

    def heal(self) -> None:
        """End the black hole and the delay, and give up the cuts and drops that have not happened."""
        self._open.set()
        self._delay_s = 0.0
        self.forget()

    # --- passing on ---------------------------------------------------------------------------------------------------

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer, self._tap() if self._tap is not None else None)
        self._links.add(link)
        link.task = asyncio.create_task(self._serve(link, reader))

    async def _serve(self, link: _Link, reader: asyncio.StreamReader) -> None:
        try:
            await self._open.wait()
            target = await self._connect()
            if target is None:
                return
            self.connected += 1
            link.target = target[1]
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(link, reader, target[1], "request"))
                both.create_task(self._pump(link, target[0], link.incoming, "answer"))
        except* (OSError, _Ended):
            pass
        finally:
            link.close()
            self._links.discard(link)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in self.targets:
            self._turn += 1
            target = self.targets[self._turn % len(self.targets)]
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(TRIES_PER_TARGET_S):
                    if isinstance(target, Unix):
                        return await asyncio.open_unix_connection(target.path)
                    return await asyncio.open_connection(*target)
        return None

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        while piece := await reader.read(PIECE_BYTES):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await self._open.wait()
            if link.forsaken:
                continue
            if direction == "request":
                self._notice(link, piece)
            elif link.drop is not None:
                link.drop.set()
                if link.tap is not None:
                    link.tap.dropped(piece)
                raise _Ended
            allowed, limit = self._within_limits(piece, direction)
            if link.tap is not None:
                (link.tap.request if direction == "request" else link.tap.answer)(piece[:allowed])
            writer.write(piece[:allowed])
            await writer.drain()
            if limit is not None:
                limit.done.set()
                raise _Ended
        if link.forsaken and direction == "answer":
            await asyncio.Event().wait()
        raise _Ended

    def _notice(self, link: _Link, piece: bytes) -> None:
        if link.drop is not None:
            return
        for drop in self._drops:
            if drop[0] in piece:
                self._drops.remove(drop)
                link.drop = drop[1]
                return

    def _within_limits(self, piece: bytes, direction: Direction) -> tuple[int, _Limit | None]:
        for limit in self._limits:
            if limit.direction == direction:
                if len(piece) >= limit.left:
                    self._limits.remove(limit)
                    return limit.left, limit
                limit.left -= len(piece)
        return len(piece), None


class _Ended(Exception):
    """One direction is over, and so is the connection."""


class _Limit:
    def __init__(self, left: int, direction: Direction, done: asyncio.Event) -> None:
        self.left = left
        self.direction = direction
        self.done = done


class _Link:
    """A connection and its continuation."""

    def __init__(self, incoming: asyncio.StreamWriter, tap: Tap | None) -> None:
        self.task: asyncio.Task[None] | None = None
        self.incoming = incoming
        self.target: asyncio.StreamWriter | None = None
        self.tap = tap
        self.drop: asyncio.Event | None = None
        self.forsaken = False

    def close(self) -> None:
        """End both sides once what was handed over is on its way."""
        for writer in (self.incoming, self.target):
            if writer is not None:
                writer.close()

    def abort(self) -> None:
        """End both sides now, whatever is on its way."""
        for writer in (self.incoming, self.target):
            if writer is not None:
                writer.transport.abort()
        if self.task is not None:
            self.task.cancel()


def _bound(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    made.setblocking(False)
    return made


def parse_target(text: str) -> Target:
    """`HOST:PORT`, or the path of a unix socket."""
    if text.startswith("/"):
        return Unix(Path(text))
    host, _, port = text.rpartition(":")
    return Tcp(host, int(port))


async def _main(targets: Sequence[str]) -> None:
    proxy = FaultProxy([parse_target(one) for one in targets])
    await proxy.start()
    print(proxy.port, flush=True)  # noqa: T201 - what whoever started it waits for
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    lasting: set[asyncio.Task[None]] = set()
    while line := (await lines.readline()).decode():
        match line.split():
            case ["cut"]:
                proxy.cut()
            case ["refuse", seconds]:
                lasting.add(asyncio.create_task(proxy.refuse_for(float(seconds))))
            case ["black_hole", seconds]:
                lasting.add(asyncio.create_task(proxy.black_hole_for(float(seconds))))
            case ["delay", seconds]:
                proxy.delay(float(seconds))
            case ["cut_after", count, ("request" | "answer") as direction]:
                proxy.cut_after(int(count), direction)
            case ["drop_next_answer", *containing]:
                proxy.drop_next_answer(" ".join(containing).encode())
            case ["forsake"]:
                proxy.forsake()
            case ["heal"]:
                proxy.heal()
            case _:
                sys.exit(f"unknown fault {line!r}; the faults are the methods of FaultProxy")
    await proxy.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
