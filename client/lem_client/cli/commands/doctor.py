"""`lemctl doctor`: checks what a first measurement needs, on this machine and on the server."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib.metadata import version as package_version
from importlib.util import find_spec
from typing import NamedTuple

import typer

from lem_client import credentials
from lem_client.cli.commands import Section, command
from lem_client.cli.exits import ExitCode
from lem_client.cli.session import Session, session_of
from lem_client.client import Client
from lem_client.render.terminal import clean
from lem_domain.errors import LemError
from lem_domain.wire.base import PROTOCOL_VERSION
from lem_domain.wire.workers import WorkerState

LEAST_FREE_BYTES = 2 * 2**30
ENERGY_TIMEOUT_S = 60.0
"""Reading takes a second or two, and the import of CodeCarbon some more; a driver in trouble never answers."""


class Grade(StrEnum):
    """Outcome of a diagnosis."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Diagnosis(NamedTuple):
    """One checked item. The field names are those of the JSON output."""

    name: str
    grade: Grade
    says: str
    remedy: str = ""


@command("doctor", Section.DIAGNOSE)
def doctor(context: typer.Context) -> None:
    """Check this machine and the server, and name a remedy for each problem. Exits with 1 if a check fails.

    \b
    lemctl doctor
    lemctl doctor --server http://lem.example:8420 --token-file token
    """
    session = session_of(context)
    diagnoses = [*_this_machine(), *_server(session)]
    if session.as_json:
        session.print_json([one._asdict() for one in diagnoses])
    else:
        for one in diagnoses:
            session.print(clean(f"{one.grade.value:<5} {one.name:<12} {one.says}"))
            if one.remedy:
                session.print(clean(f"{'':<18} -> {one.remedy}"))
    raise typer.Exit(ExitCode.FAILED if any(one.grade is Grade.FAIL for one in diagnoses) else ExitCode.DONE)


def _this_machine() -> Iterator[Diagnosis]:
    lem = package_version("llm-energy-measurement")
    yield Diagnosis("client", Grade.OK, f"lemctl {lem} on Python {platform.python_version()}, {platform.platform()}")
    yield _installed("server", ("fastapi", "uvicorn", "sqlalchemy"), "pip install 'llm-energy-measurement[server]'")
    yield _installed("pytorch", ("torch", "transformers"), "pip install 'llm-energy-measurement[pytorch]'")
    yield _energy()
    yield _disk()


def _installed(name: str, modules: tuple[str, ...], remedy: str) -> Diagnosis:
    if all(find_spec(module) for module in modules):
        return Diagnosis(name, Grade.OK, "is installed here")
    return Diagnosis(name, Grade.WARN, "is not installed here", f"if this machine needs it: {remedy}")


def _energy() -> Diagnosis:
    """Ask the worker that is installed here what each energy source gives, as `lem-worker doctor` prints it."""
    try:
        # A subprocess, because the client imports no code of the worker.
        asked = subprocess.run(
            [sys.executable, "-m", "lem_worker.sampler.doctor"],
            capture_output=True,
            text=True,
            timeout=ENERGY_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        says = f"the worker here did not say within {ENERGY_TIMEOUT_S:g} s what it can measure"
        return Diagnosis("energy", Grade.WARN, says, "run lem-worker doctor; see what nvidia-smi says")
    lines = asked.stdout.splitlines()
    if asked.returncode == 0:
        return Diagnosis("energy", Grade.OK, " | ".join(lines))
    if lines:
        says = f"no meter is readable here, so results would be modelled or have no energy: {' | '.join(lines)}"
        return Diagnosis("energy", Grade.WARN, says, "make a meter readable as it is described, then lem-worker doctor")
    # A worker that can't start prints a traceback; its last line names the cause.
    why = asked.stderr.strip().splitlines()[-1:] or ["the worker here prints nothing"]
    remedy = "if this machine measures: pip install 'llm-energy-measurement[worker]'"
    return Diagnosis("energy", Grade.WARN, why[0], remedy)


def _disk() -> Diagnosis:
    folder = credentials.data_dir().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    says = f"{free / 2**30:.1f} GiB are free for {folder}"
    if free < LEAST_FREE_BYTES:
        return Diagnosis("disk", Grade.WARN, says, "make room, or choose another LEM_DATA_DIR")
    return Diagnosis("disk", Grade.OK, says)


def _server(session: Session) -> Iterator[Diagnosis]:
    """Check the server step by step; each step needs the one before, so the first failure is the last."""
    steps: tuple[tuple[str, Callable[[Client], Diagnosis]], ...] = (
        ("server", _check_server),
        ("token", _check_token),
        ("workers", _check_workers),
    )
    for name, step in steps:
        try:
            found = step(session.client)
        except LemError as error:
            found = Diagnosis(name, Grade.FAIL, str(error))
        yield found
        if found.grade is Grade.FAIL:
            return


def _check_server(client: Client) -> Diagnosis:
    found = client.version()
    if found.protocol != PROTOCOL_VERSION:
        remedy = "install the same version of llm-energy-measurement on both sides"
        says = f"{client.server} uses protocol {found.protocol}, this client {PROTOCOL_VERSION}"
        return Diagnosis("server", Grade.FAIL, says, remedy)
    if not client.is_ready():
        says = f"{client.server} answers, but its database does not"
        return Diagnosis("server", Grade.FAIL, says, "read the server's log; check LEM_DATABASE_URL")
    return Diagnosis("server", Grade.OK, f"{client.server} answers: version {found.version}, method {found.method}")


def _check_token(client: Client) -> Diagnosis:
    next(client.campaigns(), None)
    return Diagnosis("token", Grade.OK, "is accepted and may read")


def _check_workers(client: Client) -> Diagnosis:
    found = tuple(client.workers())
    online = [one for one in found if one.state is WorkerState.ONLINE]
    if not online:
        says = f"none is online ({len(found)} known)"
        return Diagnosis("workers", Grade.WARN, says, "`lemctl up`, or `lem-worker run --backend BACKEND`")
    return Diagnosis("workers", Grade.OK, ", ".join(f"{one.name} ({one.backend})" for one in online))
