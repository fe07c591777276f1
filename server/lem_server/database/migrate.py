"""Migrates a database's schema to the version of this code, and checks that it is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import lem_server
from lem_server.database.engine import DatabaseError

# Servers that migrate one database at the same time queue up on this lock. The number ("LEM" and 1) is arbitrary.
_ADVISORY_LOCK = 0x4C454D01
# DDL that waits for a lock blocks every later statement on the table, so a busy database fails the migration instead.
_LOCK_TIMEOUT_MS = 5_000


class SchemaNotAtHead(DatabaseError):
    """The database's schema has another version than this code."""


def script_location() -> Path:
    """Return the folder of the migrations: in the installed package, or in the repository of an editable install."""
    package = Path(lem_server.__file__).parent
    for candidate in (package / "migrations", package.parents[1] / "migrations"):
        if (candidate / "env.py").is_file():
            return candidate
    raise DatabaseError("the migrations are not installed; reinstall the package.")


def alembic_config() -> Config:
    """Build Alembic's configuration without a file."""
    config = Config()
    config.set_main_option("script_location", str(script_location()))
    return config


def head_revision() -> str:
    """Return the newest revision that this code has."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if head is None:
        raise DatabaseError("the migrations are not installed; reinstall the package.")
    return head


async def current_revision(engine: AsyncEngine) -> str | None:
    """Return the database's revision; None before the first migration."""
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


async def require_head(engine: AsyncEngine) -> None:
    """Refuse a schema of another version.

    Raises:
        SchemaNotAtHead: its message names the command to run.
    """
    current, head = await current_revision(engine), head_revision()
    if current != head:
        raise SchemaNotAtHead(
            f"the database's schema is at revision {current or 'none'}, but this server needs {head}; "
            "run `lem-server migrate`."
        )


async def upgrade(url: URL) -> None:
    """Migrate to the newest revision."""
    await run_alembic(url, lambda config: command.upgrade(config, "head"))


async def run_alembic(url: URL, run: Callable[[Config], None]) -> None:
    """Run an Alembic command while no other process migrates the database."""
    # No make_engine: the tables belong to the login that migrates, not to the application's role, and a statement of a
    # migration may take longer than the server's time limits.
    engine = create_async_engine(url, connect_args={"server_settings": {"application_name": "lem-migrate"}})

    def configure_and_run(connection: Connection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        run(config)

    try:
        async with engine.connect() as connection:
            # The lock belongs to the session, so it survives the commit that ends the transaction which took it.
            await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
            await connection.commit()
            try:
                await connection.execute(text(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}"))
                await connection.run_sync(configure_and_run)
                await connection.commit()
            finally:
                await connection.rollback()
                await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
                await connection.commit()
    finally:
        await engine.dispose()
