"""`lemctl doctor`: looks at what a first measurement needs, here and on the server, and says what to do."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib.metadata import version as package_version
from importlib.util import find_spec
from typing import NamedTuple

import typer

from lem_client import credentials
from lem_client.cli.exits import Exit
from lem_client.cli.session import Session, clean, session_of
from lem_client.client import Client
from lem_domain.errors import LemError
from lem_domain.wire.base import PROTOCOL_VERSION
from lem_domain.wire.workers import WorkerState

LEAST_FREE_BYTES = 2 * 2**30


class Grade(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    grade: Grade
    says: str
    remedy: str = ""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("doctor")(doctor)


def doctor(context: typer.Context) -> None:
    """Check this machine and the server, and say what to do about what is missing. Exits with 1 if a check fails.

    \b
    lemctl doctor
    lemctl doctor --server http://lem.example:8420 --token-file token
    """
    session = session_of(context)
    checks = [*_here(), *_server(session)]
    if session.as_json:
        session.print_json([{**one._asdict(), "grade": one.grade.value} for one in checks])
    else:
        for one in checks:
            session.print(clean(f"{one.grade.value:<5} {one.name:<12} {one.says}"))
            if one.remedy:
                session.print(clean(f"{'':<18} -> {one.remedy}"))
    raise typer.Exit(Exit.FAILED if any(one.grade is Grade.FAIL for one in checks) else Exit.DONE)


def _here() -> Iterator[Check]:
    lem = package_version("llm-energy-measurement")
    yield Check("client", Grade.OK, f"lemctl {lem} on Python {platform.python_version()}, {platform.platform()}")
    yield _installed("server", ("fastapi", "uvicorn", "sqlalchemy"), "pip install 'llm-energy-measurement[server]'")
    yield _installed("pytorch", ("torch", "transformers"), "pip install 'llm-energy-measurement[pytorch]'")
    yield _energy()
    yield _space()


def _installed(name: str, modules: tuple[str, ...], remedy: str) -> Check:
    if all(find_spec(module) for module in modules):
        return Check(name, Grade.OK, "is installed here")
    return Check(name, Grade.WARN, "is not installed here", f"only where it is needed on this machine: {remedy}")


def _energy() -> Check:
    """What a worker here would know of energy: this version reads no meter."""
    if find_spec("codecarbon"):
        return Check("energy", Grade.OK, "is modelled by CodeCarbon, not measured; results say so")
    return Check(
        "energy",
        Grade.WARN,
        "CodeCarbon is not installed; results of a worker here have no energy",
        "pip install 'llm-energy-measurement[worker]'",
    )


def _space() -> Check:
    folder = credentials.data_dir().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    says = f"{free / 2**30:.1f} GiB are free for {folder}"
    if free < LEAST_FREE_BYTES:
        return Check("disk", Grade.WARN, says, "make room, or choose another LEM_DATA_DIR")
    return Check("disk", Grade.OK, says)


def _server(session: Session) -> Iterator[Check]:
    """Each check needs the one before: the first that fails is the last."""
    steps: tuple[tuple[str, Callable[[Client], Check]], ...] = (
        ("server", _answers),
        ("token", _token),
        ("workers", _workers),
    )
    for name, step in steps:
        try:
            found = step(session.client)
        except LemError as error:
            found = Check(name, Grade.FAIL, str(error))
        yield found
        if found.grade is Grade.FAIL:
            return


def _answers(client: Client) -> Check:
    found = client.version()
    if found.protocol != PROTOCOL_VERSION:
        remedy = "install the same version of llm-energy-measurement on both sides"
        says = f"{client.server} speaks protocol {found.protocol}, this client {PROTOCOL_VERSION}"
        return Check("server", Grade.FAIL, says, remedy)
    if not client.is_ready():
        return Check("server", Grade.FAIL, f"{client.server} answers, but its database does not", "look at its log")
    return Check("server", Grade.OK, f"{client.server} answers: version {found.version}, method {found.method}")


def _token(client: Client) -> Check:
    next(client.campaigns(), None)
    return Check("token", Grade.OK, "is accepted and may read")


def _workers(client: Client) -> Check:
    found = tuple(client.workers())
    online = [one for one in found if one.state is WorkerState.ONLINE]
    if not online:
        says = f"none is online ({len(found)} known)"
        return Check("workers", Grade.WARN, says, "`lemctl up`, or `lem-worker run --backend BACKEND`")
    return Check("workers", Grade.OK, ", ".join(f"{one.name} ({one.backend})" for one in online))
