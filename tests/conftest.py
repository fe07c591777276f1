"""What every test may use: a real PostgreSQL, the application over it, and a client with the owner's token.

One embedded PostgreSQL serves the whole session, all xdist workers included; every test that asks gets a database of
its own, copied from a migrated template. `LEM_TEST_DATABASE_URL` names another server to use (a superuser's URL).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from hypothesis import settings
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from factories.folders import database_folder
from lem_server.access.service import OWNER_TOKEN_FILE
from lem_server.app import create_app
from lem_server.database.engine import database_url as checked_url
from lem_server.database.engine import make_engine
from lem_server.database.migrate import upgrade
from lem_server.settings import Settings
from lem_worker.models import resolve_model

# Machines that run this are shared and noisy: no wall time decides a test.
settings.register_profile("lem", deadline=None, derandomize=True)
settings.load_profile("lem")

# Where the suite runs in the background of a shell, Ctrl-C is ignored, and what it starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEMPLATE = "lem_template"
IN_A_HURRY = ("fsync = off", "full_page_writes = off", "synchronous_commit = off", "max_wal_size = '128MB'")
"""Nothing of the tests' cluster need survive a power cut, and a database of its own for every test is a lot to sync;
what is promised about kills and cuts is tested on clusters of their own."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio, as the server does."""
    return "asyncio"


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """The server's URL; the first xdist worker starts it and the last one stops it."""
    configured = os.environ.get("LEM_TEST_DATABASE_URL")
    if configured:
        url = checked_url(configured)
        if os.environ.get("LEM_TEST_DATABASE_READY") != "1":  # `make mutants` has made the template
            asyncio.run(make_template(url))
        yield url
        return
    shared = _shared_root(tmp_path_factory)
    note = shared / "cluster.json"
    with _Locked(shared / "cluster.lock"):
        state = json.loads(note.read_text()) if note.exists() else None
        if state is None:
            folder = database_folder("lem-tests-")
            started, pid = _start(folder)
            state = {"users": 0, "folder": str(folder), "url": started, "pid": pid}
            asyncio.run(hurry(checked_url(started)))
            asyncio.run(make_template(checked_url(started)))
        state["users"] += 1
        note.write_text(json.dumps(state))
    yield checked_url(state["url"])
    with _Locked(shared / "cluster.lock"):
        state = json.loads(note.read_text())
        state["users"] -= 1
        if state["users"]:
            note.write_text(json.dumps(state))
        else:
            note.unlink()
            _stop(Path(state["folder"]), state["pid"])


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of built-in models, made once for all xdist workers; `LEM_CACHE_DIR` keeps it between sessions."""
    configured = os.environ.get("LEM_CACHE_DIR")
    return Path(configured) if configured else _shared_root(tmp_path_factory) / "model-cache"


@pytest.fixture(scope="session")
def tiny_llama(model_cache: Path) -> Path:
    """The folder of `builtin:tiny-llama`; building it takes seconds, so no test builds another unless it must."""
    return Path(resolve_model("builtin:tiny-llama", cache_dir=model_cache).path_or_id)


def _shared_root(factory: pytest.TempPathFactory) -> Path:
    base = factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


class _Locked:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


# The library stops PostgreSQL when the process that started it ends, so a process of its own holds it: until it is told
# to stop, or until the test session is gone.
_HOLDER = """
import os, signal, sys
from pathlib import Path
from lem_server.database.embedded import EmbeddedPostgres
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
with EmbeddedPostgres(Path(sys.argv[1]) / "postgres") as postgres:
    print(postgres.url.set(database="postgres").render_as_string(hide_password=False), flush=True)
    while os.path.exists(f"/proc/{sys.argv[2]}") and signal.sigtimedwait({signal.SIGTERM}, 2) is None:
        pass
"""


def _start(folder: Path) -> tuple[str, int]:
    session = os.getppid() if os.environ.get("PYTEST_XDIST_WORKER") else os.getpid()
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder), str(session)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout is not None
    url = holder.stdout.readline().strip()
    assert url, "the embedded PostgreSQL of the tests did not start"
    return url, holder.pid


def _stop(folder: Path, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    shutil.rmtree(folder, ignore_errors=True)


async def hurry(url: URL) -> None:
    """Set what makes the cluster quick."""
    admin = await _admin(url)
    try:
        for setting in IN_A_HURRY:
            await admin.execute(f"ALTER SYSTEM SET {setting}")
        await admin.execute("SELECT pg_reload_conf()")
    finally:
        await admin.close()


async def make_template(url: URL) -> None:
    """Make the database that every test copies, with the schema at head."""
    admin = await _admin(url)
    try:
        if await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", TEMPLATE) is not None:
            await admin.execute(f"DROP DATABASE {TEMPLATE} WITH (FORCE)")
        await admin.execute(f"CREATE DATABASE {TEMPLATE}")
    finally:
        await admin.close()
    await upgrade(url.set(database=TEMPLATE))


async def _admin(url: URL) -> asyncpg.Connection:
    plain = url.set(drivername="postgresql", database="postgres")
    return await asyncpg.connect(plain.render_as_string(hide_password=False))


@pytest.fixture
def empty_database_url(_cluster: URL) -> Iterator[URL]:
    """A database of its own without any table."""
    yield from _fresh_database(_cluster, None)


@pytest.fixture
def database_url(_cluster: URL) -> Iterator[URL]:
    """A database of its own with the schema at head."""
    yield from _fresh_database(_cluster, TEMPLATE)


@pytest.fixture
def other_database_url(_cluster: URL) -> Iterator[URL]:
    """Another database, for a second server."""
    yield from _fresh_database(_cluster, TEMPLATE)


def _fresh_database(cluster: URL, template: str | None) -> Iterator[URL]:
    name = f"lem_{uuid4().hex}"

    async def make() -> None:
        admin = await _admin(cluster)
        copied = f" TEMPLATE {template} STRATEGY FILE_COPY" if template else ""
        await admin.execute(f"CREATE DATABASE {name}{copied}")
        await admin.close()

    async def drop() -> None:
        admin = await _admin(cluster)
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()

    asyncio.run(make())
    yield cluster.set(database=name)
    asyncio.run(drop())


@pytest.fixture
async def engine(database_url: URL) -> AsyncIterator[AsyncEngine]:
    """The application's engine over a fresh database."""
    made = make_engine(database_url)
    yield made
    await made.dispose()


@pytest.fixture
def server_settings(tmp_path: Path) -> Settings:
    """Settings with a data folder of its own; override this fixture for others."""
    return Settings(data_dir=tmp_path / "data", trusted_hosts=("testserver", "localhost", "127.0.0.1"))


@pytest.fixture
async def app(database_url: URL, server_settings: Settings) -> AsyncIterator[FastAPI]:
    """The application, started."""
    made = create_app(server_settings, database_url)
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
async def anonymous(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a token."""
    async with _client(app, {}) as client:
        yield client


@pytest.fixture
async def api(app: FastAPI, server_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the owner's token."""
    token = (server_settings.data_dir / OWNER_TOKEN_FILE).read_text().strip()
    async with _client(app, {"Authorization": f"Bearer {token}"}) as client:
        yield client


def _client(app: FastAPI, headers: dict[str, str]) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://testserver", headers=headers)
