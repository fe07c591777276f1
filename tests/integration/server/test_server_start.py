"""`lem-server` starts whatever a crash left behind, ends cleanly at any moment, and owns its data folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import asyncpg
import httpx
import psutil
import pytest
from sqlalchemy.engine import URL

from factories.server_process import COMMAND, Server, folder_for_everybody
from lem_server.database import embedded
from lem_server.database.embedded import EmbeddedPostgres
from lem_server.database.engine import DatabaseError

pytestmark = pytest.mark.anyio

PATIENCE_S = 600.0
MIGRATION_LOCK = 0x4C454D01


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with a PostgreSQL of its own, not started."""
    with folder_for_everybody() as folder:
        made = Server(folder / "data")
        yield made
        made.clean_up()


@pytest.fixture
def second(server: Server) -> Iterator[Server]:
    """Another server on the same data folder, not started."""
    made = Server(server.data)
    yield made
    made.clean_up()


@pytest.fixture
def folder(server: Server) -> Path:
    """The folder of its PostgreSQL."""
    return server.data / "postgres"


@pytest.fixture
def recovering(server: Server, folder: Path) -> Iterator[Path]:
    """A PostgreSQL that will recover until the file that this names is there."""
    with EmbeddedPostgres(folder):
        pass
    go = server.data / "go"
    with (folder / "postgresql.auto.conf").open("a") as file:
        file.write(f"restore_command = 'until test -e {go}; do sleep 0.05; done; false'\nhot_standby = off\n")
    (folder / "recovery.signal").touch()
    yield go
    go.touch()


def wait_until(holds: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < give_up, "it never came to that"
        time.sleep(0.01)


# --- what a crash left ------------------------------------------------------------------------------------------------


def test_files_that_were_half_made_when_it_was_killed_are_recreated(server: Server, folder: Path) -> None:
    server.launch()
    wait_until(lambda: list(server.data.glob("postgres*/PG_VERSION")))
    server.signal(signal.SIGKILL)
    server.wait()
    for process in server.processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends by itself too
            process.kill()
    server.start()
    assert server.stop() == 0
    assert sorted(path.name for path in server.data.iterdir() if path.is_dir()) == ["postgres"]


def test_a_database_that_was_used_and_is_damaged_is_refused_and_left_alone(server: Server, folder: Path) -> None:
    with EmbeddedPostgres(folder):
        pass
    (folder / "global" / "pg_control").unlink()
    code, said = server.refuse()
    assert code == 2
    assert "damaged" in said and "global/pg_control" in said and "LEM_DATA_DIR" in said
    assert (folder / "base" / "5").is_dir()


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(0, id="empty"),
        pytest.param(1, id="only the number", marks=pytest.mark.slow),
        pytest.param(3, id="cut off", marks=pytest.mark.slow),
        pytest.param(8, id="whole"),
    ],
)
def test_a_note_whose_process_number_belongs_to_another_program_now_is_removed(
    server: Server, folder: Path, lines: int
) -> None:
    with EmbeddedPostgres(folder) as postgres:
        pass
    note = folder / "postmaster.pid"
    whole = [os.getpid(), folder, 1, 5432, postgres.url.query["host"], "", "5432001 0", "ready"]
    note.write_text("".join(f"{line}\n" for line in whole[:lines]))
    server.start()
    assert str(note) in server.log.read_text()
    assert server.stop() == 0
    assert server.processes == []


@pytest.mark.parametrize("left", ["both", pytest.param("only the lock of its socket", marks=pytest.mark.slow)])
def test_a_socket_lock_whose_process_number_belongs_to_another_program_now_is_removed(
    server: Server, folder: Path, left: str
) -> None:
    with EmbeddedPostgres(folder) as postgres:
        lock = Path(str(postgres.url.query["host"])) / ".s.PGSQL.5432.lock"
        lines = lock.read_text().splitlines()
        note = (folder / "postmaster.pid").read_text().splitlines()
    # PostgreSQL takes only a process of its own user for another PostgreSQL.
    with subprocess.Popen(["sleep", "600"], user=folder.stat().st_uid) as other:
        try:
            lock.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
            if left == "both":
                (folder / "postmaster.pid").write_text("\n".join([str(other.pid), *note[1:]]) + "\n")
            server.start()
            assert str(lock) in server.log.read_text()
            assert server.stop() == 0
        finally:
            other.kill()


def test_a_note_of_the_postgresql_of_another_folder_is_removed_and_that_one_continues(
    server: Server, folder: Path
) -> None:
    with EmbeddedPostgres(folder):
        pass
    other = server.data / "other" / "postgres"
    with EmbeddedPostgres(other):
        note = other / "postmaster.pid"
        (folder / "postmaster.pid").write_bytes(note.read_bytes())
        server.start()
        assert server.stop() == 0
        assert psutil.Process(int(note.read_text().split()[0])).is_running()


# --- a PostgreSQL that is not ready yet -------------------------------------------------------------------------------


def test_a_recovery_is_waited_for(server: Server, recovering: Path) -> None:
    server.launch()
    wait_until(lambda: "waiting for PostgreSQL" in server.log.read_text())
    recovering.touch()
    server.become_ready()
    assert server.stop() == 0


