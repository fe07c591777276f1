"""Finds `@pytest.mark.proves("key", ..., on="engine version")` and `@pytest.mark.finds("code", ...)` in the sources of
the tests, without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeGuard

TESTS = Path(__file__).parents[1]


class Proof(NamedTuple):
    """One test that says that it proves one key."""

    key: str
    on: str
    test: str
    """`path/from/the/repository/test_x.py::test_name`; the file alone where the mark stands for all of it."""


class Reach(NamedTuple):
    """One test that says that it reaches one finding."""

    code: str
    test: str
    asserted: bool
    """The code stands in the test itself too, not in its mark alone."""


class UnreadableMark(Exception):
    """A mark that this can't read: keys, codes and `on` must be string literals."""


@cache
def proofs(folder: Path = TESTS) -> tuple[Proof, ...]:
    """Every proof below a folder, in the order of files and lines.

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
    """Every finding that a test below a folder says that it reaches.

    Raises:
        UnreadableMark: a mark stands elsewhere than on a test, or has anything but string literals.
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
        said = {node.value for line in test.body for node in ast.walk(line) if _is_text(node)}
        for mark in [mark for mark in marks if mark in test.decorator_list]:
            marks.remove(mark)
            if not mark.args or mark.keywords or not all(_is_text(code) for code in mark.args):
                raise UnreadableMark(f"{file}::{test.name}: write finds with string literals, such as 'short_window'")
            for code in mark.args:
                yield Reach(code.value, f"{file}::{test.name}", code.value in said)
    if marks:
        raise UnreadableMark(f"{file}: a mark finds in line {marks[0].lineno} stands on no test")


def _proofs_in(tree: ast.Module, file: Path, root: Path) -> Iterator[Proof]:
    place = file.relative_to(root).as_posix()
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
        test = f"{place}::{owners[node]}" if node in owners else place
        keys = [argument.value for argument in node.args if _is_text(argument)]
        on = [keyword.value.value for keyword in node.keywords if keyword.arg == "on" and _is_text(keyword.value)]
        if not keys or len(keys) != len(node.args) or len(on) != 1 or len(node.keywords) != 1:
            raise UnreadableMark(
                f"{test}: write proves with string literals: keys first, then on=, such as on='simulated'"
            )
        for key in keys:
            yield Proof(key, on[0], test)


def _is_mark(function: ast.expr, name: str) -> bool:
    return isinstance(function, ast.Attribute) and ast.unparse(function) == f"pytest.mark.{name}"


def _is_text(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
