"""The state of one call of `lemctl`: global options, the client, and output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic import BaseModel
from pydantic_core import to_json

from lem_client.client import Client
from lem_client.render.terminal import clean

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPED_WIDTH = 1000
"""Columns of output that is not a terminal: enough that no table breaks a line or shortens an id."""


@dataclass(frozen=True)
class Session:
    """One call of `lemctl`. Results and notes go to standard output, errors to standard error."""

    server: str | None = None
    token_file: Path | None = None
    as_json: bool = False
    quiet: bool = False
    debug: bool = False

    @cached_property
    def client(self) -> Client:
        """The client of the chosen server."""
        return Client(self.server, token_file=self.token_file)

    @cached_property
    def console(self) -> Console:
        """Standard output. Markup is off: `[red]` in a campaign's name is text."""
        from rich.console import Console  # noqa: PLC0415 - not needed for --json

        piped = None if sys.stdout.isatty() else PIPED_WIDTH
        return Console(markup=False, highlight=False, emoji=False, width=piped, soft_wrap=not sys.stdout.isatty())

    @property
    def is_live(self) -> bool:
        """Whether output may move on the screen."""
        return self.console.is_terminal and not self.as_json and not self.quiet

    def silent(self) -> Session:
        """The same session without notes."""
        return replace(self, quiet=True)

    def print(self, *parts: RenderableType) -> None:
        """Print a result."""
        for part in parts:
            self.console.print(part)

    def note(self, text: str) -> None:
        """Print a note; not with `--json` or `--quiet`."""
        if not self.quiet and not self.as_json:
            self.console.print(text)

    def show(self, value: BaseModel, lines: Sequence[str]) -> None:
        """Print a model as JSON, or else the lines."""
        if self.as_json:
            self.print_json(value)
        else:
            self.print(clean("\n".join(lines)))

    def print_json(self, value: object) -> None:
        """Print a model, or maps and lists of models and plain values, as JSON on one line."""
        # Not by the console, which breaks lines.
        sys.stdout.write(to_json(value, by_alias=False).decode() + "\n")
        sys.stdout.flush()


def session_of(context: typer.Context) -> Session:
    """Return the session that `main` made from the global options."""
    session = context.obj
    assert isinstance(session, Session)  # noqa: S101
    return session


def print_error(problem: str) -> None:
    """Print `error: …` on one line of standard error."""
    print_note(f"error: {' '.join(problem.split())}")


def print_note(line: str) -> None:
    """Print a note on standard error, also with `--json` and `--quiet`."""
    print(clean(line), file=sys.stderr, flush=True)  # noqa: T201
