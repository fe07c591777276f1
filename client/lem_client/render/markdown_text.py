"""Text of others in Markdown: shown as it is, never a mention, a link, an image or HTML."""

from __future__ import annotations

import re
from typing import Final

from lem_client.render.terminal import clean

_NOTHING: Final = "&#8203;"
"""A space of no width: GitHub and GitLab look for mentions in the rendered text, where an escape no longer counts."""

_ESCAPES: Final = (
    (re.compile(r"([\\`*\[\]|~$])"), r"\\\1"),
    (re.compile(r"&"), "&amp;"),
    (re.compile(r"<"), "&lt;"),
    # Within a word it is text, and names such as batch_size stay legible in the source.
    (re.compile(r"(?<![^\W_])_|_(?![^\W_])"), r"\\_"),
    (re.compile(r"([@#])"), rf"\1{_NOTHING}"),
    # What becomes a link without any brackets.
    (re.compile(r"://"), r":\\//"),
    (re.compile(r"(?i)\bwww\."), lambda found: found[0][:-1] + "\\."),
    # Lists, rules and headings at the begin of a line.
    (re.compile(r"^([-+=>])"), r"\\\1"),
    (re.compile(r"^(\d+)([.)])"), r"\1\\\2"),
)


def as_text(text: str) -> str:
    """Return Markdown that shows the text on one line, in a paragraph, a heading or a cell of a table."""
    escaped = " ".join(clean(text).split())
    for pattern, replacement in _ESCAPES:
        escaped = pattern.sub(replacement, escaped)
    return escaped
