"""Removes the schema of a database."""

from __future__ import annotations

from alembic import command
from sqlalchemy.engine import URL

from lem_server.database.migrate import run_alembic


async def remove_schema(url: URL) -> None:
    """Migrate down to nothing."""
    await run_alembic(url, lambda config: command.downgrade(config, "base"))
