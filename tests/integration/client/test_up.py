"""`lemctl up` for real: database, server and a simulated worker, and nothing left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from factories.server_process import folder_for_everybody
from lem_client import Client

LEMCTL = (sys.executable, "-m", "lem_client.cli.main")


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        if str(folder) in line:
            found.append(line)
    return found


def address(up: subprocess.Popen[str]) -> str:
    """The address that it announces once everything is up."""
    assert up.stdout is not None
    for line in up.stdout:
        if line.startswith("LEM is up at http://"):
            return line.split()[-1]
    raise AssertionError("it ended before everything was up")


@pytest.fixture
def folder() -> Iterator[Path]:
    with folder_for_everybody() as made:
        yield made


@pytest.fixture
def data(folder: Path) -> Path:
    return folder / "data"


@pytest.fixture
def up(data: Path) -> Iterator[subprocess.Popen[str]]:
    # TensorRT-LLM is hardly installed here: its worker is there to say so of every run.
    command = [*LEMCTL, "up", "--backend", "simulated", "--backend", "tensorrt", "--port", "0", "--data-dir", str(data)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield started
    if started.poll() is None:
        started.send_signal(signal.SIGTERM)
    started.communicate(timeout=300)


def test_everything_is_up_and_stopped_again_even_when_no_one_listens_any_more(
    up: subprocess.Popen[str], data: Path
) -> None:
    with Client(address(up), token_file=data / "owner.token") as client:
        assert {(worker.backend, worker.state.value) for worker in client.workers()} == {
            ("simulated", "online"),
            ("tensorrt", "online"),
        }
    assert processes_of(data)
    assert up.stdout is not None
    up.stdout.close()
    up.stdout = None
    up.send_signal(signal.SIGTERM)
    _, complaint = up.communicate(timeout=300)
    assert (up.returncode, complaint) == (0, "")
    assert processes_of(data) == []


def test_a_port_that_is_taken_is_said_and_leaves_nothing_behind(folder: Path) -> None:
    other = folder / "other"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        second = subprocess.run(
            [*LEMCTL, "up", "--backend", "simulated", "--port", str(port), "--data-dir", str(other)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert second.returncode == 1
    assert f"can't listen on 127.0.0.1 port {port}" in second.stderr
    assert second.stderr.splitlines()[-1].startswith("error: the server ended with code 1; its last lines are above")
    assert processes_of(other) == []
