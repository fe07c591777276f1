"""The text on which perplexity is measured.

It was written for this project, so no model was trained on it before it was published here. The content of a name never
changes: results refer to it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

PERPLEXITY_TEXT = "harbour-v1"


@cache
def perplexity_text() -> str:
    """The text."""
    return files("lem_domain.data.perplexity").joinpath(f"{PERPLEXITY_TEXT}.txt").read_text(encoding="utf-8")
