"""Prompt sets: built-in ones, parsers of prompt files, the digest of a set; and the text of perplexity."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

DEFAULT_PROMPT_SET = "general-v1"
DEFAULT_COLUMN = "text"


class Prompt(NamedTuple):
    """One prompt of a built-in set."""

    id: str
    kind: str
    text: str


class PromptFileError(ValueError):
    """A file of prompts is invalid; the message has the line and the remedy."""


def builtin_prompt_sets() -> tuple[str, ...]:
    """Names of the built-in sets. The content of a name never changes: results refer to it."""
    folder = files("lem_domain.data.prompts")
    return tuple(
        sorted(entry.name.removesuffix(".jsonl") for entry in folder.iterdir() if entry.name.endswith(".jsonl"))
    )


@cache
def load_builtin_prompts(name: str) -> tuple[Prompt, ...]:
    """The prompts of a built-in set, in order.

    Raises:
        PromptFileError: there is no such set.
    """
    known = builtin_prompt_sets()
    if name not in known:
        raise PromptFileError(f"there is no built-in prompt set {name!r}; choose one of {', '.join(known)}.")
    lines = files("lem_domain.data.prompts").joinpath(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(Prompt(**json.loads(line)) for line in lines)


def parse_text_prompts(text: str) -> tuple[str, ...]:
    """One prompt per non-empty line.

    Raises:
        PromptFileError: there are no prompts.
    """
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise PromptFileError("the file has no prompts; write one per line.")
    return prompts


def parse_jsonl_prompts(text: str, column: str = DEFAULT_COLUMN) -> tuple[str, ...]:
    """One JSON object per line, the prompt in the named column.

    Raises:
        PromptFileError: a line is not a JSON object, lacks the column, or has no text in it.
    """
    prompts = []
    # Not splitlines: it also splits at U+2028 and similar characters, which JSON strings may contain unescaped.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PromptFileError(f"line {number} is not JSON ({error}); write one JSON object per line.") from None
        if not isinstance(row, dict):
            raise PromptFileError(f'line {number} is not a JSON object; write for example {{"{column}": "…"}}.')
        if column not in row:
            there = ", ".join(map(str, row)) or "none"
            raise PromptFileError(f"line {number} has no column {column!r} (it has {there}); set prompts.column.")
        prompt = row[column]
        if not isinstance(prompt, str) or not prompt.strip():
            raise PromptFileError(f"line {number} has no text in column {column!r}; every prompt needs some.")
        prompts.append(prompt)
    if not prompts:
        raise PromptFileError("the file has no prompts; write one JSON object per line.")
    return tuple(prompts)


def prompts_digest(prompts: Sequence[str]) -> str:
    """SHA-256 (64 hex digits) over each prompt's length in bytes (8 bytes, big-endian) and its UTF-8 bytes."""
    whole = hashlib.sha256()
    for prompt in prompts:
        encoded = prompt.encode("utf-8", errors="surrogatepass")
        whole.update(len(encoded).to_bytes(8, "big"))
        whole.update(encoded)
    return whole.hexdigest()


PERPLEXITY_TEXT = "harbour-v1"
"""The text on which perplexity is measured. It was written for this project, so no model was trained on it before.
The content of a name never changes: results refer to it."""


@cache
def perplexity_text() -> str:
    """The text."""
    return files("lem_domain.data.perplexity").joinpath(f"{PERPLEXITY_TEXT}.txt").read_text(encoding="utf-8")
