"""The tree of errors in the docstring of lem_domain.errors names classes that exist."""

from __future__ import annotations

import re
from pathlib import Path

from lem_domain import errors

ROOT = Path(__file__).parents[3]


def test_every_error_of_the_tree_is_a_class_of_the_product() -> None:
    sources = "".join(
        path.read_text() for part in ("domain", "server", "worker", "client") for path in (ROOT / part).rglob("*.py")
    )
    tree = (errors.__doc__ or "").partition("LemError\n")[2]
    named = re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", tree)
    assert named
    assert [name for name in named if f"class {name}(" not in sources] == []
