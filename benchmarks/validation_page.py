"""Adds the report of a GPU to the section for it in docs/validation.md."""

from __future__ import annotations

import re

SECTION = "## On a real GPU"
_NOT_YET = re.compile(r"Not yet: no GPU has been available\.\s*")


def with_report(page: str, title: str, report: str) -> str:
    """Return the page with a report (JSON text) at the end of the section, without the note that there is none yet."""
    entry = f"### {title}\n\n```json\n{report}\n```\n"
    before, found, rest = page.partition(f"{SECTION}\n")
    if not found:
        return f"{page.rstrip()}\n\n{SECTION}\n\n{entry}".lstrip()
    end = re.search(r"^## ", rest, re.MULTILINE)
    section, after = (rest, "") if end is None else (rest[: end.start()], rest[end.start() :])
    section = _NOT_YET.sub("", section, count=1).strip()
    own = f"{section}\n\n{entry}" if section else entry
    return f"{before}{found}\n{own}" + (f"\n{after}" if after else "")
