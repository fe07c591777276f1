"""A run is aggregated in a subprocess, with the same bytes; its errors and its death reach the caller.

A lock on the first table that only the subprocess reads keeps it at work while a test looks at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.runs import submit
from factories.worker import FakeWorker, plain_evidence
from lem_server.aggregation import process_pool, service, subprocess_setup
from lem_server.aggregation.process_pool import AggregationPool

pytestmark = pytest.mark.anyio


@pytest.fixture
def pool(app: FastAPI) -> AggregationPool:
    """The server's pool."""
    found: AggregationPool = app.state.context.aggregations.pool
    return found


@pytest.fixture
async def run(api: httpx.AsyncClient) -> str:
    """A completed run, aggregated once already, with several chunks in its streams."""
    await submit(api)
    worker = await FakeWorker(api).ready()
    found = (await worker.whole_attempt(plain_evidence(chunk_rows=10))).run_id
    (await aggregate(api, found)).raise_for_status()
    return found


@pytest.fixture
def _large(monkeypatch: pytest.MonkeyPatch, pool: AggregationPool, run: str) -> None:
    """Every run counts as large, and no subprocess is idle."""
    pool.retire()
    until_no_more_than(0)
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
    async with asyncio.timeout(300):
        while True:
            async with engine.connect() as connection:
                found: int | None = (await connection.execute(statement)).scalar_one_or_none()
            if found is not None:
                return found
            await asyncio.sleep(0.02)


def children(of: int | None = None) -> list[psutil.Process]:
    return [one for one in psutil.Process(of).children(recursive=True) if _aggregates(one)]


