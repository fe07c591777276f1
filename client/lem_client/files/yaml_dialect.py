"""The YAML that campaign files are written in, and in which they are written out."""

from __future__ import annotations

import re
from typing import Final

import yaml
from pydantic.types import JsonValue

PREFIX: Final = "tag:yaml.org,2002:"
"""Of the tags of YAML's own types."""


class Loader(yaml.SafeLoader):
    """JSON's types only: a date is the text that was written. Numbers and truth are those of YAML 1.2 and JSON, so that
    010 is ten, 1e-3 is a number, 1:30 is no number of seconds, and NO is a country."""


class Dumper(yaml.SafeDumper):
    """Puts in quotes what YAML 1.1 or 1.2 would take for anything but a text."""


_YAML_1_1: Final = frozenset(PREFIX + name for name in ("timestamp", "bool", "int", "float"))
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _YAML_1_1]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# https://yaml.org/spec/1.2.2/#103-core-schema
_YAML_1_2: Final = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)
for _dialect in (Loader, Dumper):
    for _name, _pattern, _first in _YAML_1_2:
        _dialect.add_implicit_resolver(PREFIX + _name, re.compile(rf"^(?:{_pattern})$"), list(_first))


def whole_number(text: str) -> int:
    """An integer of YAML 1.2: decimal, 0o octal or 0x hexadecimal."""
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def as_block(value: JsonValue) -> str:
    """A value over several lines, keys in their order."""
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)).rstrip()


def as_line(value: JsonValue) -> str:
    """A value on one line. What can't be seen is escaped, so that a terminal shows it and a copy of it is the same."""
    text = yaml.dump(
        value,
        Dumper=Dumper,
        default_flow_style=True,
        allow_unicode=str(value).isprintable(),
        width=float("inf"),
        sort_keys=False,
    )
    return str(text).removesuffix("\n").removesuffix("\n...").strip()
