"""`lem-server` as a process: it starts, keeps what it was given, ends when told to, and refuses in one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import httpx
import pytest
from sqlalchemy.engine import URL

from factories.runs import submit
from factories.server_process import COMMAND, Server, folder_for_everybody
from factories.worker import FakeWorker
from lem_server.database.migrate import head_revision

pytestmark = pytest.mark.anyio


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with a PostgreSQL of its own, not started."""
    with folder_for_everybody() as folder:
        made = Server(folder / "data")
        yield made
        made.clean_up()


@pytest.fixture
def configured(tmp_path: Path, database_url: URL) -> Iterator[Server]:
    """A server over a configured database whose schema is at head, not started."""
    made = Server(tmp_path / "data", LEM_DATABASE_URL=database_url.render_as_string(hide_password=False))
    yield made
    made.clean_up()


# --- what it keeps ----------------------------------------------------------------------------------------------------


async def test_what_it_was_given_survives_its_end_and_its_death(server: Server) -> None:
    server.start()
    async with server.api() as api:
        first = (await submit(api, name="first"))["id"]
    token = (server.data / "owner.token").read_text()
    assert server.stop() == 0
    assert server.postmaster is None, "its PostgreSQL ended with it"

    server.start()
    async with server.api() as api:
        assert (await api.get(f"/api/v1/campaigns/{first}")).json()["name"] == "first"
        second = (await submit(api, name="second"))["id"]
    server.signal(signal.SIGKILL)
    assert server.wait() == -signal.SIGKILL
    assert server.postmaster is not None, "nobody was there to stop it"

    server.start()
    async with server.api() as api:
        for campaign, name in ((first, "first"), (second, "second")):
            assert (await api.get(f"/api/v1/campaigns/{campaign}")).json()["name"] == name
    assert (server.data / "owner.token").read_text() == token
    assert server.stop() == 0
    assert server.postmaster is None


async def test_what_it_was_given_survives_the_death_of_its_database_too(server: Server) -> None:
    server.start()
    async with server.api() as api:
        campaign = (await submit(api))["id"]
    postmaster = server.postmaster
    assert postmaster is not None
    server.signal(signal.SIGKILL)
    os.kill(postmaster, signal.SIGKILL)
    server.wait()
    server.start()
    async with server.api() as api:
        assert (await api.get(f"/api/v1/campaigns/{campaign}")).status_code == 200
    assert server.stop() == 0


# --- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_at_once_although_someone_waits_and_someone_listens(
    configured: Server, number: signal.Signals
) -> None:
    configured.start()
    async with configured.api() as api, configured.api() as listening:
        campaign = await submit(api, experiment={"backend": "pytorch", "model": "m"})
        worker = await FakeWorker(api).ready()
        async with (
            anyio.create_task_group() as tasks,
            listening.stream("GET", f"/api/v1/campaigns/{campaign['id']}/events") as stream,
        ):
            lines = stream.aiter_lines()
            assert await anext(lines) != ""  # it is open and speaks
            tasks.start_soon(_poll_long, worker)
            await api.get("/readyz")  # a round trip, so that the claim has most likely arrived; either way it must end
            configured.signal(number)
            async for _ in lines:
                pass
            assert await anyio.to_thread.run_sync(configured.wait) == 0
    log = configured.log.read_text()
    assert "Traceback" not in log and "exceeded" not in log, log


