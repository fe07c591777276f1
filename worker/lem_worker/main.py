"""`lem-worker run`: the command line of the daemon."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from lem_domain.backends.registry import BackendName
from lem_domain.errors import LemError
from lem_worker.daemon.daemon import Daemon
from lem_worker.daemon.settings import WorkerSettings

_HELP = """A worker measures the runs that a LEM server hands out. It connects outward only.

\b
    lem-worker run --backend pytorch                     on the machine of the server
    lem-worker run --backend pytorch --server http://lem.example:8420 --token-file token
    lem-worker run --backend simulated --devices 2       a backend with a known truth, for trying things out

Ctrl-C or SIGTERM hands back what is held and ends; a second one ends at once and keeps what was not sent."""

app = typer.Typer(
    help=_HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
)


@app.callback()
def _commands() -> None:
    """A group even with one command, so that others can join it."""


@app.command()
def run(
    *,
    backend: Annotated[BackendName | None, typer.Option(help="The engine to serve [LEM_WORKER_BACKEND].")] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="The server [LEM_SERVER, else http://127.0.0.1:8420].")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A token of scopes read and work [LEM_TOKEN_FILE, else the owner's here]."),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Identity and spool, kept over restarts [LEM_WORKER_STATE_DIR].")
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Built-in models [LEM_CACHE_DIR, else ~/.cache/lem].")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Shown in lists [LEM_WORKER_NAME, else host and backend].")] = None,
    devices: Annotated[int | None, typer.Option(help="Number of simulated devices.")] = None,
    max_runs: Annotated[int | None, typer.Option(help="End after so many runs.")] = None,
    until_idle: Annotated[bool | None, typer.Option("--until-idle", help="End when there is nothing to do.")] = None,
) -> None:
    """Claim and measure runs until told to end. Exit codes: 0 ended as told, 1 can't go on, 2 wrong usage."""
    given: dict[str, Any] = {
        "backend": backend,
        "server": server,
        "token_file": token_file,
        "state_dir": state_dir,
        "cache_dir": cache_dir,
        "name": name,
        "devices": devices,
        "max_runs": max_runs,
        "until_idle": until_idle,
    }
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        # The settings read what is not given here from the environment.
        settings = WorkerSettings(**{key: value for key, value in given.items() if value is not None})
        asyncio.run(_run(settings))
    except ValidationError as error:
        first = error.errors()[0]
        _leave(f"--{str(first['loc'][-1]).replace('_', '-')}: {first['msg']}", 2)
    except LemError as error:
        _leave(str(error), 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a worker and exit with its code."""
    app(args=arguments)


async def _run(settings: WorkerSettings) -> None:
    await Daemon(settings).run()


def _leave(message: str, code: int) -> NoReturn:
    typer.echo(f"lem-worker: {message}", err=True)
    raise typer.Exit(code)
