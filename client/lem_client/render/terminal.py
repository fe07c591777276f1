"""Text for a terminal: foreign text made harmless, and plain tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_ID_WIDTH = 36
"""An id must never be shortened or broken: it is copied into the next command."""


def clean(text: str) -> str:
    """Replace control characters, which could move the cursor or colour the screen, in text from files and servers."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> Table:
    """Build a plain table; the columns named in `right` hold numbers."""
    # Importing rich takes a quarter of the start, and --json needs none of it.
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
