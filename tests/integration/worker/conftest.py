"""Two ends of a worker: a process of an attempt driven the way the daemon does, and a daemon against a FakeServer."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from factories.fake_daemon import FAKES
from factories.fake_server import FakeServer
from lem_domain.retries import WORKER_RETRIES
from lem_worker import server_api
from lem_worker.daemon.daemon import Daemon
from lem_worker.daemon.settings import WorkerSettings
from lem_worker.process.protocol import (
    CONTROL_IN,
    CONTROL_OUT,
    ControlMessage,
    FromProcess,
    RankJob,
    SamplerJob,
    encode,
    from_process,
)

TESTS = Path(__file__).parents[2]
M = TypeVar("M", bound=ControlMessage)


class DrivenProcess:
    """One rank or sampler."""

    def __init__(self, module: str, job: RankJob | SamplerJob, environment: Mapping[str, str]) -> None:
        folder = Path(job.spool)
        folder.mkdir(parents=True, exist_ok=True)
        job_file = folder.parent / f"{folder.name}.job.json"
        job_file.write_text(job.model_dump_json())
        theirs_in, write_fd = os.pipe()
        self._write_fd: int | None = write_fd
        self._read_fd, theirs_out = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(job_file)],
            env={**os.environ, **environment, CONTROL_IN: str(theirs_in), CONTROL_OUT: str(theirs_out)},
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.PIPE,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._lines = os.fdopen(self._read_fd, "rb", buffering=0)
        self.messages: list[FromProcess] = []

    def send(self, message: ControlMessage) -> None:
        assert self._write_fd is not None
        os.write(self._write_fd, encode(message))

    def receive(self) -> FromProcess | None:
        """The next message; None when the process has closed its end."""
        line = self._lines.readline()
        if not line:
            return None
        self.messages.append(from_process.validate_json(line))
        return self.messages[-1]

    def until(self, kind: type[M]) -> M:
        """The next message of a kind."""
        while (message := self.receive()) is not None:
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__} came: {self.messages} {self.stderr()}")

    def to_the_end(self) -> int:
        """Read what is left; the answer is the exit code."""
        while self.receive() is not None:
            pass
        return self.process.wait()

    def is_silent_for(self, seconds: float) -> bool:
        return not select.select([self._read_fd], [], [], seconds)[0]

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def hang_up(self) -> None:
        """Close both pipes, as a dead daemon does."""
        self._lines.close()
        if self._write_fd is not None:
            os.close(self._write_fd)
            self._write_fd = None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.hang_up()


Drive = Callable[..., DrivenProcess]


@pytest.fixture
def drive() -> Iterator[Drive]:
    """Start `module` with `job`; every process is gone after the test."""
    started: list[DrivenProcess] = []

    def start(module: str, job: RankJob | SamplerJob, **environment: str) -> DrivenProcess:
        started.append(DrivenProcess(module, job, environment))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture(scope="session")
def model_folder(tiny_llama: Path) -> Path:
    """The folder of builtin:tiny-llama."""
    return tiny_llama


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch in this process computes with one thread, and afterwards with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def worker_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine's own settings, a token, and short pauses between tries."""
    for name in [name for name in os.environ if name.startswith("LEM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
    monkeypatch.setenv("LEM_DATA_DIR", str(tmp_path))
    short = replace(WORKER_RETRIES, first_delay_s=0.01, longest_delay_s=0.05)
    monkeypatch.setattr(server_api, "WORKER_RETRIES", short)
    (tmp_path / "owner.token").write_text("secret")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def work(server: FakeServer, state: Path) -> Callable[..., Coroutine[Any, Any, None]]:
    """Run a worker until the queue is empty."""

    async def run(**settings: Any) -> None:
        modules = settings.pop("modules", FAKES)
        own = {"server": server.url, "state_dir": state, "until_idle": True, "kill_grace_s": 0.1}
        chosen = {"backend": "simulated", **own, **settings}
        await Daemon(WorkerSettings(**chosen), modules=modules).run()  # type: ignore[arg-type]

    return run
