"""Migrations: up, down and up again, taking turns, and a server that refuses another schema than its own."""

from __future__ import annotations

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from lem_server.database.migrate import (
    SchemaNotAtHead,
    current_revision,
    downgrade,
    head_revision,
    require_head,
    upgrade,
)

pytestmark = pytest.mark.anyio


async def revision_of(url: URL) -> str | None:
    engine = create_async_engine(url)
    try:
        return await current_revision(engine)
    finally:
        await engine.dispose()


async def test_up_down_and_up_again(empty_database_url: URL) -> None:
    assert await revision_of(empty_database_url) is None
    await upgrade(empty_database_url)
    assert await revision_of(empty_database_url) == head_revision()
    await downgrade(empty_database_url, "base")
    engine = create_async_engine(empty_database_url)
    async with engine.connect() as connection:
        left = await connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'")
        )
        assert list(left.scalars()) == []
    await engine.dispose()
    await upgrade(empty_database_url)
    assert await revision_of(empty_database_url) == head_revision()


async def test_two_that_migrate_at_once_take_turns(empty_database_url: URL) -> None:
    await asyncio.gather(upgrade(empty_database_url), upgrade(empty_database_url))
    assert await revision_of(empty_database_url) == head_revision()


async def test_a_schema_behind_is_refused_with_the_command(empty_database_url: URL) -> None:
    await upgrade(empty_database_url, "0001")
    engine = create_async_engine(empty_database_url)
    with pytest.raises(SchemaNotAtHead, match="lem-server migrate"):
        await require_head(engine)
    await engine.dispose()


async def test_the_tables_are_those_of_the_metadata(engine: AsyncEngine) -> None:
    from lem_server.database.tables import metadata

    def differences(connection: Connection) -> list[object]:
        def ours(name: str | None, kind: str, _parents: object) -> bool:
            return not (kind == "table" and (name or "").startswith(("chunks_p", "alembic_version")))

        context = MigrationContext.configure(connection, opts={"include_name": ours, "compare_server_default": False})
        return list(compare_metadata(context, metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
