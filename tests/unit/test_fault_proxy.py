"""The proxy that breaks connections breaks exactly what it is told to, and nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from factories.fault_proxy import FaultProxy, Tcp, Unix

pytestmark = pytest.mark.anyio

LIMIT_S = 600.0
TESTS = Path(__file__).parents[1]


class Echo:
    """Answers every line with `echo ` and the line, and keeps what it got."""

    def __init__(self) -> None:
        self.got = b""
        self.changed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.read(65_536):
            self.got += line
            self.changed.set()
            if line.endswith(b"\n"):
                writer.write(b"echo " + line)
        writer.close()

    async def until(self, expected: bytes) -> None:
        async with asyncio.timeout(LIMIT_S):
            while self.got != expected:
                self.changed.clear()
                await self.changed.wait()


class Watch:
    """A tap that keeps what it saw."""

    def __init__(self, seen: list[tuple[str, bytes]]) -> None:
        self._seen = seen

    def request(self, piece: bytes) -> None:
        self._seen.append(("request", piece))

    def answer(self, piece: bytes) -> None:
        self._seen.append(("answer", piece))

    def dropped(self, piece: bytes) -> None:
        self._seen.append(("dropped", piece))


@pytest.fixture
def seen() -> list[tuple[str, bytes]]:
    """What the proxy's tap saw."""
    return []


@pytest.fixture
async def echo() -> Echo:
    """What the target got."""
    return Echo()


@pytest.fixture
async def proxy(echo: Echo, seen: list[tuple[str, bytes]]) -> AsyncIterator[FaultProxy]:
    """In front of an echo."""
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    made = FaultProxy([Tcp(*server.sockets[0].getsockname())], tap=lambda: Watch(seen))
    await made.start()
    yield made
    await made.close()
    server.close()


async def connect(proxy: FaultProxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], line: bytes) -> bytes:
    """Send and read the answer; empty where the connection ended without one."""
    reader, writer = connection
    writer.write(line)
    async with asyncio.timeout(LIMIT_S):
        try:
            return await reader.readline()
        except ConnectionError:
            return b""


async def test_bytes_pass_in_both_directions_and_the_tap_sees_them(
    proxy: FaultProxy, seen: list[tuple[str, bytes]]
) -> None:
    assert await ask(await connect(proxy), b"one\n") == b"echo one\n"
    assert seen == [("request", b"one\n"), ("answer", b"echo one\n")]


async def test_a_unix_socket_is_a_target_too(echo: Echo, tmp_path: Path) -> None:
    server = await asyncio.start_unix_server(echo.serve, tmp_path / "socket")
    proxy = FaultProxy([Unix(tmp_path / "socket")])
    await proxy.start()
    assert await ask(await connect(proxy), b"one\n") == b"echo one\n"
    await proxy.close()
    server.close()


async def test_connections_alternate_between_targets_and_pass_over_one_that_is_away(echo: Echo) -> None:
    other = Echo()
    servers = [await asyncio.start_server(one.serve, "127.0.0.1", 0) for one in (echo, other)]
    proxy = FaultProxy([Tcp(*server.sockets[0].getsockname()) for server in servers])
    await proxy.start()
    for _ in range(2):
        assert await ask(await connect(proxy), b"a\n")
    assert (echo.got, other.got) == (b"a\n", b"a\n")
    servers[1].close()
    for _ in range(2):
        assert await ask(await connect(proxy), b"b\n") == b"echo b\n"
    assert echo.got == b"a\nb\nb\n"
    await proxy.close()
    servers[0].close()


async def test_cut_ends_every_connection_and_new_ones_are_welcome(proxy: FaultProxy) -> None:
    connections = [await connect(proxy) for _ in range(2)]
    for one in connections:
        assert await ask(one, b"one\n")
    assert proxy.cut() == 2
    for one in connections:
        assert await ask(one, b"two\n") == b""
    assert await ask(await connect(proxy), b"three\n") == b"echo three\n"


async def test_refused_connections_are_not_made_and_open_ones_continue(proxy: FaultProxy) -> None:
    opened = await connect(proxy)
    assert await ask(opened, b"one\n")
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)
    assert await ask(opened, b"two\n") == b"echo two\n"
    port = proxy.port
    await proxy.start()
    assert proxy.port == port
    assert await ask(await connect(proxy), b"three\n") == b"echo three\n"


async def test_refusing_for_some_time_ends_by_itself(proxy: FaultProxy) -> None:
    await proxy.refuse_for(0)
    assert await ask(await connect(proxy), b"one\n") == b"echo one\n"


