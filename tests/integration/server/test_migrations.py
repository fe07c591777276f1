"""Migrations: up, down and up again, taking turns, and a server that refuses another schema than its own."""

from __future__ import annotations

import asyncio
import shutil

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from factories.folders import database_folder
from factories.schema import remove_schema
from lem_server.database.embedded import EmbeddedPostgres
from lem_server.database.engine import make_engine
from lem_server.database.migrate import (
    SchemaNotAtHead,
    current_revision,
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
    await remove_schema(empty_database_url)
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
    engine = create_async_engine(empty_database_url)
    with pytest.raises(SchemaNotAtHead, match="lem-server migrate"):
        await require_head(engine)
    await engine.dispose()


async def test_a_login_that_may_make_roles_but_is_no_superuser_acts_under_the_role() -> None:
    """The usual owner of a managed database. A cluster of its own, because the role belongs to the whole cluster."""
    folder = database_folder("lem-roles-")
    postgres = EmbeddedPostgres(folder / "postgres")
    await asyncio.to_thread(postgres.start)
    try:
        maker = await login_with_database(postgres.url, "maker", "LOGIN CREATEROLE")
        await upgrade(maker)
        assert await acts_as(maker) == "lem_app"
        # Another login of the same cluster finds the role made, and may not have it.
        plain = await login_with_database(postgres.url, "plain", "LOGIN")
        await upgrade(plain)
        assert await acts_as(plain) == "plain"
        await remove_schema(plain)
        await upgrade(plain)
    finally:
        await asyncio.to_thread(postgres.stop)
        shutil.rmtree(folder, ignore_errors=True)


async def login_with_database(cluster: URL, name: str, attributes: str) -> URL:
    connection = await asyncpg.connect(host=cluster.query["host"], user=cluster.username, database="postgres")
    await connection.execute(f"CREATE ROLE {name} {attributes}")
    await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
    await connection.close()
    return cluster.set(username=name, database=name)


async def acts_as(url: URL) -> str:
    engine = make_engine(url)
    try:
        await require_head(engine)
        async with engine.connect() as connection:
            return str((await connection.execute(text("SELECT current_user"))).scalar_one())
    finally:
        await engine.dispose()
