"""`lemctl`: assembles the commands, takes global options anywhere, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from lem_client.cli import bundles, campaigns, catalogue, configuration, control, doctor, results, running, up
from lem_client.cli.exits import Exit, exit_code_of, sentences_of
from lem_client.cli.session import Session
from lem_domain.errors import LemError

_HELP = """Measure what a language model costs in energy and time.

The first steps:

\b
    lemctl up                              start everything on this machine
    lemctl run examples/quickstart.yaml    measure, watch, show the result
    lemctl list                            what was measured so far
    lemctl results ID                      the table again
    lemctl show RUN                        one run, every figure explained

The options below may also stand after the command. Exit codes: 0 done, 1 failed, 2 wrong usage or a wrong file,
130 interrupted."""

app = typer.Typer(
    help=_HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=True
)

GLOBAL_FLAGS = frozenset({"--json", "--quiet", "-q", "--debug"})
GLOBAL_VALUES = frozenset({"--server", "--token-file"})


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lemctl {package_version('llm-energy-measurement')}")
        raise typer.Exit


@app.callback()
def _global_options(
    context: typer.Context,
    *,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="The server [LEM_SERVER, else http://127.0.0.1:8420].")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the token [LEM_TOKEN, LEM_TOKEN_FILE, else the owner's here]."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answers as JSON, one document or JSON lines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what was asked for.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.obj = Session(server=server, token_file=token_file, as_json=as_json, quiet=quiet, debug=debug)


for _group in (up, running, campaigns, control, results, bundles, catalogue, configuration, doctor):
    _group.add_to(app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code."""
    given = hoisted(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(given, debug="--debug" in given))


def _run(arguments: list[str], *, debug: bool) -> int:
    # The base of every complaint about usage; typer has a click of its own from 0.26 on, and the real one before.
    usage_error = typer.BadParameter.__mro__[1]
    try:
        code = app(arguments, prog_name="lemctl", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; what is left to write must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except LemError as error:
        if debug:
            traceback.print_exc()
        _complain(sentences_of(error))
        return exit_code_of(error)
    except Exception as error:
        if isinstance(error, usage_error):
            _complain((" ".join(error.format_message().split()),))  # type: ignore[attr-defined]
            return Exit.USAGE
        if debug:
            traceback.print_exc()
        _complain(
            (f"lemctl itself failed ({type(error).__name__}: {error}); run it again with --debug and report it.",)
        )
        return Exit.FAILED
    return code if isinstance(code, int) else Exit.DONE


def hoisted(arguments: Sequence[str]) -> list[str]:
    """The arguments with the global options before the command, wherever they stood."""
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


def _complain(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        line = " ".join(sentence.split())
        print(f"error: {line}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
