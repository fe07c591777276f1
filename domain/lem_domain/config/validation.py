"""Turns pydantic's errors into sentences: every problem at once, each with its place and what to change."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lem_domain.config.rules import BROKEN
from lem_domain.errors import ConfigurationError, FieldProblem

M = TypeVar("M", bound=BaseModel)
Place = tuple[str | int, ...]

MOST_PROBLEMS: Final = 200
"""That are told at once."""

_STAND_IN = ("model",)
"""The one key that an experiment must have; some other value stands in for one that is missing or wrong."""

_DOTTED = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*")

_MOST_ROUNDS = 10
"""Each puts something aside; models are not nested deeper."""


def nearest(key: str, known: Collection[str]) -> str | None:
    """The known key that was most likely meant; None where none is near."""
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.6)), None)


def unknown_key_message(key: str, known: Collection[str]) -> str:
    """`unknown key 'bacth_size'; did you mean 'batch_size'?`, or the list of what there is."""
    near = nearest(key, known)
    if near is not None:
        return f"unknown key {key!r}; did you mean {near!r}?"
    return f"unknown key {key!r}; the keys here are {', '.join(sorted(known))}"


def pointer(location: Sequence[str | int]) -> str:
    """The RFC 6901 JSON pointer of a pydantic error location."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def sentence(problem: FieldProblem) -> str:
    """A problem with its place, unless it begins with that."""
    place = problem.pointer.lstrip("/").replace("/", ".")
    return f"{place}: {problem.message}" if place and not problem.message.startswith(place) else problem.message


def model_or_problems(model: type[M], value: Mapping[str, Any]) -> M:
    """Validate, or raise every problem at once.

    Raises:
        ConfigurationError: with one finding per problem; its text is the first of them with its place.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = all_problems(model, value, error)
        raise ConfigurationError(sentence(problems[0]), problems) from None


def key_problems(model: type[BaseModel], value: Mapping[str, Any]) -> Iterator[FieldProblem]:
    """Problems of keys by themselves: not what is missing, and not what keys mean beside each other."""
    try:
        model.model_validate(value)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if details["type"] not in (BROKEN, "missing", "value_error"):
                yield from _problems(model, details)


def all_problems(model: type[BaseModel], value: Mapping[str, Any], error: ValidationError) -> tuple[FieldProblem, ...]:
    """Every problem of the value: pydantic asks a model's rules only where its keys are fine, so what is wrong is put
    aside and the rest asked again, until nothing new comes."""
    found = _Found()
    found.add(problem for details in error.errors(include_url=False) for problem in _problems(model, details))
    rest: Any = copy.deepcopy(dict(value))
    aside: set[Place] = set()
    for _ in range(_MOST_ROUNDS):
        wrong = _places(model, error)
        if wrong <= aside or found.full:
            break
        rest = _without(rest, wrong)
        aside |= wrong
        try:
            model.model_validate(rest)
            break
        except ValidationError as again:
            error = again
            found.add(
                problem
                for details in error.errors(include_url=False)
                if details["type"] != "missing"
                for problem in _problems(model, details, aside)
            )
    return found.told()


def bounded(problems: Iterator[FieldProblem]) -> tuple[FieldProblem, ...]:
    """Each once, as many as anybody reads."""
    found = _Found()
    found.add(problems)
    return found.told()


class _Found:
    """Problems, each once, up to a number: a file that is another kind of file has thousands."""

    def __init__(self) -> None:
        self._problems: dict[FieldProblem, None] = {}
        self.full = False

    def add(self, problems: Iterator[FieldProblem]) -> None:
        for problem in problems:
            if len(self._problems) == MOST_PROBLEMS:
                self.full = True
                return
            self._problems[problem] = None

    def told(self) -> tuple[FieldProblem, ...]:
        more = (FieldProblem(pointer="", message="there are more problems; correct these first"),) if self.full else ()
        return (*self._problems, *more)


def _places(model: type[BaseModel], error: ValidationError) -> set[Place]:
    """Where the problems are; a key that is missing counts as its owner, whose rules can't be asked, but for the model,
    which any other can stand in for."""
    locations = ((details, _without_union_tags(model, details["loc"])) for details in error.errors(include_url=False))
    return {
        place[:-1] if details["type"] == "missing" and place != _STAND_IN else place for details, place in locations
    }


def _without(value: Any, places: Collection[Place]) -> Any:
    """The value without what stands at places; at the top, and in lists, nothing is taken away."""
    if not isinstance(value, dict):
        return value
    below: dict[str | int, list[Place]] = {}
    for place in places:
        if place:
            below.setdefault(place[0], []).append(place[1:])
    kept = {
        key: _without(inner, below[key]) if key in below else inner
        for key, inner in value.items()
        if () not in below.get(key, ())
    }
    return {**kept, _STAND_IN[0]: "x"} if _STAND_IN in places else kept


def _problems(model: type[BaseModel], details: ErrorDetails, aside: Collection[Place] = ()) -> Iterator[FieldProblem]:
    if details["type"] != BROKEN:
        yield _problem(model, details)
        return
    location = _without_union_tags(model, details["loc"])
    for reads, message in details.get("ctx", {}).get("rules", ()):
        keys = [(*location, key) for key in reads]
        if not any(_overlap(key, place) for key in keys for place in aside):
            yield FieldProblem(pointer=pointer(location or _named_first(reads, message)), message=message)


def _named_first(reads: Collection[str], message: str) -> Place:
    """Of the keys that a rule reads, the one that it speaks of first: where the user looks for it."""
    words = (tuple(word.split(".")) for word in _DOTTED.findall(message))
    return next((word for word in words if word[0] in reads), ())


def _overlap(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _problem(model: type[BaseModel], details: ErrorDetails) -> FieldProblem:
    location = _without_union_tags(model, details["loc"])
    kind, message = details["type"], details["msg"]
    if kind == "extra_forbidden":
        message = unknown_key_message(str(location[-1]), keys_at(model, location[:-1]))
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


def keys_at(model: type[BaseModel], location: Sequence[str | int]) -> tuple[str, ...]:
    """The keys of the model that stands at a place in another one; none where there is none."""
    owner = _model_at(model, location)
    return tuple(owner.model_fields) if owner is not None else ()


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