def test_a_recovery_that_takes_too_long_is_reported_and_continues(
    folder: Path, recovering: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_WITHIN_S", 1.0)
    with pytest.raises(DatabaseError, match=r"not ready after 1 s"):
        EmbeddedPostgres(folder).start()
    pid = (folder / "postmaster.pid").read_text().split()[0]
    recovering.touch()
    monkeypatch.undo()
    with EmbeddedPostgres(folder):
        assert (folder / "postmaster.pid").read_text().split()[0] == pid, "it was found, not started anew"
    assert not (folder / "postmaster.pid").exists()


def test_a_postgresql_that_never_comes_up_is_refused_with_its_own_words(server: Server, folder: Path) -> None:
    with EmbeddedPostgres(folder):
        pass
    with (folder / "postgresql.conf").open("a") as file:
        file.write("nonsense = 1\n")
    code, said = server.refuse()
    assert code == 2
    assert "ends as soon as it is started" in said and str(folder / "log") in said


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_stopping_a_postgresql_that_died_is_no_failure(server: Server, folder: Path) -> None:
    postgres = EmbeddedPostgres(folder)
    postgres.start()
    os.kill(int((folder / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    postgres.stop()
    postgres.stop()
    wait_until(lambda: server.processes == [])


@pytest.mark.slow
def test_a_server_whose_postgresql_died_still_ends_with_success(server: Server) -> None:
    server.start()
    assert server.postmaster is not None
    os.kill(server.postmaster, signal.SIGKILL)
    assert server.stop() == 0


BOTH_SIGNALS = [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
"""The handlers are the same function."""


@pytest.mark.parametrize("number", BOTH_SIGNALS)
def test_asked_to_end_while_it_still_imports_it_does_nothing(server: Server, number: signal.Signals) -> None:
    server.launch()
    wait_until(lambda: server.catches(signal.SIGTERM))  # the last that it takes
    ends_with_nothing_left(server, number)
    assert not server.data.exists()


@pytest.mark.parametrize("number", BOTH_SIGNALS)
def test_asked_to_end_while_its_files_are_made_it_leaves_nothing(server: Server, number: signal.Signals) -> None:
    server.launch()
    wait_until(lambda: list(server.data.glob("postgres.new-*/PG_VERSION")))
    ends_with_nothing_left(server, number)


@pytest.mark.parametrize("number", BOTH_SIGNALS)
def test_asked_to_end_while_its_postgresql_starts_it_stops_that(
    server: Server, folder: Path, recovering: Path, number: signal.Signals
) -> None:
    server.launch()
    wait_until(lambda: server.postmaster)
    ends_with_nothing_left(server, number)


def ends_with_nothing_left(server: Server, number: signal.Signals) -> None:
    server.signal(number)
    assert server.wait() == 0, server.log.read_text()
    wait_until(lambda: server.processes == [])
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
async def test_a_migration_that_is_asked_to_end_does_not_end_with_success(tmp_path: Path, database_url: URL) -> None:
    server = Server(tmp_path / "data", LEM_DATABASE_URL=database_url.render_as_string(hide_password=False))
    connection = await asyncpg.connect(database_url.set(drivername="postgresql").render_as_string(hide_password=False))
    await connection.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
    server.launch(command="migrate")
    await somebody_waits_to_migrate(connection)
    assert server.stop() == 128 + signal.SIGTERM
    await connection.close()


async def somebody_waits_to_migrate(connection: asyncpg.Connection) -> None:
    waiting = """
        SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
         WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()
    """
    with anyio.fail_after(PATIENCE_S):
        while await connection.fetchval(waiting) == 0:
            pass


# --- two on one folder ------------------------------------------------------------------------------------------------


async def test_a_second_server_on_the_folder_is_refused_and_the_first_is_untouched(
    server: Server, second: Server
) -> None:
    server.start()
    code, message = second.refuse()
    assert code == 2
    assert str(server.data) in message and "LEM_DATABASE_URL" in message and "LEM_DATA_DIR" in message
    async with server.api() as api:
        assert (await api.get("/api/v1/campaigns")).status_code == 200
    assert server.stop() == 0
    assert server.processes == []
    second.start()
    assert second.stop() == 0


def test_a_token_is_made_with_the_postgresql_of_a_running_server_and_without_one(
    server: Server, second: Server
) -> None:
    server.start()
    postmaster = server.postmaster
    tokens = [made_token(second)]
    assert server.postmaster == postmaster
    server.signal(signal.SIGKILL)
    server.wait()
    tokens.append(made_token(second))
    assert server.processes == [], "its owner stopped what the killed server left"
    tokens.append(made_token(second))
    assert server.processes == []
    server.start()
    for token in tokens:
        answer = httpx.get(f"{server.url}/api/v1/workers", headers={"Authorization": f"Bearer {token}"}, timeout=300)
        assert answer.status_code == 200
    assert server.stop() == 0


def made_token(server: Server) -> str:
    done = subprocess.run(
        [COMMAND, "token", "--kind", "worker", "--name", "bench", "--data-dir", server.data],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_server_that_starts_while_a_command_uses_the_folder_waits_for_it(server: Server, folder: Path) -> None:
    with EmbeddedPostgres(folder, "command"):
        server.launch()
        wait_until(lambda: "postgres.lock" in server.log.read_text())
    server.become_ready()
    assert server.stop() == 0
