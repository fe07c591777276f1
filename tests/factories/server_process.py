"""`lem-server` as a process on a data folder, for tests of how it starts and ends."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from signal import Signals

import httpx
import psutil

from factories.folders import database_folder

COMMAND = Path(sys.executable).parent / "lem-server"
READY = re.compile(r"^LEM server ready at (http://\S+) \(data in (.+)\)$")
ENDS_WITHIN_S = 300
"""A machine that others share needs longer than the server's own limit; that limit is seen in its log."""


@contextlib.contextmanager
def folder_for_everybody() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = database_folder("lem-server-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """A server process on a data folder; `stop` and the fixture leave nothing running."""

    def __init__(self, data: Path, **environment: str) -> None:
        self.data = data
        self.log = data.parent / "server.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LEM_")}
        self.environment = {**kept, "OMP_NUM_THREADS": "1", **environment}
        self.url = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str) -> None:
        self.launch(*arguments)
        self.become_ready()

    def launch(self, *arguments: str, command: str = "serve") -> None:
        """Start it without waiting."""
        port = ["--port", "0"] if command == "serve" else []
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [COMMAND, command, *port, "--data-dir", self.data, *arguments],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def become_ready(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        found = READY.match(self._process.stdout.readline().rstrip("\n"))
        assert found, self.log.read_text()
        assert found[2] == str(self.data)
        self.url = found[1]

    def refuse(self, *arguments: str, command: str = "serve") -> tuple[int, str]:
        """Exit code and sentence of a start that does not succeed."""
        port = ["--port", "0"] if command == "serve" and "--port" not in arguments else []
        done = subprocess.run(
            [COMMAND, command, *port, "--data-dir", self.data, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.stdout == ""
        assert "Traceback" not in done.stderr, done.stderr
        said = [line for line in done.stderr.splitlines() if line.startswith("lem-server: ")]
        assert len(said) == 1, done.stderr
        return done.returncode, said[0].removeprefix("lem-server: ")

    def migrate(self) -> str:
        done = subprocess.run(
            [COMMAND, "migrate", "--data-dir", self.data],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def catches(self, number: Signals) -> bool:
        """Whether the process has a handler of its own for the signal."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (number - 1) & 1)

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(ENDS_WITHIN_S)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    @property
    def postmaster(self) -> int | None:
        """Process id of its own PostgreSQL, while that runs."""
        note = self.data / "postgres" / "postmaster.pid"
        pid = int(note.read_text().split("\n", 1)[0]) if note.exists() else None
        return pid if pid is not None and Path(f"/proc/{pid}").exists() else None

    @property
    def processes(self) -> list[psutil.Process]:
        """Every living process of its PostgreSQL, noted or not, and of the initdb that makes it."""
        return [process for process in psutil.process_iter() if self._is_own(process)]

    def _is_own(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            if process.name() in ("postgres", "initdb") and process.status() != psutil.STATUS_ZOMBIE:
                return any(str(self.data / "postgres") in part for part in (process.cwd(), *process.cmdline()))
        return False

    def clean_up(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT)

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[httpx.AsyncClient]:
        token = (self.data / "owner.token").read_text().strip()
        async with httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=300
        ) as client:
            yield client
