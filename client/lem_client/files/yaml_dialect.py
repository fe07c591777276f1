"""The dialect of YAML in which campaign files are read and written."""

from __future__ import annotations

import re
from typing import Final

import yaml
from pydantic.types import JsonValue

PREFIX: Final = "tag:yaml.org,2002:"
"""Prefix of the tags of YAML's types."""


class Loader(yaml.SafeLoader):
    """Reads JSON's types only, with the numbers and booleans of YAML 1.2.

    PyYAML implements YAML 1.1, in which 010 is eight, 1e-3 a text, 1:30 ninety, NO false, and a date no text.
    """


class Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 or 1.2 would read as another type."""


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
    """A value on one line. Invisible characters are escaped, so that a copy from a terminal is identical."""
    text = yaml.dump(
        value,
        Dumper=Dumper,
        default_flow_style=True,
        allow_unicode=str(value).isprintable(),
        width=float("inf"),
        sort_keys=False,
    )
    return str(text).removesuffix("\n").removesuffix("\n...").strip()
