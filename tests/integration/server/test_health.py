"""Whether it lives, whether it can serve, and which version it is: for everybody, and without waiting for long."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from lem_domain.results.method import DEFAULT_METHOD
from lem_domain.wire.base import PROTOCOL_VERSION
from lem_server.database.engine import make_engine
from lem_server.database.migrate import head_revision
from lem_server.http import health

pytestmark = pytest.mark.anyio


async def test_the_health_of_the_server_needs_no_token(anonymous: httpx.AsyncClient) -> None:
    assert (await anonymous.get("/livez")).json() == {"status": "ok"}
    assert (await anonymous.get("/readyz")).json() == {"status": "ok"}


async def test_the_versions_are_those_of_the_code(anonymous: httpx.AsyncClient) -> None:
    assert (await anonymous.get("/version")).json() == {
        "version": version("llm-energy-measurement"),
        "protocol": PROTOCOL_VERSION,
        "method": DEFAULT_METHOD,
    }


async def test_without_its_database_the_server_lives_and_is_not_ready(
    app: FastAPI, anonymous: httpx.AsyncClient, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = make_engine(database_url.set(host="127.0.0.1", port=1, query={}))
    context = app.state.context
    monkeypatch.setattr(app.state, "context", replace(context, engine=gone))
    assert (await anonymous.get("/livez")).status_code == 200
    answer = await anonymous.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert (answer.headers["content-type"], answer.headers["retry-after"]) == ("application/problem+json", "1")
    await gone.dispose()


async def test_a_database_that_keeps_its_askers_waiting_is_not_ready(
    app: FastAPI, anonymous: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "DATABASE_ANSWERS_WITHIN_S", 0.05)
    engine = app.state.context.engine
    held = [await engine.connect() for _ in range(engine.pool.size())]
    try:
        assert (await anonymous.get("/readyz")).status_code == 503
        assert (await anonymous.get("/livez")).status_code == 200
    finally:
        for connection in held:
            await connection.close()
    monkeypatch.undo()
    assert (await anonymous.get("/readyz")).status_code == 200


async def test_without_the_schema_that_it_needs_the_server_is_not_ready(
    app: FastAPI, anonymous: httpx.AsyncClient, database_url: URL
) -> None:
    owner = create_async_engine(database_url)
    try:
        for change, said in (
            ("UPDATE alembic_version SET version_num = 'of_tomorrow'", "of_tomorrow"),
            ("DELETE FROM alembic_version", "none"),
            ("DROP TABLE alembic_version", "none"),
        ):
            async with owner.begin() as connection:
                await connection.execute(text(change))
            answer = await anonymous.get("/readyz")
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
            assert f"revision {said} " in answer.json()["detail"] and head_revision() in answer.json()["detail"]
    finally:
        await owner.dispose()
    assert (await anonymous.get("/livez")).status_code == 200


async def test_a_database_that_was_dropped_is_not_ready(
    app: FastAPI, anonymous: httpx.AsyncClient, database_url: URL
) -> None:
    admin = create_async_engine(database_url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    async with admin.connect() as connection:
        await connection.execute(text(f"DROP DATABASE {database_url.database} WITH (FORCE)"))
    await admin.dispose()
    answer = await anonymous.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert "does not answer" in answer.json()["detail"]


async def test_what_is_open_to_everyone_documents_no_answer_that_it_never_gives(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    documented = {path: sorted(paths[path]["get"]["responses"]) for path in ("/livez", "/readyz", "/version")}
    assert documented == {"/livez": ["200"], "/readyz": ["200", "503"], "/version": ["200"]}
