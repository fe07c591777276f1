"""Entry point of `lemctl`: assembles the commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from lem_client.cli.commands import GROUPS, load_commands
from lem_client.cli.exits import ExitCode, exit_code_of, sentences_of
from lem_client.cli.session import Session, print_error
from lem_domain.errors import LemError

_HELP = """Measure what a language model costs in energy and time.

The first steps:

\b
    lemctl up                              start everything on this machine
    lemctl run examples/quickstart.yaml    measure, watch, show the result
    lemctl list                            campaigns so far
    lemctl results ID                      the table again
    lemctl show RUN                        one run, every figure explained

The options below may also follow the command. Exit codes: 0 done, 1 failed, 2 wrong usage or a wrong file,
130 interrupted."""

GLOBAL_FLAGS = frozenset({"--json", "--quiet", "-q", "--debug"})
GLOBAL_VALUES = frozenset({"--server", "--token-file"})


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lemctl {package_version('llm-energy-measurement')}")
        raise typer.Exit


def _global_options(
    context: typer.Context,
    *,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="The server [LEM_SERVER, else http://127.0.0.1:8420].")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File with the token [LEM_TOKEN, LEM_TOKEN_FILE, else owner.token in the data folder]."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one document, or JSON lines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.obj = Session(server=server, token_file=token_file, as_json=as_json, quiet=quiet, debug=debug)


def build_app() -> typer.Typer:
    """Assemble the application from the registered commands."""
    app = typer.Typer(
        help=_HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=True
    )
    app.callback()(_global_options)
    groups = {
        name: typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None) for name, text in GROUPS.items()
    }
    for command in load_commands():
        group, _, name = command.name.rpartition(" ")
        groups.get(group, app).command(name)(command.function)
    for name, group_app in groups.items():
        app.add_typer(group_app, name=name)
    return app


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    given = hoisted(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(given, debug="--debug" in given))


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        code = build_app()(arguments, prog_name="lemctl", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # `lemctl … | head` closed the pipe; the interpreter flushes standard output at exit and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except LemError as error:
        if debug:
            traceback.print_exc()
        for sentence in sentences_of(error):
            print_error(sentence)
        return exit_code_of(error)
    except Exception as error:
        # The base of click's usage errors. typer bundles its own click from 0.26 on, so it can't be imported by name.
        if isinstance(error, typer.BadParameter.__mro__[1]):
            print_error(error.format_message())  # type: ignore[attr-defined]
            return ExitCode.USAGE
        if debug:
            traceback.print_exc()
        print_error(f"lemctl failed ({type(error).__name__}: {error}); run it again with --debug and report it.")
        return ExitCode.FAILED
    return code if isinstance(code, int) else ExitCode.DONE


def hoisted(arguments: Sequence[str]) -> list[str]:
    """Move the global options to the front: click accepts them only before the command."""
    front: list[str] = []
    rest: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        name = argument.partition("=")[0]
        if argument == "--":
            rest.extend((argument, *pending))
        elif argument in GLOBAL_FLAGS or (name in GLOBAL_VALUES and name != argument):
            front.append(argument)
        elif argument in GLOBAL_VALUES:
            front.append(argument)
            front.extend(value for value in (next(pending, None),) if value is not None)
        else:
            rest.append(argument)
    return front + rest


if __name__ == "__main__":
    main()
