"""Turns the errors of one pydantic validation into problems: JSON pointer, what is wrong and the remedy of each."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lem_domain.config.documents import pointer
from lem_domain.config.keys import key_paths, keys_at, unknown_key_message
from lem_domain.config.model_base import BROKEN_RULES
from lem_domain.errors import ConfigurationError, FieldProblem

M = TypeVar("M", bound=BaseModel)

MOST_PROBLEMS: Final = 200
"""Reported at once: a file that is no campaign at all has thousands, each with a search for a similar key."""

BETWEEN_KEYS: Final = frozenset({BROKEN_RULES, "missing", "value_error"})
"""Error types that depend on more than one key."""

_DOTTED: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*")
_UNION_TAG: Final = re.compile(r"(?:literal|tuple|list|union)\[.*|function-.*|str|int|float|bool")


def model_or_problems(model: type[M], value: Mapping[str, Any]) -> M:
    """Validate a value.

    Raises:
        ConfigurationError: with every problem that the validation finds.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise refused(problems_of(model, error)) from None


def refused(problems: Iterable[FieldProblem]) -> ConfigurationError:
    """The error for at least one problem; its text is the first of them with its dotted path."""
    found = bounded(problems)
    first = found[0]
    path = first.pointer.lstrip("/").replace("/", ".")
    shown = f"{path}: {first.message}" if path and not first.message.startswith(path) else first.message
    return ConfigurationError(shown, found)


def bounded(problems: Iterable[FieldProblem]) -> tuple[FieldProblem, ...]:
    """Distinct problems in their order, at most `MOST_PROBLEMS`."""
    found: dict[FieldProblem, None] = {}
    for problem in problems:
        if len(found) == MOST_PROBLEMS:
            return (*found, FieldProblem(pointer="", message="there are more problems; correct these first"))
        found[problem] = None
    return tuple(found)


def problems_of(
    model: type[BaseModel], error: ValidationError, *, without: Collection[str] = ()
) -> Iterator[FieldProblem]:
    """The problems of a failed validation, except those of the error types in `without`."""
    for details in error.errors(include_url=False):
        if details["type"] in without:
            continue
        location = _key_location(model, details["loc"])
        if details["type"] == BROKEN_RULES:
            for message in details["ctx"]["messages"]:
                yield FieldProblem(pointer=pointer(location or _first_key(model, message)), message=message)
        else:
            yield FieldProblem(pointer=pointer(location), message=_message(model, details, location))


def _message(model: type[BaseModel], details: ErrorDetails, location: Sequence[str | int]) -> str:
    match details["type"]:
        case "extra_forbidden":
            return unknown_key_message(str(location[-1]), keys_at(model, location[:-1]))
        case "missing":
            return f"{location[-1]!r} is required; add it"
        case "value_error":
            return details["msg"].removeprefix("Value error, ")
    message, given = details["msg"], details.get("input")
    message = f"{message[:1].lower()}{message[1:]}"
    shown = repr(given)
    plain = isinstance(given, str | int | float | bool | type(None)) and len(shown) <= 80
    return f"{message}, not {shown}" if plain else message


def _first_key(model: type[BaseModel], message: str) -> tuple[str, ...]:
    """The first key that the message of a top-level rule names, which is the one to look at."""
    words = (tuple(word.split(".")) for word in _DOTTED.findall(message))
    return next((word for word in words if word[0] in model.model_fields), ())


def _key_location(model: type[BaseModel], location: Sequence[str | int]) -> tuple[str | int, ...]:
    """The location without the tags that pydantic adds for members of a union; they are no keys of the file."""
    known = key_paths(model)
    kept: list[str | int] = []
    section = ""
    for index, part in enumerate(location):
        path = f"{section}.{part}" if section else str(part)
        inside_section = not section or bool(keys_at(model, section.split(".")))
        if isinstance(part, int):
            kept.append(part)
        elif path in known:
            kept.append(part)
            section = path
        elif index == len(location) - 1 if inside_section else not _UNION_TAG.fullmatch(part):
            kept.append(part)
    return tuple(kept)
