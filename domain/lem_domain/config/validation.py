"""Turns pydantic's errors into sentences: every problem at once, each with its place and what to change."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lem_domain.errors import ConfigurationError, FieldProblem

M = TypeVar("M", bound=BaseModel)


def unknown_key_message(key: str, known: Collection[str]) -> str:
    """`unknown key 'bacth_size'; did you mean 'batch_size'?`, or the list of what there is."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"unknown key {key!r}; did you mean {near[0]!r}?"
    return f"unknown key {key!r}; the keys here are {', '.join(sorted(known))}"


def pointer(location: Sequence[str | int]) -> str:
    """The RFC 6901 JSON pointer of a pydantic error location."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def field_problems(model: type[BaseModel], error: ValidationError) -> tuple[FieldProblem, ...]:
    """Every problem that pydantic found, in the order of the model's fields."""
    return tuple(_problem(model, details) for details in error.errors(include_url=False, include_context=False))


def model_or_problems(model: type[M], value: Mapping[str, Any]) -> M:
    """Validate, or raise every problem at once.

    Raises:
        ConfigurationError: with one finding per problem; its text is the first of them with its place.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = field_problems(model, error)
        first = problems[0]
        place = first.pointer.lstrip("/").replace("/", ".")
        raise ConfigurationError(f"{place}: {first.message}" if place else first.message, problems) from None


def _problem(model: type[BaseModel], details: ErrorDetails) -> FieldProblem:
    location = _without_union_tags(model, details["loc"])
    kind, message = details["type"], details["msg"]
    if kind == "extra_forbidden":
        owner = _model_at(model, location[:-1])
        known = tuple(owner.model_fields) if owner else ()
        message = unknown_key_message(str(location[-1]), known)
    elif kind == "missing":
        message = f"{location[-1]!r} is required; add it"
    elif kind == "value_error":
        message = message.removeprefix("Value error, ")
    else:
        given = details.get("input")
        shown = repr(given)
        message = f"{message[:1].lower()}{message[1:]}"
        if isinstance(given, str | int | float | bool | type(None)) and len(shown) <= 80:
            message += f", not {shown}"
    return FieldProblem(pointer=pointer(location), message=message)


def _without_union_tags(model: type[BaseModel], location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Drop the parts that pydantic adds for the members of a union; they are no keys of the user's file."""
    kept: list[str | int] = []
    owner: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            kept.append(part)
            continue
        if owner is not None and part in owner.model_fields:
            owner = _submodel(owner.model_fields[part].annotation)
            kept.append(part)
        elif (part is location[-1] and owner is not None) or (owner is None and not _looks_like_tag(part)):
            kept.append(part)
    return tuple(kept)


def _looks_like_tag(part: str) -> bool:
    return part.startswith(("literal[", "tuple[", "list[", "function-", "union[")) or part in {
        "str",
        "int",
        "float",
        "bool",
    }


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel] | None:
    owner: type[BaseModel] | None = model
    for part in location:
        if owner is None or part not in owner.model_fields:
            return None
        owner = _submodel(owner.model_fields[str(part)].annotation)
    return owner


def _submodel(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            found = _submodel(member)
            if found is not None:
                return found
    return None
