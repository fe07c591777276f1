"""Brings a database's schema to the version of this code, and tells whether it is there."""

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

# Any number of our own: two servers that migrate one database take turns.
_ADVISORY_LOCK = 0x4C454D01
_LOCK_TIMEOUT_MS = 5_000


class SchemaNotAtHead(DatabaseError):
    """The database's schema is not the one that this code expects."""


def script_location() -> Path:
    """Where the migrations are: inside the installed package, or in the repository of an editable install."""
    package = Path(lem_server.__file__).parent
    for candidate in (package / "migrations", package.parents[1] / "migrations"):
        if (candidate / "env.py").is_file():
            return candidate
    raise DatabaseError("the migrations are not installed; install the package again.")


def alembic_config() -> Config:
    """Alembic's configuration, without a file."""
    config = Config()
    config.set_main_option("script_location", str(script_location()))
    return config


def head_revision() -> str:
    """The newest revision that this code knows."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if head is None:
        raise DatabaseError("the migrations are not installed; install the package again.")
    return head


async def current_revision(engine: AsyncEngine) -> str | None:
    """The database's revision; None before the first migration."""
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


async def require_head(engine: AsyncEngine) -> None:
    """Refuse a schema of another version.

    Raises:
        SchemaNotAtHead: naming the command that mends it.
    """
    current, head = await current_revision(engine), head_revision()
    if current != head:
        raise SchemaNotAtHead(
            f"the database's schema is at revision {current or 'none'} and this server needs {head}; "
            "run `lem-server migrate`."
        )


async def upgrade(url: URL, revision: str = "head") -> None:
    """Migrate up, one process at a time."""
    await _migrate(url, lambda config: command.upgrade(config, revision))


async def downgrade(url: URL, revision: str) -> None:
    """Migrate down."""
    await _migrate(url, lambda config: command.downgrade(config, revision))


async def _migrate(url: URL, act: Callable[[Config], None]) -> None:
    # The migrating role owns the tables: the plain login, not the application's role.
    engine = create_async_engine(url, connect_args={"server_settings": {"application_name": "lem-migrate"}})

    def run(connection: Connection) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        act(config)

    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
            await connection.commit()
            try:
                await connection.execute(text(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}"))
                await connection.run_sync(run)
                await connection.commit()
            finally:
                await connection.rollback()
                await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
                await connection.commit()
    finally:
        await engine.dispose()