@pytest.mark.parametrize(("count", "arrives"), [(0, b""), (3, b"one"), (4, b"one\n"), (6, b"one\ntw")])
async def test_a_request_is_cut_after_so_many_bytes(proxy: FaultProxy, echo: Echo, count: int, arrives: bytes) -> None:
    done = proxy.cut_after(count, "request")
    connection = await connect(proxy)
    await ask(connection, b"one\n")
    await ask(connection, b"two\n")
    assert done.is_set()
    await echo.until(arrives)
    assert await ask(await connect(proxy), b"three\n") == b"echo three\n"


async def test_an_answer_is_cut_after_so_many_bytes(
    proxy: FaultProxy, echo: Echo, seen: list[tuple[str, bytes]]
) -> None:
    proxy.cut_after(6, "answer")
    assert await ask(await connect(proxy), b"one\n") == b"echo o"
    assert echo.got == b"one\n"
    assert seen == [("request", b"one\n"), ("answer", b"echo o")]


async def test_a_dropped_answer_belongs_to_a_request_that_arrived_whole(
    proxy: FaultProxy, echo: Echo, seen: list[tuple[str, bytes]]
) -> None:
    done = proxy.drop_next_answer()
    assert await ask(await connect(proxy), b"one\n") == b""
    assert done.is_set()
    assert echo.got == b"one\n"
    assert seen == [("request", b"one\n"), ("dropped", b"echo one\n")]
    assert await ask(await connect(proxy), b"two\n") == b"echo two\n"


async def test_only_the_answer_to_a_matching_request_is_dropped(proxy: FaultProxy) -> None:
    proxy.drop_next_answer(b"two")
    connection = await connect(proxy)
    assert await ask(connection, b"one\n") == b"echo one\n"
    assert await ask(connection, b"two\n") == b""


async def test_a_delay_holds_what_passes_and_ends(proxy: FaultProxy) -> None:
    connection = await connect(proxy)
    proxy.delay(0.05)
    began = asyncio.get_running_loop().time()
    assert await ask(connection, b"one\n") == b"echo one\n"
    assert asyncio.get_running_loop().time() - began >= 0.1
    proxy.delay(3600)
    proxy.heal()
    assert await ask(connection, b"two\n") == b"echo two\n"


async def test_a_black_hole_accepts_everything_and_hands_over_what_came_when_it_ends(
    proxy: FaultProxy, echo: Echo
) -> None:
    before = await connect(proxy)
    assert await ask(before, b"one\n")
    proxy.black_hole()
    waiting = [asyncio.create_task(ask(one, b"two\n")) for one in (before, await connect(proxy))]
    for _ in range(20):
        await asyncio.sleep(0)
    assert echo.got == b"one\n"
    assert not any(one.done() for one in waiting)
    proxy.heal()
    assert await asyncio.gather(*waiting) == [b"echo two\n"] * 2


async def test_a_forsaken_connection_neither_answers_nor_ends_and_new_ones_are_welcome(
    proxy: FaultProxy, echo: Echo
) -> None:
    connection = await connect(proxy)
    assert await ask(connection, b"one\n")
    assert proxy.forsake() == 1
    waiting = asyncio.create_task(ask(connection, b"two\n"))
    assert await ask(await connect(proxy), b"three\n") == b"echo three\n"
    assert not waiting.done()
    assert echo.got == b"one\nthree\n"
    waiting.cancel()


async def test_a_connection_can_be_cut_inside_the_black_hole(proxy: FaultProxy, echo: Echo) -> None:
    connection = await connect(proxy)
    assert await ask(connection, b"one\n")
    proxy.black_hole()
    waiting = asyncio.create_task(ask(connection, b"two\n"))
    await asyncio.sleep(0)
    proxy.cut()
    assert await waiting == b""
    proxy.heal()
    assert await ask(await connect(proxy), b"three\n") == b"echo three\n"
    assert echo.got in (b"one\nthree\n", b"one\ntwo\nthree\n")


async def test_it_runs_as_a_process_that_takes_its_faults_by_line(echo: Echo) -> None:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "factories.fault_proxy", f"{host}:{port}"),
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        own_port = int(await process.stdout.readline())
        connection = await asyncio.open_connection("127.0.0.1", own_port)
        assert await ask(connection, b"one\n") == b"echo one\n"
        process.stdin.write(b"cut\n")
        assert await connection[0].read() == b""
        process.stdin.close()
        assert await process.wait() == 0
    server.close()
