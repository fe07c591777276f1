"""Reads a YAML or JSON file as plain JSON values and records the line of each value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml
from pydantic.types import JsonValue

from lem_client.errors import FileError
from lem_client.files.yaml_dialect import PREFIX, Loader, whole_number
from lem_domain.config.documents import pointer

MAX_FILE_BYTES: Final = 2**20
MAX_VALUES: Final = 100_000
"""With every alias expanded; a few nested aliases can expand to billions of values."""
MAX_TEXT: Final = 8 * 2**20
MAX_DEPTH: Final = 50
MAX_DIGITS: Final = 400
"""Of an integer: no float has more than 309 before its point, and Python refuses to convert more than 4300."""

_SURROGATES: Final = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}(?P<low>\\u[dD][c-fC-F][0-9a-fA-F]{2})|.)")
_NOT_IN_YAML: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_SCALARS: Final[Mapping[str, Callable[[str], JsonValue]]] = {
    PREFIX + "null": lambda _: None,
    PREFIX + "bool": lambda text: {"true": True, "false": False}[text.lower()],
    PREFIX + "int": whole_number,
    PREFIX + "float": float,
    PREFIX + "str": str,
    PREFIX + "value": str,
}


@dataclass(frozen=True)
class Document:
    """The values of a file and their lines."""

    values: dict[str, JsonValue]
    lines: Mapping[str, int]
    """JSON pointer of every value to its line, from 1."""


def read_document(path: Path) -> Document:
    """Read a campaign file or a preset.

    Raises:
        FileError: it can't be read or does not hold a map of plain values; with the line.
    """
    suffix = path.suffix.lower()
    if suffix == ".toml":
        raise FileError((f"{path}: campaign files in TOML are not supported; write YAML or JSON",))
    text = read_text(path, MAX_FILE_BYTES, "a campaign file")
    reader = _Reader(path)
    try:
        node = yaml.compose(_json_as_yaml(text) if suffix == ".json" else text, Loader=Loader)
        if node is None:
            raise FileError((f"{path} is empty; write at least `model: …` into it",))
        values = reader.value(node, ())
        if not isinstance(values, dict):
            reader.refuse(node, "the top level must be keys with values (key: value)")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise FileError((f"{where}: invalid YAML: {error.problem or error.context}; correct the line",)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise FileError(
            (f"{path}:{line}: character U+{error.character:04X} is not allowed in YAML; remove it",)
        ) from None
    except RecursionError:
        raise FileError((f"{path}: values are nested deeper than {MAX_DEPTH} levels; flatten the file",)) from None
    return Document(values, reader.lines)


def read_text(path: Path, limit: int, what: str) -> str:
    """The text of a regular file of at most `limit` bytes.

    Raises:
        FileError: it can't be read, is too large, or is not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise FileError((f"{path} is not a file; give the path of {what}",))
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise FileError((f"there is no file {path}; check the path",)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FileError((f"{path} can't be read ({reason}); check the path and its permissions",)) from error
    if len(content) > limit:
        raise FileError((f"{path} is larger than {limit // 1024} KiB, the limit for {what}; make it smaller",))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FileError((f"{path}:{line}: the text is not UTF-8; save the file as UTF-8",)) from None


def parse_value(text: str) -> JsonValue:
    """Parse one YAML value, for example `8`, `[1, 2]` or `bfloat16`; an empty text is null.

    Raises:
        FileError: it is invalid.
    """
    try:
        node = yaml.compose(text, Loader=Loader)
        return None if node is None else _Reader(Path("value")).value(node, ())
    except (yaml.YAMLError, RecursionError):
        raise FileError((f"{text!r} is not a YAML value; quote it",)) from None


class _Reader:
    """Builds values from YAML nodes, with limits that hold before aliases are expanded."""

    def __init__(self, path: Path) -> None:
        self.lines: dict[str, int] = {}
        self._path = path
        self._values = 0
        self._characters = 0

    def value(self, node: yaml.Node, location: tuple[str | int, ...]) -> Any:
        """The value of a node. `lines` gets the line of every value inside it."""
        self._values += 1
        if self._values > MAX_VALUES or self._characters > MAX_TEXT:
            raise FileError((f"{self._path} holds too many values once its aliases are expanded; write fewer",))
        if len(location) > MAX_DEPTH:
            self.refuse(node, f"values are nested deeper than {MAX_DEPTH} levels; flatten them")
        if isinstance(node, yaml.MappingNode) and node.tag == PREFIX + "map":
            return self._map(node, location)
        if isinstance(node, yaml.SequenceNode) and node.tag == PREFIX + "seq":
            values = []
            for index, inner in enumerate(node.value):
                self.lines[pointer((*location, index))] = inner.start_mark.line + 1
                values.append(self.value(inner, (*location, index)))
            return values
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node)
        tag = str(node.tag).replace(PREFIX, "!!")
        return self.refuse(node, f"tag {tag} is not supported; write a plain value")

    def refuse(self, node: yaml.Node, message: str) -> NoReturn:
        """Raise a FileError at the node's line."""
        raise FileError((f"{self._path}:{node.start_mark.line + 1}: {message}",))

    def _map(self, node: yaml.MappingNode, location: tuple[str | int, ...]) -> dict[str, JsonValue]:
        # https://yaml.org/type/merge.html: a map's own keys override merged ones, an earlier merged map a later one.
        values: dict[str, JsonValue] = {}
        for key, value in node.value:
            if key.tag == PREFIX + "merge":
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for source in reversed(sources):
                    if not isinstance(source, yaml.MappingNode):
                        self.refuse(source, "`<<` merges maps only; name a map")
                    values |= self.value(source, location)
        own: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == PREFIX + "merge":
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != PREFIX + "str":
                shown = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or map"
                self.refuse(key, f"key {shown} is not a text; put it in quotes")
            name = str(key.value)
            if name in own:
                self.refuse(key, f"key {name!r} is already on line {own[name]}; keep one of them")
            own[name] = self.lines[pointer((*location, name))] = key.start_mark.line + 1
            values[name] = self.value(value, (*location, name))
        return values

    def _scalar(self, node: yaml.ScalarNode) -> JsonValue:
        text = str(node.value)
        self._characters += len(text)
        if node.tag == PREFIX + "float" and text.lower().lstrip("+-") in (".inf", ".nan"):
            self.refuse(node, f"{text} is not a finite number; write a finite one")
        if node.tag == PREFIX + "int" and len(text) > MAX_DIGITS:
            self.refuse(node, f"a number of {len(text)} digits is too long; write a shorter one")
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.refuse(node, "the text holds half of a surrogate pair; write the whole character")
        try:
            return _SCALARS[node.tag](text)
        except (ValueError, KeyError):  # only behind an explicit tag such as !!int
            return self.refuse(node, f"{text!r} is not of type {node.tag.replace(PREFIX, '!!')}; correct the value")


def _json_as_yaml(text: str) -> str:
    """JSON as YAML 1.2 accepts it, line by line the same.

    YAML refuses what JSON allows: tabs between values, surrogate pairs, and some characters (as line ends or at all).
    """
    whole = _SURROGATES.sub(lambda found: json.loads(f'"{found[0]}"') if found["low"] else found[0], text)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", whole.replace("\t", " "))
