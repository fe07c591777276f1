"""A whole LEM in real processes: `lem-server serve` with its own PostgreSQL, and real workers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from factories.folders import database_folder
from lem_client import Client

BIN = Path(os.environ.get("LEM_TEST_BIN") or Path(sys.executable).parent)
"""Where server and client are; another environment's when a suite runs in that of an engine."""
READY = re.compile(r"LEM server ready at (http://\S+)")


class House:
    """A server and its workers; everything is stopped, or killed, at the end."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.data = folder / "data"
        self.folder = folder
        self.url = ""
        self._environment = {**os.environ, "LEM_DATA_DIR": str(self.data), "LEM_CACHE_DIR": str(cache)}
        self._environment["OMP_NUM_THREADS"] = "1"
        self._server: subprocess.Popen[str] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []

    @property
    def token_file(self) -> Path:
        """The owner's token."""
        return self.data / "owner.token"

    def environment(self) -> dict[str, str]:
        """For `lemctl` and scripts."""
        return {**self._environment, "LEM_SERVER": self.url}

    def start_server(self, port: int = 0) -> str:
        """Start, or start anew on the same data, and wait until it is ready."""
        log = (self.folder / "server.log").open("ab")
        self._server = subprocess.Popen(
            [BIN / "lem-server", "serve", "--port", str(port), "--data-dir", str(self.data)],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        assert self._server.stdout is not None
        found = READY.search(self._server.stdout.readline())
        assert found, (self.folder / "server.log").read_text()
        self.url = found[1]
        return self.url

    def start_worker(
        self,
        backend: str,
        name: str = "worker",
        *,
        program: Sequence[str | Path] = (BIN / "lem-worker",),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a worker; its state stays under its name over restarts."""
        log = (self.folder / f"{name}.log").open("ab")
        worker = subprocess.Popen(
            [
                *program,
                "run",
                "--backend",
                backend,
                "--server",
                self.url,
                "--state-dir",
                str(self.folder / "state" / name),
            ],
            env={**self._environment, **(environment or {})},
            stderr=log,
            start_new_session=True,
        )
        self._workers.append(worker)
        return worker

    def log(self, name: str) -> str:
        """What a process logged."""
        return (self.folder / f"{name}.log").read_text()

    def kill_server(self) -> None:
        """SIGKILL; its PostgreSQL goes on."""
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    def client(self) -> Client:
        """A client with the owner's token."""
        return Client(self.url, token_file=self.token_file)

    def lemctl(self, *arguments: str | Path, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return subprocess.run(
            [BIN / "lemctl", *map(str, arguments)],
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def stop(self) -> None:
        """Stop everything."""
        for process in (*self._workers, *((self._server,) if self._server else ())):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in (*self._workers, *((self._server,) if self._server else ())):
            timer = threading.Timer(300, process.kill)
            timer.start()
            process.wait()
            timer.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def running_house(cache: Path) -> Iterator[House]:
    """A server that is up; workers are started by the test."""
    folder = database_folder("lem-e2e-")
    made = House(folder, cache)
    try:
        made.start_server()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def house(model_cache: Path) -> Iterator[House]:
    """A server of the test's own."""
    with running_house(model_cache) as made:
        yield made


@pytest.fixture(scope="module")
def shared_house(model_cache: Path) -> Iterator[House]:
    """One server for all tests of a module; each starts workers and ends them."""
    with running_house(model_cache) as made:
        yield made
