"""A run is aggregated in a process of its own, to the same last byte; its errors come back, its death is told.

The process is caught at work by a lock on the first table that only it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import submit
from factories.worker import FakeWorker, plain_evidence
from lem_server.aggregation import priority, service
from lem_server.aggregation import subprocesses as elsewhere

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    """No process is left from before, and none stays."""
    elsewhere.end_waiting()
    yield
    elsewhere.end_waiting()


@pytest.fixture
async def run(api: httpx.AsyncClient) -> str:
    """A completed run, aggregated once already, with several chunks in its streams."""
    await submit(api)
    worker = await FakeWorker(api).ready()
    found = (await worker.whole_attempt(plain_evidence(chunk_rows=10))).run_id
    (await aggregate(api, found)).raise_for_status()
    return found


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run counts as large."""
    elsewhere.end_waiting()
    monkeypatch.setattr(service, "LARGE_ROWS", 1)


async def aggregate(api: httpx.AsyncClient, run: str) -> httpx.Response:
    return await api.post(f"/api/v1/runs/{run}:aggregate")


@contextlib.asynccontextmanager
async def held_up(engine: AsyncEngine) -> AsyncIterator[None]:
    """Nobody reads the processes' summaries until the end of this."""
    async with engine.connect() as connection:
        await connection.execute(text("SET ROLE NONE"))
        # A process takes seconds to begin where others work, and a server's own connections may not wait that long.
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await connection.execute(text("LOCK TABLE process_results IN ACCESS EXCLUSIVE MODE"))
        yield
        await connection.rollback()


async def change_a_byte(engine: AsyncEngine) -> None:
    """Of what is stored, past the triggers that forbid it."""
    async with engine.begin() as connection:
        await connection.execute(text("SET ROLE NONE"))
        await connection.execute(text("ALTER TABLE chunks DISABLE TRIGGER immutable"))
        await connection.execute(
            text("UPDATE chunks SET body = set_byte(body, 500, get_byte(body, 500) # 1) WHERE seq = 1")
        )
        await connection.execute(text("ALTER TABLE chunks ENABLE TRIGGER immutable"))


async def waiting_backend(engine: AsyncEngine) -> int:
    """The database's process that reads for the aggregation, once it waits."""
    statement = text("""
        SELECT pid FROM pg_locks WHERE relation = 'process_results'::regclass AND NOT granted
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """)
    async with asyncio.timeout(60):
        while True:
            async with engine.connect() as connection:
                found: int | None = (await connection.execute(statement)).scalar_one_or_none()
            if found is not None:
                return found
            await asyncio.sleep(0.02)


def children(of: int | None = None) -> list[psutil.Process]:
    return [one for one in psutil.Process(of).children(recursive=True) if _aggregates(one)]


