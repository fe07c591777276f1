"""On which line each value of a TOML text stands, which tomllib does not tell.

The text must be valid: it is walked along its punctuation alone, and every value is left to tomllib.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from typing import Final

from lem_domain.config.validation import pointer

Place = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY: Final = re.compile(r"""[ \t]*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
_TEXT: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?!")' r"|'''.*?'''(?!')" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"[^,\]}#\r\n]+")


def toml_lines(text: str) -> dict[str, int]:
    """JSON pointer to line, from 1, of every table and value of a valid TOML text."""
    return _Walk(text).lines()


class _Walk:
    """Goes through the text once, from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted = (0, 1)
        self._lines: dict[str, int] = {}
        self._entries: Counter[Place] = Counter()

    def lines(self) -> dict[str, int]:
        """All of them."""
        table: Place = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            line = self._line()
            if self._text.startswith("[", self._at):
                listed = self._text.startswith("[[", self._at)
                table = self._entry(self._header(2)) if listed else self._inside(self._header(1))
                self._note(table, line)
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self._lines

    def _header(self, brackets: int) -> tuple[str, ...]:
        self._at += brackets
        keys = self._keys()
        self._at += brackets
        return keys

    def _entry(self, keys: tuple[str, ...]) -> Place:
        """`[[a]]` begins the next entry of a list."""
        listed = (*self._inside(keys[:-1]), keys[-1])
        self._entries[listed] += 1
        return (*listed, self._entries[listed] - 1)

    def _inside(self, keys: tuple[str, ...]) -> Place:
        """Where a table is; below a list of tables in its newest one."""
        place: Place = ()
        for key in keys:
            place = (*place, key)
            if place in self._entries:
                place = (*place, self._entries[place] - 1)
        return place

    def _pair(self, owner: Place) -> None:
        line = self._line()
        place = (*owner, *self._keys())
        self._at += 1  # the equals sign
        self._note(place, line)
        self._value(place)

    def _keys(self) -> tuple[str, ...]:
        found = []
        while True:
            match = _KEY.match(self._text, self._at)
            assert match is not None  # noqa: S101 - the text is valid
            found.append(match[1] if match[1][0] not in "\"'" else next(iter(tomllib.loads(f"{match[1]} = 0"))))
            self._at = match.end()
            if not self._text.startswith(".", self._at):
                return tuple(found)
            self._at += 1

    def _value(self, place: Place) -> None:
        self._skip(_BLANK)
        match self._text[self._at]:
            case "[":
                self._members(place, "]")
            case "{":
                self._members(place, "}")
            case '"' | "'":
                self._skip(_TEXT)
            case _:
                self._skip(_PLAIN)

    def _members(self, place: Place, end: str) -> None:
        self._at += 1
        number = 0
        self._skip(_BLANK)
        while self._text[self._at] != end:
            if end == "}":
                self._pair(place)
            else:
                self._note((*place, number), self._line())
                self._value((*place, number))
                number += 1
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
                self._skip(_BLANK)
        self._at += 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        assert match is not None  # noqa: S101 - the text is valid
        self._at = match.end()

    def _line(self) -> int:
        """Of the present place; counted from the last one that was asked for."""
        before, line = self._counted
        line += self._text.count("\n", before, self._at)
        self._counted = (self._at, line)
        return line

    def _note(self, place: Place, line: int) -> None:
        """A table that is named after what is in it keeps the first line; so do those that a dotted key makes."""
        for length in range(1, len(place) + 1):
            self._lines.setdefault(pointer(place[:length]), line)