async def _poll_long(worker: FakeWorker) -> None:
    with contextlib.suppress(httpx.TransportError):
        assert (await worker.claim(wait_s=25)).status_code in (204, 503)


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_refused(configured: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = configured.refuse("--port", str(taken.getsockname()[1]))
    assert code == 1
    assert "can't listen" in said and "LEM_PORT" in said


@pytest.mark.parametrize(
    "url", ["mysql://root@localhost/lem", "sqlite:///lem.db", "no url", "postgresql+psycopg://a/b"]
)
def test_a_database_that_is_not_postgresql_is_refused(tmp_path: Path, url: str) -> None:
    code, said = Server(tmp_path / "data", LEM_DATABASE_URL=url).refuse()
    assert code == 2
    assert "LEM_DATABASE_URL" in said and "postgresql://" in said


def test_a_database_that_cannot_be_reached_is_refused(tmp_path: Path) -> None:
    code, said = Server(tmp_path / "data", LEM_DATABASE_URL="postgresql://a:secret@127.0.0.1:1/lem").refuse()
    assert code == 1
    assert "can't be reached" in said and "LEM_DATABASE_URL" in said and "secret" not in said


def test_a_database_that_does_not_exist_is_refused(tmp_path: Path, database_url: URL) -> None:
    url = database_url.set(database="nowhere").render_as_string(hide_password=False)
    code, said = Server(tmp_path / "data", LEM_DATABASE_URL=url).refuse()
    assert code in (1, 2)
    assert '"nowhere"' in said


async def test_a_schema_of_another_version_is_refused_until_it_was_migrated(
    tmp_path: Path, empty_database_url: URL
) -> None:
    server = Server(tmp_path / "data", LEM_DATABASE_URL=empty_database_url.render_as_string(hide_password=False))
    try:
        code, said = server.refuse()
        assert code == 2
        assert "`lem-server migrate`" in said and head_revision() in said and "none" in said
        assert "up to date" in server.migrate()
        assert "up to date" in server.migrate()
        server.start()
        async with server.api() as api:
            assert (await api.get("/readyz")).status_code == 200
        assert not (server.data / "postgres").exists(), "a configured database needs none of its own"
        assert server.stop() == 0
    finally:
        server.clean_up()


async def test_others_are_let_in_only_after_access_was_set_up(configured: Server, database_url: URL) -> None:
    code, said = configured.refuse("--host", "0.0.0.0")
    assert code == 1
    assert "0.0.0.0" in said and "lem-server token" in said

    configured.start()
    async with configured.api() as api:
        made = await api.post("/api/v1/tokens", json={"name": "somebody", "expires_in_days": 1})
        assert made.status_code == 201
    assert configured.stop() == 0
    configured.start("--host", "0.0.0.0")
    assert configured.stop() == 0

    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain)
    await connection.execute("UPDATE api_tokens SET expires_at = now() WHERE name = 'somebody'")
    await connection.close()
    code, said = configured.refuse("--host", "0.0.0.0")
    assert code == 1, "a token that has expired lets nobody in"


def test_a_data_folder_of_another_postgresql_is_refused_and_left_alone(server: Server) -> None:
    folder = server.data / "postgres"
    folder.mkdir(parents=True)
    (folder / "PG_VERSION").write_text("17\n")
    code, said = server.refuse()
    assert code == 2
    assert "PostgreSQL 17" in said and "18" in said and "LEM_DATA_DIR" in said
    assert [path.name for path in folder.iterdir()] == ["PG_VERSION"]


def test_a_data_folder_that_is_a_file_is_refused(server: Server) -> None:
    server.data.write_text("not a folder")
    code, said = server.refuse()
    assert code == 2
    assert "data folder" in said


def test_a_password_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    server = Server(
        tmp_path / "data", LEM_DATABASE_URL="postgresql://a@127.0.0.1:1/b", LEM_DATABASE_PASSWORD_FILE=str(missing)
    )
    code, said = server.refuse()
    assert code == 2
    assert "LEM_DATABASE_PASSWORD_FILE" in said and str(missing) in said


def test_a_start_that_fails_late_is_a_failure_too(configured: Server) -> None:
    (configured.data / "owner.token").mkdir(parents=True)
    done = subprocess.run(
        [COMMAND, "serve", "--port", "0", "--data-dir", configured.data],
        env=configured.environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("lem-server: ")


# --- settings, seen from outside --------------------------------------------------------------------------------------


async def test_settings_of_the_environment_reach_the_answers(configured: Server) -> None:
    configured.environment |= {
        "LEM_LEASE_TTL_S": "7",
        "LEM_LEASE_GRACE_S": "11",
        "LEM_BEAT_INTERVAL_S": "2.5",
        "LEM_TRUSTED_HOSTS": '["127.0.0.1", "lem.example"]',
        "LEM_LOG_FORMAT": "json",
        "LEM_LOG_LEVEL": "info",
    }
    configured.start()
    async with configured.api() as api:
        terms: dict[str, Any] = (await FakeWorker(api).register()).json()
        assert (terms["lease_ttl_s"], terms["beat_interval_s"]) == (7, 2.5)
        assert (await api.get("/livez", headers={"Host": "lem.example"})).status_code == 200
        assert (await api.get("/livez", headers={"Host": "localhost"})).status_code == 400
    assert configured.stop() == 0
    entries = [json.loads(line) for line in configured.log.read_text().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(entries[0])


async def test_the_password_of_the_file_is_the_one_that_is_sent(
    tmp_path: Path, database_url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lem_server.commands import _database
    from lem_server.settings import Settings
    from lem_server.signals import TerminationSignals

    secret = tmp_path / "password"
    secret.write_text("swordfish\n")
    settings = Settings(database_url="postgresql://a:other@b/c", database_password_file=secret)
    with _database(settings, TerminationSignals(0), owner="server") as url:
        assert url.password == "swordfish"