def _aggregates(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it ends meanwhile
        return "lem_server.aggregation" in process.cmdline()
    return False


def session_niceness(process: psutil.Process) -> int | None:
    """Where the kernel groups processes by session."""
    group = Path(f"/proc/{process.pid}/autogroup")
    return int(group.read_text().split()[-1]) if group.exists() else None


async def test_a_process_serves_small_runs_one_after_another(
    api: httpx.AsyncClient, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (waiting,) = children()
    stored = await api.get(f"/api/v1/runs/{run}/aggregate")
    for _ in range(2):
        there = await aggregate(api, run)
        assert (there.status_code, there.content) == (200, stored.content)
    assert children() == [waiting]
    with monkeypatch.context() as patched:
        patched.setattr(service, "LARGE_ROWS", 1)
        assert (await aggregate(api, run)).status_code == 200
    assert children() == [waiting], "a large run's ends, and is another"
    await asyncio.gather(*(aggregate(api, run) for _ in range(4)))
    assert waiting in children()
    assert len(children()) <= service.AT_ONCE


async def test_a_refusal_does_not_end_the_process(api: httpx.AsyncClient, engine: AsyncEngine, run: str) -> None:
    (waiting,) = children()
    await change_a_byte(engine)
    assert (await aggregate(api, run)).status_code == 409
    assert children() == [waiting]


async def test_one_that_ended_while_it_waited_is_replaced(api: httpx.AsyncClient, run: str) -> None:
    (waiting,) = children()
    waiting.kill()
    await asyncio.to_thread(psutil.wait_procs, [waiting], timeout=60)
    assert (await aggregate(api, run)).status_code == 200
    (another,) = children()
    assert another.pid != waiting.pid


async def test_one_that_nobody_needs_ends_by_itself(api: httpx.AsyncClient, run: str) -> None:
    """And what would have been its next task is computed by another."""
    begun = subprocess.Popen(  # noqa: ASYNC220 - as the server holds it
        [sys.executable, "-c", "from lem_server.aggregation import elsewhere as e; e.IDLE_S = 0; e.answer()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert await asyncio.to_thread(begun.wait, 60) == 0
    elsewhere.end_waiting()
    elsewhere._idle.append(begun)
    assert (await aggregate(api, run)).status_code == 200
    assert len(children()) == 1


@pytest.mark.usefixtures("_large")
async def test_a_large_run_leaves_no_process_behind(api: httpx.AsyncClient, run: str) -> None:
    stored = await api.get(f"/api/v1/runs/{run}/aggregate")
    there = await aggregate(api, run)
    assert (there.status_code, there.content) == (200, stored.content)
    assert children() == []


async def test_what_is_large_is_counted_in_rows(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine.connect() as connection:
        rows = sum((await connection.execute(text("SELECT rows FROM chunks"))).scalars())
    for least, waiting in ((rows + 1, 1), (rows, 0)):
        elsewhere.end_waiting()
        monkeypatch.setattr(service, "LARGE_ROWS", least)
        assert (await aggregate(api, run)).status_code == 200
        assert len(children()) == waiting


@pytest.mark.usefixtures("_large")
async def test_everybody_else_goes_first(api: httpx.AsyncClient, engine: AsyncEngine, run: str) -> None:
    async with held_up(engine):
        task = asyncio.create_task(aggregate(api, run))
        backend = psutil.Process(await waiting_backend(engine))
        (process,) = children()
        niceness, processors, of_its_backend = process.nice(), process.cpu_affinity(), backend.cpu_affinity()
        may_move_it = os.geteuid() in (0, backend.uids().real)
        of_its_session = session_niceness(process)
    assert (await task).status_code == 200
    assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + priority.NICENESS)
    assert of_its_session in (priority.NICENESS, None)
    ours = os.sched_getaffinity(0)
    assert processors == sorted(ours)[1:] or len(ours) == 1
    assert of_its_backend == processors or not may_move_it


@pytest.mark.usefixtures("_large")
async def test_a_byte_that_changed_is_told_by_its_chunk(api: httpx.AsyncClient, engine: AsyncEngine, run: str) -> None:
    await change_a_byte(engine)
    answer = await aggregate(api, run)
    assert (answer.status_code, answer.json()["code"]) == (409, "evidence_corrupt")
    assert "chunk 1 of" in answer.json()["detail"]


@pytest.mark.usefixtures("_large")
async def test_a_process_that_dies_is_told(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with held_up(engine):
        task = asyncio.create_task(aggregate(api, run))
        await waiting_backend(engine)
        (process,) = children()
        process.kill()
        answer = await task
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "ended with -9; give the server more memory" in caplog.text
    assert (await aggregate(api, run)).status_code == 200


@pytest.mark.usefixtures("_large")
async def test_a_database_that_breaks_off_is_a_503(api: httpx.AsyncClient, engine: AsyncEngine, run: str) -> None:
    async with held_up(engine):
        task = asyncio.create_task(aggregate(api, run))
        backend = await waiting_backend(engine)
        async with engine.connect() as connection:
            await connection.execute(text("SET ROLE NONE"))
            await connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": backend})
        answer = await task
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready"), answer.text
    assert (await aggregate(api, run)).status_code == 200


_SERVER = """
import asyncio, sys
from uuid import UUID
from sqlalchemy.engine import make_url
from lem_server.aggregation import service
from lem_server.aggregation.inputs import AggregationParameters
from lem_server.database.engine import make_engine
service.LARGE_ROWS = 1
asyncio.run(service.aggregate_run(make_engine(make_url(sys.argv[1])), UUID(sys.argv[2]), AggregationParameters()))
"""


async def test_it_ends_with_the_server(run: str, engine: AsyncEngine, database_url: URL) -> None:
    url = database_url.render_as_string(hide_password=False)
    async with held_up(engine):
        arguments = ("-c", _SERVER, url, run.removeprefix("run_"))
        server = await asyncio.create_subprocess_exec(sys.executable, *arguments)
        await waiting_backend(engine)
        (process,) = children(server.pid)
        server.kill()
        await server.wait()
        await asyncio.to_thread(psutil.wait_procs, [process], timeout=60)
        assert not process.is_running()
