"""The command `lem-server`. It imports little, so that its signal handlers are installed within milliseconds."""

from __future__ import annotations

import argparse

from lem_server.signals import TerminationSignals


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the exit code is 0, 1 (failed) or 2 (wrong usage or configuration).

    A server that receives SIGTERM or SIGINT exits with 0, also before it is ready; other commands exit with 128 plus
    the signal's number.
    """
    parser = argparse.ArgumentParser(
        prog="lem-server",
        description="The LEM server. Settings are environment variables: LEM_DATABASE_URL (PostgreSQL 15 or newer; "
        "unset starts one in LEM_DATA_DIR), LEM_HOST, LEM_PORT, LEM_LOG_LEVEL and others (see docs/server.md).",
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    serve_parser = subparsers.add_parser("serve", help="serve until SIGINT or SIGTERM")
    serve_parser.add_argument("--host", help="address to listen on (LEM_HOST)")
    serve_parser.add_argument("--port", type=int, help="port to listen on, 0 for a free one (LEM_PORT)")
    serve_parser.add_argument("--data-dir", help="folder of the embedded database and the owner token (LEM_DATA_DIR)")
    migrate_parser = subparsers.add_parser("migrate", help="migrate the database's schema to this version")
    migrate_parser.add_argument("--data-dir", help="folder of the embedded database (LEM_DATA_DIR)")
    token_parser = subparsers.add_parser("token", help="create an access token and print it, once")
    token_parser.add_argument("--kind", choices=("user", "worker", "ci"), required=True, help="decides its scopes")
    token_parser.add_argument("--name", required=True, help="name in lists and in the log of transitions")
    token_parser.add_argument("--data-dir", help="folder of the embedded database (LEM_DATA_DIR)")
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    with TerminationSignals(0 if command == "serve" else None) as signals:
        from lem_server import commands  # noqa: PLC0415 - takes seconds, in which a signal may arrive

        commands.run(command, options, signals)
