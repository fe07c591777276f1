"""Several `lem-server serve` on one PostgreSQL, real workers, and a balancer in front, for end-to-end tests."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from factories.folders import database_folder
from lem_client import Client
from lem_server.access.service import OWNER_TOKEN_FILE
from lem_server.database.embedded import EmbeddedPostgres

BIN = Path(sys.executable).parent
TESTS = Path(__file__).parents[1]
READY = re.compile(r"LEM server ready at (http://\S+)")
ENDS_WITHIN_S = 300
"""A machine that others share needs longer than the server's own limit."""


class ServerProcess:
    """One server with a data folder of its own; it may be killed and started anew on the same port."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.data = folder
        self.log = folder.with_suffix(".log")
        self.url = ""
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    @property
    def port(self) -> int:
        """Where it listens, or listened last."""
        return urlsplit(self.url).port or 0

    @property
    def token_file(self) -> Path:
        """The owner's token, as this server wrote it down."""
        return self.data / OWNER_TOKEN_FILE

    def start(self) -> None:
        """Start and wait until it is ready; a second time on the same port."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [BIN / "lem-server", "serve", "--port", str(self.port), "--data-dir", str(self.data)],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        found = READY.search(self._process.stdout.readline())
        assert found, self.log.read_text()
        self.url = found[1]

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM; it must end by itself and with success."""
        assert self._process is not None
        self._process.terminate()
        assert self._process.wait(ENDS_WITHIN_S) == 0, self.log.read_text()

    def end(self) -> None:
        """Leave nothing running."""
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def client(self) -> Client:
        """A client of this server with its owner's token."""
        return Client(self.url, token_file=self.token_file)


class Cluster:
    """A PostgreSQL, the servers on it and their workers; everything is gone after `stop`."""

    def __init__(self, **environment: str) -> None:
        self.folder = database_folder("lem-replicas-")
        self.postgres = EmbeddedPostgres(self.folder / "postgres")
        self.servers: dict[str, ServerProcess] = {}
        self._workers: list[subprocess.Popen[bytes]] = []
        self._balancer: Balancer | None = None
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LEM_")}
        self._environment = {**kept, "OMP_NUM_THREADS": "1", **environment}

    def start(self, *names: str) -> None:
        """Start PostgreSQL, bring its schema to head, and start these servers."""
        self.postgres.start()
        self._environment["LEM_DATABASE_URL"] = self.postgres.url.render_as_string(hide_password=False)
        subprocess.run([BIN / "lem-server", "migrate"], env=self._environment, check=True, capture_output=True)
        for name in names:
            self.servers[name] = ServerProcess(self.folder / name, self._environment)
            self.servers[name].start()

    def balancer(self) -> str:
        """The address of a balancer in front of all servers."""
        self._balancer = self._balancer or Balancer(list(self.servers.values()))
        return self._balancer.url

    def start_worker(self, server: str, name: str) -> subprocess.Popen[bytes]:
        """Start a simulated worker; its state stays under its name."""
        options = ("--backend", "simulated", "--server", server, "--state-dir", str(self.folder / "state" / name))
        return self._start_worker(name, [BIN / "lem-worker", "run", *options], {})

    def start_gated_worker(self, server: str, name: str, *, gate: str, reached: Path) -> subprocess.Popen[bytes]:
        """Start one that ends when there is nothing to do; its rank makes a file when it gets to a point of its run,
        and waits until that is gone (see `factories.fake_rank`)."""
        settings = {
            "LEM_WORKER_BACKEND": "simulated",
            "LEM_SERVER": server,
            "LEM_WORKER_STATE_DIR": str(self.folder / "state" / name),
            "LEM_WORKER_UNTIL_IDLE": "true",
            "LEM_TEST_RANK": "gated",
            "LEM_TEST_GATE": gate,
            "LEM_TEST_REACHED": str(reached),
            "LEM_TEST_SAMPLER": "real",
            "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        }
        return self._start_worker(name, [sys.executable, "-m", "factories.fake_daemon"], settings)

    def _start_worker(
        self, name: str, program: Sequence[str | Path], settings: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        token = next(iter(self.servers.values())).token_file
        with (self.folder / f"{name}.log").open("ab") as log:
            worker = subprocess.Popen(
                program,
                env={**self._environment, **settings, "LEM_TOKEN_FILE": str(token)},
                stderr=log,
                start_new_session=True,
            )
        self._workers.append(worker)
        return worker

    def kill_postgres(self) -> None:
        """SIGKILL of the postmaster, which takes its processes along; `postgres.stop` and `start` bring it back."""
        os.kill(int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)

    def log(self, name: str) -> str:
        """What a server or worker said."""
        return (self.folder / f"{name}.log").read_text()

    def logs(self) -> str:
        """What everybody said."""
        return "\n".join(f"== {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob("*.log")))

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of the test's own, as a superuser."""
        plain = self.postgres.url.set(drivername="postgresql").render_as_string(hide_password=False)
        connection = await asyncpg.connect(plain)
        try:
            yield connection
        finally:
            await connection.close()

    def stop(self) -> None:
        """Stop everything."""
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(ENDS_WITHIN_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        if self._balancer is not None:
            self._balancer.close()
        for server in self.servers.values():
            server.end()
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Balancer:
    """Hands each TCP connection to the next server in turn that accepts it."""

    def __init__(self, servers: list[ServerProcess]) -> None:
        self._servers = servers
        self._turn = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept nothing more."""
        # A thread that waits in accept() is woken by a shutdown, not by a close.
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                incoming, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(incoming,), daemon=True).start()

    def _serve(self, incoming: socket.socket) -> None:
        with incoming:
            outgoing = self._connect()
            if outgoing is not None:
                with outgoing:
                    _exchange(incoming, outgoing)

    def _connect(self) -> socket.socket | None:
        for _ in self._servers:
            self._turn += 1
            server = self._servers[self._turn % len(self._servers)]
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", server.port), timeout=5)
        return None


def _exchange(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until either side ends."""
    with selectors.DefaultSelector() as ready, contextlib.suppress(OSError):
        ready.register(one, selectors.EVENT_READ, other)
        ready.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in ready.select():
                some = key.fileobj.recv(65536)  # type: ignore[union-attr]
                if not some:
                    return
                key.data.sendall(some)
