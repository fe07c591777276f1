"""What every command shares: the options that hold everywhere, the client, and where output goes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from pydantic import BaseModel, TypeAdapter
from pydantic.types import JsonValue

from lem_client.client import Client

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PIPED_WIDTH = 1000
"""Columns where nobody looks through a window: wide enough that no table breaks its lines or shortens an id."""

_ID_WIDTH = 36

_ANYTHING: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)


@dataclass(frozen=True)
class Session:
    """One call of `lemctl`."""

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
        """Standard output. Text from files and servers is never taken for markup."""
        from rich.console import Console  # noqa: PLC0415 - a quarter of the start's time, and --json needs none of it

        piped = None if sys.stdout.isatty() else PIPED_WIDTH
        return Console(markup=False, highlight=False, emoji=False, width=piped, soft_wrap=not sys.stdout.isatty())

    @property
    def live(self) -> bool:
        """Whether something may move on the screen."""
        return self.console.is_terminal and not self.as_json and not self.quiet

    def silent(self) -> Session:
        """The same session, saying nothing beside the output."""
        return replace(self, quiet=True)

    def print(self, *parts: RenderableType) -> None:
        """Something that was asked for."""
        for part in parts:
            self.console.print(part)

    def say(self, text: str) -> None:
        """Something that is good to know; not in the way of `--json` and left out with `--quiet`."""
        if not self.quiet and not self.as_json:
            self.console.print(text)

    def print_json(self, value: BaseModel | JsonValue) -> None:
        """One JSON document on a line of its own."""
        if isinstance(value, BaseModel):
            text = value.model_dump_json()
        else:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        # Past the console: it would break lines.
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def print_json_list(self, values: Iterable[BaseModel]) -> None:
        """A JSON array."""
        self.print_json([_ANYTHING.validate_python(value.model_dump(mode="json")) for value in values])


def session_of(context: typer.Context) -> Session:
    """The session that the options before the command made."""
    session = context.obj
    assert isinstance(session, Session)  # noqa: S101 - main() makes it
    return session


def clean(text: str) -> str:
    """Text from elsewhere without control characters, which could move the cursor or colour the screen."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> RenderableType:
    """A plain table; the columns named in `right` hold numbers."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        made.add_column(
            heading,
            justify="right" if heading in right else "left",
            no_wrap=heading in right,
            overflow="fold",
            min_width=_ID_WIDTH if heading == "id" else None,
        )
    for row in rows:
        made.add_row(*(clean(cell) for cell in row))
    return made
