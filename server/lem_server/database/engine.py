"""The connection pool: asyncpg under SQLAlchemy, with time limits, and under a role that can't rewrite history."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from lem_domain.errors import LemError

OLDEST_MAJOR = 15
APPLICATION_ROLE = "lem_app"
STATEMENT_TIMEOUT_MS = 15_000
LOCK_TIMEOUT_MS = 5_000
ANSWER_TIMEOUT_S = 20.0
"""Above the server's own limit: a connection that says nothing for so long is dead, although nothing has closed it (a
firewall that forgot it, a host that went away)."""
IDLE_IN_TRANSACTION_TIMEOUT_MS = 15_000
"""A held snapshot slows every claim down many times, so nobody may hold one for long."""


class DatabaseError(LemError):
    """The database can't be used as it is."""


def database_url(text_url: str) -> URL:
    """The URL in the form that the engine takes.

    Raises:
        DatabaseError: it is no PostgreSQL URL.
    """
    try:
        url = make_url(text_url)
    except ArgumentError:
        raise DatabaseError("LEM_DATABASE_URL is no URL; write postgresql://user@host/database.") from None
    if url.drivername not in ("postgresql", "postgres", "postgresql+asyncpg"):
        raise DatabaseError(
            f"LEM_DATABASE_URL names {url.drivername!r}, but PostgreSQL is the only store; "
            "write postgresql://user@host/database."
        )
    return url.set(drivername="postgresql+asyncpg")


def make_engine(url: URL, *, pool_size: int = 10) -> AsyncEngine:
    """An engine whose connections act under the application's role where there is one."""
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        pool_pre_ping=True,
        hide_parameters=True,  # an error's text gets into the log, and what users send does not belong there
        connect_args={
            "server_settings": {
                "application_name": "lem-server",
                "statement_timeout": str(STATEMENT_TIMEOUT_MS),
                "lock_timeout": str(LOCK_TIMEOUT_MS),
                "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MS),
                "timezone": "UTC",
            },
            "timeout": 10,
            "command_timeout": ANSWER_TIMEOUT_S,
        },
    )
    event.listen(engine.sync_engine, "connect", _take_application_role)
    return engine


# Since PostgreSQL 16 a member may lack the right to SET ROLE: whoever makes a role is only its administrator.
_MAY_TAKE_ROLE = """
    SELECT 1 FROM pg_roles
     WHERE rolname = 'lem_app' AND pg_has_role(
         current_user, oid, CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END
     )
"""


def _take_application_role(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(_MAY_TAKE_ROLE)
    if cursor.fetchone() is not None:
        cursor.execute(f"SET ROLE {APPLICATION_ROLE}")
    cursor.close()
    connection.commit()


async def require_supported_version(engine: AsyncEngine) -> None:
    """Refuse a server that is too old.

    Raises:
        DatabaseError: naming its version.
    """
    async with engine.connect() as connection:
        number = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
    if number // 10_000 < OLDEST_MAJOR:
        raise DatabaseError(f"this is PostgreSQL {number // 10_000}; use version {OLDEST_MAJOR} or newer.")