def _aggregates(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it may end meanwhile
        return "--multiprocessing-fork" in process.cmdline()
    return False


def until_no_more_than(count: int) -> list[psutil.Process]:
    """Subprocesses end without anybody waiting for them."""
    deadline = time.monotonic() + 300
    while len(found := children()) > count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def session_niceness(process: psutil.Process) -> int | None:
    """Where the kernel groups processes by session."""
    group = Path(f"/proc/{process.pid}/autogroup")
    return int(group.read_text().split()[-1]) if group.exists() else None


async def test_a_process_serves_small_runs_one_after_another(
    api: httpx.AsyncClient, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (idle,) = children()
    stored = await api.get(f"/api/v1/runs/{run}/aggregate")
    for _ in range(2):
        again = await aggregate(api, run)
        assert (again.status_code, again.content) == (200, stored.content)
    assert idle in children()
    small = len(children())  # a second one may start where the first is not yet known to be idle
    with monkeypatch.context() as patched:
        patched.setattr(service, "LARGE_ROWS", 1)
        assert (await aggregate(api, run)).status_code == 200
    assert idle in until_no_more_than(small), "a large run has another one, which ends"
    await asyncio.gather(*(aggregate(api, run) for _ in range(4)))
    assert idle in children()
    assert len(children()) <= process_pool.AT_ONCE


async def test_a_refusal_does_not_end_the_process(api: httpx.AsyncClient, engine: AsyncEngine, run: str) -> None:
    (idle,) = children()
    await change_a_byte(engine)
    assert (await aggregate(api, run)).status_code == 409
    assert idle in children()


async def test_one_that_ended_while_it_was_idle_is_replaced(api: httpx.AsyncClient, run: str) -> None:
    (idle,) = children()
    idle.kill()
    await asyncio.to_thread(psutil.wait_procs, [idle], timeout=300)
    for _ in range(2):
        assert (await aggregate(api, run)).status_code == 200
    assert idle not in children()
    assert 1 <= len(children()) <= process_pool.AT_ONCE


async def test_a_process_ends_after_some_runs_and_is_replaced(
    api: httpx.AsyncClient, run: str, pool: AggregationPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.retire()
    until_no_more_than(0)
    monkeypatch.setattr(process_pool, "RUNS_PER_PROCESS", 2)
    seen = set()
    for _ in range(5):
        assert (await aggregate(api, run)).status_code == 200
        seen |= set(children())
    assert len(seen) >= 3
    assert len(children()) <= process_pool.AT_ONCE


async def test_one_that_is_not_needed_ends_by_itself(
    api: httpx.AsyncClient, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another one serves the next run."""
    monkeypatch.setattr(process_pool, "IDLE_S", 0.0)
    for _ in range(2):
        assert (await aggregate(api, run)).status_code == 200
        await asyncio.to_thread(until_no_more_than, 0)


@pytest.mark.usefixtures("_large")
async def test_a_large_run_leaves_no_process_behind(api: httpx.AsyncClient, run: str) -> None:
    stored = await api.get(f"/api/v1/runs/{run}/aggregate")
    again = await aggregate(api, run)
    assert (again.status_code, again.content) == (200, stored.content)
    until_no_more_than(0)


async def test_what_is_large_is_counted_in_rows(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str, pool: AggregationPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine.connect() as connection:
        rows = sum((await connection.execute(text("SELECT rows FROM chunks"))).scalars())
    for least, idle in ((rows + 1, 1), (rows, 0)):
        pool.retire()
        until_no_more_than(0)
        monkeypatch.setattr(service, "LARGE_ROWS", least)
        assert (await aggregate(api, run)).status_code == 200
        assert len(until_no_more_than(idle)) == idle


@pytest.mark.usefixtures("_large")
async def test_other_processes_run_first(api: httpx.AsyncClient, engine: AsyncEngine, run: str) -> None:
    async with held_up(engine):
        task = asyncio.create_task(aggregate(api, run))
        backend = psutil.Process(await waiting_backend(engine))
        (process,) = children()
        niceness, processors, of_its_backend = process.nice(), process.cpu_affinity(), backend.cpu_affinity()
        of_its_session = session_niceness(process)
    assert (await task).status_code == 200
    assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + subprocess_setup.NICENESS)
    assert of_its_session in (subprocess_setup.NICENESS, None)
    ours = os.sched_getaffinity(0)
    assert processors == sorted(ours)[1:] or len(ours) == 1
    assert of_its_backend == sorted(ours), "PostgreSQL's processes are left alone"


@pytest.mark.usefixtures("_large")
async def test_a_byte_that_changed_is_reported_by_its_chunk(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str
) -> None:
    await change_a_byte(engine)
    answer = await aggregate(api, run)
    assert (answer.status_code, answer.json()["code"]) == (409, "evidence_corrupt")
    assert "chunk 1 of" in answer.json()["detail"]


@pytest.mark.usefixtures("_large")
async def test_a_process_that_dies_fails_its_run_alone(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with held_up(engine):
        task = asyncio.create_task(aggregate(api, run))
        await waiting_backend(engine)
        (process,) = children()
        process.kill()
        answer = await task
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "RuntimeError" in caplog.text
    assert run in caplog.text
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


async def test_a_small_run_survives_the_death_of_its_process(
    api: httpx.AsyncClient, engine: AsyncEngine, run: str
) -> None:
    """Another run's memory may have cost it."""
    (idle,) = children()
    async with held_up(engine):
        tasks = [asyncio.create_task(aggregate(api, run)) for _ in range(process_pool.AT_ONCE)]
        await waiting_backend(engine)
        idle.kill()
        await asyncio.to_thread(psutil.wait_procs, [idle], timeout=300)
    assert [(await task).status_code for task in tasks] == [200] * process_pool.AT_ONCE


_SERVER = """
import asyncio, sys
from uuid import UUID
from sqlalchemy.engine import make_url
from lem_server.aggregation import service
from lem_server.aggregation.inputs import AggregationParameters
from lem_server.aggregation.process_pool import AggregationPool
from lem_server.database.engine import make_engine
service.LARGE_ROWS = int(sys.argv[3])
async def main():
    engine, run = make_engine(make_url(sys.argv[1])), UUID(sys.argv[2])
    await service.aggregate_run(engine, AggregationPool(), run, AggregationParameters())
asyncio.run(main())
"""


@pytest.mark.parametrize("large_rows", [1, 10**6])
async def test_it_ends_with_the_server(run: str, engine: AsyncEngine, database_url: URL, large_rows: int) -> None:
    url = database_url.render_as_string(hide_password=False)
    async with held_up(engine):
        arguments = ("-c", _SERVER, url, run.removeprefix("run_"), str(large_rows))
        server = await asyncio.create_subprocess_exec(sys.executable, *arguments)
        await waiting_backend(engine)
        started = psutil.Process(server.pid).children(recursive=True)
        assert len(children(server.pid)) == 1
        server.kill()
        await server.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, started, timeout=300)
        assert alive == []


async def test_a_server_that_shuts_down_ends_it_at_once(
    api: httpx.AsyncClient, run: str, engine: AsyncEngine, pool: AggregationPool
) -> None:
    async with held_up(engine):
        task = asyncio.create_task(aggregate(api, run))
        await waiting_backend(engine)
        task.cancel()
        started = children()
        began = time.monotonic()
        pool.close()
        await asyncio.to_thread(psutil.wait_procs, started, timeout=300)
        assert time.monotonic() - began < 10
        assert children() == []
