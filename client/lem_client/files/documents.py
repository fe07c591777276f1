"""Reads a YAML or TOML file as plain JSON values, and remembers on which line each of them stands."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from pydantic.types import JsonValue

from lem_client.errors import FileError
from lem_client.files.toml_lines import toml_lines
from lem_client.files.yaml_dialect import PREFIX, Loader
from lem_domain.config.validation import pointer

MAX_FILE_BYTES: Final = 2**20
MAX_VALUES: Final = 100_000
"""Values after every alias is followed: more is a bomb, or a campaign past its own limit."""
MAX_TEXT: Final = 8 * 2**20
MAX_DEPTH: Final = 50
MAX_DIGITS: Final = 400
"""Of a whole number: more than any that a float has, and few enough for Python to make."""

_HALVES: Final = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}(?P<low>\\u[dD][c-fC-F][0-9a-fA-F]{2})|.)")
_ODD: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_TOML_PLACE: Final = re.compile(r"\(at (?:line (?P<line>\d+), column \d+|end of document)\)")
_MANY_DIGITS: Final = re.compile(rf"[0-9_]{{{MAX_DIGITS},}}")
_PLAIN_TAGS: Final = frozenset(
    PREFIX + name for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "value")
)


@dataclass(frozen=True)
class Document:
    """The top level of a file, and where its parts stand."""

    path: Path
    values: dict[str, JsonValue]
    lines: Mapping[str, int] = field(default_factory=dict)
    """JSON pointer to line, from 1."""

    def line_of(self, place: str) -> int | None:
        """The line of a value or of the nearest one that holds it."""
        while place:
            if place in self.lines:
                return self.lines[place]
            place = place.rpartition("/")[0]
        return None


def read_document(path: Path) -> Document:
    """A campaign file.

    Raises:
        FileError: it can't be read or is no map of plain values; says where and why.
    """
    text = read_text(path, MAX_FILE_BYTES, "a campaign file")
    try:
        match path.suffix.lower():
            case ".toml":
                document = _toml(path, text)
            case ".json":
                document = _yaml(path, _json_as_yaml(text))
            case _:
                document = _yaml(path, text)
    except RecursionError:
        raise FileError((f"{path}: values are nested deeper than {MAX_DEPTH} levels; flatten the file",)) from None
    return document


def read_text(path: Path, limit: int, what: str) -> str:
    """The text of a regular file of at most `limit` bytes.

    Raises:
        FileError: it can't be read, is too large, or is no UTF-8 text.
    """
    try:
        if path.exists() and not path.is_file():
            raise FileError((f"{path} is no file; name {what}",))
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
        raise FileError((f"{path}:{line}: this is no UTF-8 text; save the file as UTF-8",)) from None


def parse_value(text: str) -> JsonValue:
    """One value as it is written in YAML, for example `8`, `[1, 2]` or `bfloat16`.

    Raises:
        FileError: it is none.
    """
    name = Path("--set")
    try:
        node = yaml.compose(text, Loader=Loader)
        if node is None:
            return None
        _Walk(name).check(node)
        value: JsonValue = _construct(name, text, node)
        return value
    except (yaml.YAMLError, RecursionError):
        raise FileError((f"{text!r} is no value as YAML writes one; quote it",)) from None


# --- YAML -------------------------------------------------------------------------------------------------------------


def _yaml(path: Path, text: str) -> Document:
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise FileError((f"{place}: this is no YAML: {error.problem or error.context}; correct the line",)) from None
    except yaml.reader.ReaderError as error:
        place = f"{path}:{_line_at(text, error.position)}"
        raise FileError((f"{place}: character U+{error.character:04X} can't stand in YAML; remove it",)) from None
    if node is None:
        raise FileError((f"{path} is empty; write at least `model: …` into it",))
    if not isinstance(node, yaml.MappingNode):
        raise FileError((f"{path}:{node.start_mark.line + 1}: the top level must be keys with values (key: value)",))
    walk = _Walk(path)
    walk.check(node)
    values = _construct(path, text, node)
    assert isinstance(values, dict)  # noqa: S101 - a mapping node
    return Document(path, values, walk.lines)


def _construct(path: Path, text: str, node: yaml.Node) -> Any:
    loader = Loader(text)
    try:
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or node.start_mark
        raise FileError((f"{path}:{mark.line + 1}: {error.problem}; correct the line",)) from None
    except ValueError as error:  # a number that Python can't make
        raise FileError((f"{path}: {_one_line(error)}; correct the value",)) from None
    finally:
        loader.dispose()


class _Visit(NamedTuple):
    node: yaml.Node
    place: tuple[str | int, ...]


class _Walk:
    """Visits every value, aliases followed, before anything is made of them; stops at a bomb."""

    def __init__(self, path: Path) -> None:
        self.lines: dict[str, int] = {}
        self._path = path
        self._values = 0
        self._characters = 0

    def check(self, root: yaml.Node) -> None:
        """Check every value below a node and note its line."""
        pending = [_Visit(root, ())]
        while pending:
            node, place = pending.pop()
            self._count(node, place)
            if isinstance(node, yaml.MappingNode):
                pending.extend(self._members(node, place))
            elif isinstance(node, yaml.SequenceNode):
                for index, inner in enumerate(node.value):
                    self._note((*place, index), inner)
                    pending.append(_Visit(inner, (*place, index)))

    def _members(self, node: yaml.MappingNode, place: tuple[str | int, ...]) -> list[_Visit]:
        seen: dict[str, int] = {}
        found = []
        for key, value in node.value:
            if key.tag == PREFIX + "merge":
                found.append(_Visit(value, place))
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != PREFIX + "str":
                shown = key.value if isinstance(key, yaml.ScalarNode) else "this"
                self._refuse(key, f"{shown!r} is no text, and keys must be; put it in quotes")
            name = str(key.value)
            if name in seen:
                self._refuse(key, f"key {name!r} stands on line {seen[name]} already; keep one of them")
            seen[name] = key.start_mark.line + 1
            self._note((*place, name), key)
            found.append(_Visit(value, (*place, name)))
        return found

    def _count(self, node: yaml.Node, place: tuple[str | int, ...]) -> None:
        self._values += 1
        if isinstance(node, yaml.ScalarNode):
            self._characters += len(node.value)
            self._check_scalar(node)
        elif node.tag not in _PLAIN_TAGS:
            self._refuse_tag(node)
        if self._values > MAX_VALUES or self._characters > MAX_TEXT:
            raise FileError((f"{self._path} holds too many values once its aliases are followed; write fewer",))
        if len(place) > MAX_DEPTH:
            self._refuse(node, f"values are nested deeper than {MAX_DEPTH} levels; flatten them")

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        if node.tag not in _PLAIN_TAGS:
            self._refuse_tag(node)
        if node.tag == PREFIX + "float" and node.value.lower().lstrip("+-") in (".inf", ".nan"):
            self._refuse(node, f"{node.value} is no number that can be configured; write a finite one")
        if node.tag == PREFIX + "int" and len(node.value) > MAX_DIGITS:
            self._refuse(node, f"a number of {len(node.value)} digits is too long; write a shorter one")
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            self._refuse(node, "the text holds half of a character (a surrogate); write the whole one")

    def _refuse_tag(self, node: yaml.Node) -> None:
        shown = str(node.tag).replace(PREFIX, "!!")
        self._refuse(node, f"tag {shown} is not supported; write a plain value")

    def _refuse(self, node: yaml.Node, message: str) -> None:
        raise FileError((f"{self._path}:{node.start_mark.line + 1}: {message}",))

    def _note(self, place: tuple[str | int, ...], node: yaml.Node) -> None:
        self.lines.setdefault(pointer(place), node.start_mark.line + 1)


def _json_as_yaml(text: str) -> str:
    """What JSON has and YAML doesn't: tabs between values, characters in halves, and some that would end a line or are
    none there. Lines stay where they are."""
    whole = _HALVES.sub(lambda found: json.loads(f'"{found[0]}"') if found["low"] else found[0], text)
    return _ODD.sub(lambda found: f"\\u{ord(found[0]):04x}", whole.replace("\t", " "))


# --- TOML -------------------------------------------------------------------------------------------------------------


def _toml(path: Path, text: str) -> Document:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileError((_no_toml(path, text, _one_line(error)),)) from None
    except ValueError:  # what Python can't make of so many digits
        at = _MANY_DIGITS.search(text)
        place = f"{path}:{_line_at(text, at.start())}" if at else str(path)
        raise FileError((f"{place}: a number has too many digits; write a shorter one",)) from None
    if not values:
        raise FileError((f'{path} is empty; write at least `model = "…"` into it',))
    wrong = next(_not_plain(values, ()), None)
    document = Document(path, values, toml_lines(text))
    if wrong is not None:
        keys, value = wrong
        where = f"{path}:{document.line_of(pointer(keys))}: {'.'.join(map(str, keys))}"
        raise FileError((f"{where}: {value} is no plain value; write a text or a finite number",))
    return document


def _no_toml(path: Path, text: str, told: str) -> str:
    """With the line in front, as everywhere, instead of at the end of what tomllib says."""
    at = _TOML_PLACE.search(told)
    line = at["line"] if at and at["line"] else _line_at(text, len(text.rstrip()))
    return f"{path}:{line}: this is no TOML: {told[: at.start()].rstrip() if at else told}; correct the line"


def _not_plain(value: object, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], object]]:
    if len(place) > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_plain(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _not_plain(inner, (*place, index))
    elif not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        yield place, value


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
