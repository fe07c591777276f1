"""Guards text in CSV files: a spreadsheet must show a name such as `=1+1`, not run it."""

from __future__ import annotations

import unicodedata
from typing import Final

_STARTS: Final = frozenset("=+-@")
_MARK: Final = "'"


def guarded(text: str) -> str:
    """Return the text with an apostrophe before it if a spreadsheet could run it as a formula.

    That is a text whose first character, after white space and characters that are not shown, is `=`, `+`, `-` or `@`,
    in ASCII or any other width, and a text that begins with a tab or the end of a line
    (https://owasp.org/www-community/attacks/CSV_Injection). A text that begins with an apostrophe gets one too, so that
    removing the first apostrophe of a cell always restores the text. Numbers are no texts: they are never guarded.
    """
    return _MARK + text if text[:1] in ("\t", "\r", "\n", _MARK) or _first_shown(text) in _STARTS else text


def _first_shown(text: str) -> str:
    shown = next((one for one in text if one.isprintable() and not one.isspace()), "")
    return unicodedata.normalize("NFKC", shown)[:1]
