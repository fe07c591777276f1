"""The commands of `lemctl`. A module in this folder registers its commands with `@command`; no list names them."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", bound=Callable[..., None])


class Section(IntEnum):
    """Order of the commands in `lemctl --help`."""

    START = 1
    MEASURE = 2
    INSPECT = 3
    CONTROL = 4
    TRANSFER = 5
    CATALOGUE = 6
    CONFIGURE = 7
    DIAGNOSE = 8


class Command(NamedTuple):
    """A registered command."""

    name: str
    """`list`, or `config show` in the group `config`."""
    section: Section
    function: Callable[..., Any]


GROUPS = {"config": "Show configurations."}
"""Help of each group of commands."""

_REGISTERED: list[Command] = []


def command(name: str, section: Section) -> Callable[[F], F]:
    """Register the decorated function; typer derives its options, and its docstring is the help.

    The docstring ends with examples, one per line, after a line with a backspace. With `--json` a command prints JSON.
    """

    def register(function: F) -> F:
        _REGISTERED.append(Command(name, section, function))
        return function

    return register


def load_commands() -> tuple[Command, ...]:
    """Import every module of this folder and return its commands in the order of their sections."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return tuple(sorted(_REGISTERED, key=lambda one: one.section))
