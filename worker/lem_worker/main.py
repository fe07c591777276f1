"""The commands of `lem-worker`."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from lem_domain.backends.registry import BackendName
from lem_domain.errors import LemError
from lem_worker.daemon.daemon import Daemon
from lem_worker.daemon.settings import WorkerSettings

_HELP = """A worker measures the runs that a LEM server assigns to it. It only opens outgoing connections.

\b
    lem-worker run --backend pytorch                     on the server's machine
    lem-worker run --backend pytorch --server http://lem.example:8420 --token-file token
    lem-worker run --backend simulated --devices 2       a backend with known energy and latency, for tests

Ctrl-C or SIGTERM hands the current run back and ends the worker. A second one ends it at once; unsent evidence is kept
in the spool."""

app = typer.Typer(
    help=_HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
)


@app.command()
def run(
    *,
    backend: Annotated[BackendName | None, typer.Option(help="Backend of this worker [LEM_WORKER_BACKEND].")] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Server [LEM_SERVER, default http://127.0.0.1:8420].")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Access token with the scopes read and work [LEM_TOKEN_FILE, default the owner's on this machine].",
        ),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Identity and spool, kept over restarts [LEM_WORKER_STATE_DIR].")
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Built-in models [LEM_CACHE_DIR, default ~/.cache/lem].")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in lists [LEM_WORKER_NAME, default host and backend].")] = None,
    devices: Annotated[int | None, typer.Option(help="Number of simulated devices.")] = None,
    max_runs: Annotated[int | None, typer.Option(help="End after this number of runs.")] = None,
    until_idle: Annotated[bool | None, typer.Option("--until-idle", help="End when no run is waiting.")] = None,
) -> None:
    """Claim and measure runs. Exit codes: 0 ended as requested, 1 failed, 2 wrong usage."""
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
    # httpx logs every request at INFO.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        # The settings read omitted options from the environment.
        settings = WorkerSettings(**{key: value for key, value in given.items() if value is not None})
        asyncio.run(_run(settings))
    except ValidationError as error:
        first = error.errors()[0]
        _exit(f"--{str(first['loc'][-1]).replace('_', '-')}: {first['msg']}", 2)
    except LemError as error:
        _exit(str(error), 1)


@app.command()
def doctor() -> None:
    """Print what each energy source gives here, per device, with a reading. Exit code 1 if nothing is measured."""
    # A subprocess, as for sampling: the program of the daemon contains no code of the sampler.
    ended = subprocess.run([sys.executable, "-m", "lem_worker.sampler.doctor"], check=False)
    raise typer.Exit(ended.returncode)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a worker and exit with its code."""
    app(args=arguments)


async def _run(settings: WorkerSettings) -> None:
    await Daemon(settings).run()


def _exit(message: str, code: int) -> NoReturn:
    typer.echo(f"lem-worker: {message}", err=True)
    raise typer.Exit(code)
