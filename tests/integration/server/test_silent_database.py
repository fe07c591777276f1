"""Connections to the database that go silent without being closed: nobody waits for them for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.fault_proxy import FaultProxy, Tcp, Unix
from lem_server.database import engine as under_test

pytestmark = pytest.mark.anyio


@pytest.fixture
async def proxy(database_url: URL) -> AsyncIterator[FaultProxy]:
    """Between the engine and PostgreSQL."""
    folder, port = str(database_url.query.get("host", "")), database_url.port or 5432
    if folder.startswith("/"):
        made = FaultProxy([Unix(Path(folder) / f".s.PGSQL.{port}")])
    else:
        made = FaultProxy([Tcp(database_url.host or folder, port)])
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def proxied(database_url: URL, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncEngine]:
    monkeypatch.setattr(under_test, "ANSWER_TIMEOUT_S", 0.5)
    url = database_url.set(host="127.0.0.1", port=proxy.port, query={})
    made = under_test.make_engine(url, pool_size=3)
    yield made
    await made.dispose()


async def ask(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int((await connection.execute(text("SELECT 1"))).scalar_one())


async def test_silent_connections_end_with_a_time_out_and_are_replaced(proxied: AsyncEngine, proxy: FaultProxy) -> None:
    assert await asyncio.gather(*(ask(proxied) for _ in range(3))) == [1, 1, 1]
    assert proxy.forsake() == 3
    async with asyncio.timeout(300):
        answers = await asyncio.gather(*(ask(proxied) for _ in range(3)), return_exceptions=True)
        assert all(answer == 1 or isinstance(answer, OSError) for answer in answers), answers
        assert await asyncio.gather(*(ask(proxied) for _ in range(6))) == [1] * 6
