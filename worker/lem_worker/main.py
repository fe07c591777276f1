"""`lem-worker run`: the command line of the daemon."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

from pydantic import ValidationError

from lem_domain.config.experiment import BackendName
from lem_domain.errors import LemError
from lem_worker.daemon import Daemon
from lem_worker.settings import WorkerSettings

_DESCRIPTION = """\
A worker measures the runs that a LEM server hands out. It connects outward only.

  lem-worker run --backend pytorch                     on the machine of the server
  lem-worker run --backend pytorch --server http://lem.example:8420 --token-file token
  lem-worker run --backend simulated --devices 2       a backend with a known truth, for trying things out

Every option is also an environment variable: LEM_SERVER, LEM_TOKEN_FILE, and LEM_WORKER_ with the option's name.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run a worker; exits with 0, 1 (failed) or 2 (wrong usage)."""
    parser = argparse.ArgumentParser(
        prog="lem-worker", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="claim and measure runs until told to end")
    run.add_argument("--backend", choices=[name.value for name in BackendName], help="the engine to serve")
    run.add_argument("--server", help="the server's address (default http://127.0.0.1:8420)")
    run.add_argument("--token-file", help="a file with a token of scopes read and work (default: the owner's token)")
    run.add_argument("--state-dir", help="identity and spool, kept over restarts")
    run.add_argument("--cache-dir", help="converted models (default LEM_CACHE_DIR or ~/.cache/lem)")
    run.add_argument("--name", help="shown in lists")
    run.add_argument("--devices", type=int, help="number of simulated devices")
    run.add_argument("--max-runs", type=int, help="end after so many runs")
    run.add_argument("--until-idle", action="store_true", default=None, help="end when there is nothing to do")
    options = vars(parser.parse_args(arguments))
    del options["command"]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = WorkerSettings(**{name: value for name, value in options.items() if value is not None})
        asyncio.run(_run(settings))
    except ValidationError as error:
        first = error.errors()[0]
        _leave(f"--{str(first['loc'][-1]).replace('_', '-')}: {first['msg']}", 2)
    except LemError as error:
        _leave(str(error), 1)
    except KeyboardInterrupt:
        sys.exit(130)


async def _run(settings: WorkerSettings) -> None:
    await Daemon(settings).run()


def _leave(message: str, code: int) -> None:
    print(f"lem-worker: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(code)
