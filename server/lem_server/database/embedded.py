"""The embedded PostgreSQL 18 of a data folder, which starts and stops with the process that owns the folder.

It listens on a unix socket only. The owner holds an exclusive lock on a file next to the folder; the kernel releases
it when the owner is killed. PostgreSQL then keeps running, and the next owner finds and uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

import asyncpg
import psutil
from sqlalchemy.engine import URL

from lem_server.database import cluster, postmaster
from lem_server.database.engine import DatabaseError, database_url

logger = logging.getLogger(__name__)

DATABASE = "lem"
START_WITHIN_S = 120.0
"""After a crash PostgreSQL recovers before it accepts connections, which takes a slow machine a while."""
START_TRIES = 6
"""A killed PostgreSQL frees its shared memory a moment later; until then a new one exits at once."""
BETWEEN_TRIES_S = 1.0
LOG_AFTER_S = 2.0
POLL_S = 0.1


class _NotYet(Exception):
    """PostgreSQL is starting, recovering or stopping."""


class _StillNotReady(DatabaseError):
    """PostgreSQL is not ready in time; it keeps running, so that a later start finds its recovery further on."""


class EmbeddedPostgres:
    """Runs PostgreSQL in `folder` between entering and leaving.

    A server must own the folder. A short command uses the PostgreSQL of the server that owns it, or owns it itself.
    """

    def __init__(self, folder: Path, owner: Literal["server", "command"] = "server") -> None:
        self._folder = folder.absolute()
        self._lock_file = self._folder.with_name(f"{self._folder.name}.lock")
        self._owner = owner
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: Path | None = None
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start PostgreSQL, or find it running.

        Raises:
            DatabaseError: the folder can't be used or another server owns it, or PostgreSQL does not start.
        """
        cluster.check(self._folder)
        if not self._own_or_share():
            return
        try:
            cluster.create(self._folder)
            self._bring_up()
        except _StillNotReady:
            self._release()
            raise
        except OSError as error:
            self.stop()
            raise DatabaseError(f"PostgreSQL can't use {self._folder}: {error}.") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop PostgreSQL if this process owns the folder, also one that a killed owner left running."""
        if self._lock is None:
            return
        try:
            if self._child is not None and self._child.poll() is None:
                postmaster.stop(psutil.Process(self._child.pid))
                self._child.poll()  # reaps it
            elif (process := postmaster.find(self._folder)) is not None:
                postmaster.stop(process)
        except OSError as error:
            logger.warning("PostgreSQL in %s may still be running: %s", self._folder, error)
        finally:
            self._child = None
            self._release()

    @property
    def url(self) -> URL:
        """URL of the application's database, over the unix socket."""
        return database_url(f"postgresql://postgres:@/{DATABASE}?host={self._socket}")

    def _own_or_share(self) -> bool:
        """Return whether this process owns the folder; False where it uses the PostgreSQL of a server."""
        give_up = time.monotonic() + START_WITHIN_S
        logged = False
        while not self._lock_folder():
            # Of a server that is about to stop, the database may be gone at the next look; then the lock is free.
            if self._lock_file.read_text() == "server":
                if self._owner == "server":
                    raise DatabaseError(
                        f"another server uses the data folder {self._folder.parent}; stop it or set LEM_DATA_DIR to "
                        "another folder, and run replicas on one database with LEM_DATABASE_URL."
                    )
                with contextlib.suppress(_NotYet):
                    self._connect()
                    return False
            if time.monotonic() > give_up:
                raise DatabaseError(
                    f"another process has held {self._lock_file} for {START_WITHIN_S:.0f} s; wait for it or end it."
                )
            if not logged:
                logger.info("waiting for another process to release %s", self._lock_file)
                logged = True
            time.sleep(POLL_S)
        return True

    def _lock_folder(self) -> bool:
        lock = self._lock_file.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        lock.truncate(0)
        lock.write(self._owner)
        lock.flush()
        self._lock = lock
        return True

    def _release(self) -> None:
        if self._lock is not None:
            # A later owner must not be taken for this one before it has written its own name.
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def _bring_up(self) -> None:
        began = time.monotonic()
        failures = 0
        logged = ""
        while True:
            if self._child is not None and self._child.poll() is not None:
                self._child, failures = None, failures + 1
                if failures == START_TRIES:
                    raise DatabaseError(f"PostgreSQL ends as soon as it is started; {cluster.log_hint(self._folder)}.")
                time.sleep(BETWEEN_TRIES_S)
            if self._child is None and postmaster.find(self._folder) is None:
                postmaster.remove_stale_locks(self._folder)
                self._child = cluster.launch(self._folder)
            try:
                self._connect()
            except _NotYet as reason:
                waited = time.monotonic() - began
                if waited > START_WITHIN_S:
                    raise _StillNotReady(
                        f"PostgreSQL in {self._folder} is not ready after {START_WITHIN_S:.0f} s ({reason}); "
                        f"it keeps running, so start again later; {cluster.log_hint(self._folder)}."
                    ) from reason
                if logged != str(reason) and waited > LOG_AFTER_S:
                    logged = str(reason)
                    logger.info("waiting for PostgreSQL in %s: %s", self._folder, reason)
                time.sleep(POLL_S)
            else:
                return

    def _connect(self) -> None:
        """Find the socket, and create the application's database where it is missing."""
        self._socket = postmaster.socket_folder(self._folder)
        if self._socket is None:
            raise _NotYet("it does not listen yet")
        try:
            asyncio.run(_create_database(self._socket))
        except (asyncpg.OperatorInterventionError, asyncpg.PostgresConnectionError) as error:
            raise _NotYet(str(error)) from error
        except OSError as error:
            raise _NotYet("it does not listen yet") from error
        except asyncpg.PostgresError as error:
            raise DatabaseError(f"PostgreSQL in {self._folder} can't be used: {error}.") from error


async def _create_database(socket: Path) -> None:
    connection = await asyncpg.connect(host=str(socket), user="postgres", database="postgres", timeout=10)
    try:
        if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE) is None:
            # A command may create it at the same moment.
            with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        await connection.close()
