"""The connection pool: asyncpg under SQLAlchemy, with time limits, and with a role that can't rewrite the log."""

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
"""A longer statement would keep one of the pool's few connections from other requests."""
LOCK_TIMEOUT_MS = 5_000
"""Below the limit of a statement, so that the error names the lock as the cause."""
ANSWER_TIMEOUT_S = 20.0
"""Above PostgreSQL's own limit, so it ends only connections that are dead without being closed (by a firewall that
dropped them, or a host that disappeared)."""
IDLE_IN_TRANSACTION_TIMEOUT_MS = 15_000
"""An open snapshot keeps old row versions of leases alive, which slows every claim down many times."""


class DatabaseError(LemError):
    """The database can't be used."""


def database_url(text_url: str) -> URL:
    """Check a URL and select the asyncpg driver.

    Raises:
        DatabaseError: it is not a PostgreSQL URL.
    """
    try:
        url = make_url(text_url)
    except ArgumentError:
        raise DatabaseError("LEM_DATABASE_URL is not a URL; write postgresql://user@host/database.") from None
    if url.drivername not in ("postgresql", "postgres", "postgresql+asyncpg"):
        raise DatabaseError(
            f"LEM_DATABASE_URL names {url.drivername!r}, but LEM needs PostgreSQL; "
            "write postgresql://user@host/database."
        )
    return url.set(drivername="postgresql+asyncpg")


def make_engine(url: URL, *, pool_size: int = 10) -> AsyncEngine:
    """Create an engine whose connections take the application's role if they may."""
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,  # a burst waits for a connection instead of exceeding PostgreSQL's max_connections
        pool_timeout=10,  # then the request is answered 503
        pool_pre_ping=True,  # replaces connections that died with a restarted PostgreSQL
        hide_parameters=True,  # errors are logged, and users' data must not be
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


# Since PostgreSQL 16 a member may lack the SET option: the creator of a role has only ADMIN.
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
    """Refuse a PostgreSQL that is too old.

    Raises:
        DatabaseError: its message names the version.
    """
    async with engine.connect() as connection:
        number = int((await connection.execute(text("SHOW server_version_num"))).scalar_one())
    if number // 10_000 < OLDEST_MAJOR:
        raise DatabaseError(f"this is PostgreSQL {number // 10_000}; use version {OLDEST_MAJOR} or newer.")
