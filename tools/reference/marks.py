"""Reads `@pytest.mark.proves("key", ..., on="engine version")` and `@pytest.mark.finds("code", ...)` from the tests.

The tests are parsed and never imported, so that a mark of a test for an engine that is not installed is read too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[2] / "tests"


class Proof(NamedTuple):
    """A test that is marked as the proof of one configuration key."""

    key: str
    on: str
    test: str
    """`path/from/the/repository/test_x.py::test_name`; the file alone if the mark covers the whole module."""


class Reach(NamedTuple):
    """A test that is marked as reaching one finding."""

    code: str
    test: str
    asserted: bool
    """Whether the body of the test names the code too."""


class UnreadableMark(Exception):
    """A mark has arguments other than string literals, or has none."""


@cache
def proofs(folder: Path = TESTS) -> tuple[Proof, ...]:
    """Return every proof below `folder`, in the order of files and lines.

    Raises:
        UnreadableMark: a mark has no key, no `on`, or anything but string literals.
    """
    return tuple(
        proof
        for file in sorted(folder.rglob("*.py"))
        for proof in _proofs_in(ast.parse(file.read_text(encoding="utf-8")), file, folder.parent)
    )


@cache
def reaches(folder: Path) -> tuple[Reach, ...]:
    """Return every finding that a test below `folder` is marked as reaching.

    Raises:
        UnreadableMark: a mark is not on a test function, or has arguments other than string literals.
    """
    return tuple(
        reach
        for file in sorted(folder.rglob("test_*.py"))
        for reach in _reaches_in(ast.parse(file.read_text(encoding="utf-8")), file.name)
    )


def _reaches_in(tree: ast.Module, file: str) -> Iterator[Reach]:
    marks = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_mark(node.func, "finds")]
    for test in ast.walk(tree):
        if not isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        named = set(_texts(node for line in test.body for node in ast.walk(line)))
        for mark in [mark for mark in marks if mark in test.decorator_list]:
            marks.remove(mark)
            codes = _texts(mark.args)
            if not codes or mark.keywords or len(codes) != len(mark.args):
                raise UnreadableMark(f"{file}::{test.name}: write finds with string literals, such as 'short_window'")
            for code in codes:
                yield Reach(code, f"{file}::{test.name}", code in named)
    if marks:
        raise UnreadableMark(f"{file}: the mark `finds` in line {marks[0].lineno} is not on a test function")


def _proofs_in(tree: ast.Module, file: Path, root: Path) -> Iterator[Proof]:
    path = file.relative_to(root).as_posix()
    owners = {
        inner: owner.name
        for owner in ast.walk(tree)
        if isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for decorator in owner.decorator_list
        for inner in ast.walk(decorator)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and _is_mark(node.func, "proves")):
            continue
        test = f"{path}::{owners[node]}" if node in owners else path
        keys = _texts(node.args)
        on = _texts(keyword.value for keyword in node.keywords if keyword.arg == "on")
        if not keys or len(keys) != len(node.args) or len(on) != 1 or len(node.keywords) != 1:
            raise UnreadableMark(
                f"{test}: write proves with string literals: keys first, then on=, such as on='simulated'"
            )
        for key in keys:
            yield Proof(key, on[0], test)


def _is_mark(function: ast.expr, name: str) -> bool:
    return isinstance(function, ast.Attribute) and ast.unparse(function) == f"pytest.mark.{name}"


def _texts(nodes: Iterable[ast.AST]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
