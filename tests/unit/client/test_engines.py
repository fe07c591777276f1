"""Workers of other environments are found beside lemctl's own, or named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lem_client.cli.exits import UsageError
from lem_client.cli.processes import script
from lem_client.cli.worker_programs import installed_backends, named_programs, program_of
from lem_domain.backends.registry import BackendName


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_an_environment_next_to_lemctls_serves_its_backend(tmp_path: Path) -> None:
    own = tmp_path / ".venv"
    assert BackendName.VLLM not in installed_backends({}, environment=own)
    worker = program(tmp_path / ".venv-vllm" / "bin" / "lem-worker")
    assert BackendName.VLLM in installed_backends({}, environment=own)
    assert program_of(BackendName.VLLM, {}, environment=own) == str(worker)
    assert program_of(BackendName.PYTORCH, {}, environment=own) == script("lem-worker")


def test_a_named_worker_goes_before_one_that_is_found(tmp_path: Path) -> None:
    program(tmp_path / ".venv-vllm" / "bin" / "lem-worker")
    other = program(tmp_path / "elsewhere" / "lem-worker")
    named = named_programs([f"vllm={other}"])
    assert program_of(BackendName.VLLM, named, environment=tmp_path / ".venv") == str(other)
    assert BackendName.VLLM in installed_backends(named, environment=tmp_path / "nowhere" / ".venv")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("vllm", "is not BACKEND=PROGRAM with a backend of pytorch"),
        (f"vlm={sys.executable}", "is not BACKEND=PROGRAM"),
        ("vllm=/nowhere/lem-worker", "/nowhere/lem-worker"),
        ("vllm=/tmp", "/tmp"),
    ],
)
def test_a_worker_that_is_named_wrongly_is_refused(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        named_programs([given])
