"""Rules between keys: what has no effect or can't be together is refused, all of it at once, each with its remedy.

A model lists its own in `rules`. Each names the keys that it reads, so that one that reads a key with a problem of its
own is not asked: what it would say is not what the user has to mend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic_core import PydanticCustomError

BROKEN = "rules_broken"
"""The type of the pydantic error; its context's `rules` are (keys read, message) pairs."""


class Rule(NamedTuple):
    """`check` gets a valid model and answers with what is wrong and how to mend it, or None."""

    reads: tuple[str, ...]
    check: Callable[[Any], str | None]


def broken_rules(rules: tuple[Rule, ...], model: object) -> PydanticCustomError | None:
    """One error for all rules that the model breaks."""
    found = [(rule.reads, message) for rule in rules if (message := rule.check(model)) is not None]
    if not found:
        return None
    text = "; ".join(message for _, message in found)
    return PydanticCustomError(BROKEN, "{text}", {"text": text, "rules": tuple(found)})
