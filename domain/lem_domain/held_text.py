"""The text that perplexity is measured on; written for this, so that no model was trained on it before it was published
here. A name never changes its content."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

HELD_TEXT = "harbour-v1"


@cache
def held_text() -> str:
    """The text."""
    return files("lem_domain.data.held").joinpath(f"{HELD_TEXT}.txt").read_text(encoding="utf-8")
