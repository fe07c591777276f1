"""Small changes to a module's source, made by cosmic-ray's operators and two of ours."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import parso
from cosmic_ray.ast import ast_nodes, get_ast, is_number
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).parents[2]
SMALL = 10
"""An integer below it is changed by one; a larger or broken number is doubled, because ±1 would hardly change it."""
OPERATORS = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Mod_Mul", "Pow_Mul", "BitAnd_BitOr", "BitOr_BitAnd")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_GtE", "LtE_Gt", "Gt_LtE", "GtE_Lt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceUnaryOperator_{pair}" for pair in ("Delete_Not", "USub_UAdd", "Invert_UAdd")),
    "AddNot",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "NumberReplacer",
    "ExceptionReplacer",
    "ZeroIterationForLoop",
    "RemoveDecorator",
)
"""One change of each kind. cosmic-ray's other operators repeat them (all ten replacements of a `+`) or mostly make
programs that don't start (names replaced by other names)."""


EXPRESSIONS = ("arith_expr", "term", "power", "expr", "and_expr", "xor_expr", "shift_expr")
"""Where parso puts the operator between two values."""


class NumberDoubler(Operator):
    """Doubles numbers for which ±1 would be no small change but none at all."""

    def mutation_positions(self, node):
        """Find the numbers."""
        if is_number(node) and not _is_small(node.value):
            yield (node.start_pos, node.end_pos)

    def mutate(self, node, index):
        """Double the number."""
        return parso.python.tree.Number(f" {ast.literal_eval(node.value) * 2 or 1.0!r}", node.start_pos)

    @classmethod
    def examples(cls):
        """Give cosmic-ray's own kind of example."""
        return (Example("x = 1e6", "x = 2000000.0"),)


SQL_CHANGES = (
    (re.compile(r"\bAND [\w.]+ = :\w+"), ""),
    (re.compile(r"\bAND [\w.]+ IS NULL"), ""),
    (re.compile(r"\bFOR (NO KEY UPDATE|KEY SHARE|UPDATE|SHARE)( OF [\w, ]+?)?(?= SKIP LOCKED|\s|$)"), ""),
    (re.compile(r" SKIP LOCKED"), ""),
    (re.compile(r" \+ (?=:)"), " - "),
    (re.compile(r" < "), " > "),
    (re.compile(r"\bIS NULL\b"), "IS NOT NULL"),
    (re.compile(r"SELECT pg_notify\('\w+', ''\) FROM"), "SELECT 1 FROM"),
    (re.compile(r"\bmax\("), "min("),
    (re.compile(r"\bDESC\b"), "ASC"),
)
"""What an SQL statement loses or turns round: a condition, a lock, a sign, an order, a notification."""


class SqlReplacer(Operator):
    """Changes one clause of an SQL statement: what Python's operators can't see, and a fence consists of."""

    def mutation_positions(self, node):
        """Find the clauses in strings that are statements."""
        for _ in _sql_changes(node):
            yield (node.start_pos, node.end_pos)

    def mutate(self, node, index):
        """Change the clause."""
        start, end, becomes = list(_sql_changes(node))[index]
        node.value = node.value[:start] + becomes + node.value[end:]
        return node

    @classmethod
    def examples(cls):
        """Give cosmic-ray's own kind of example."""
        return (Example('x = "SELECT 1 FROM leases FOR UPDATE"', 'x = "SELECT 1 FROM leases "'),)


def _sql_changes(node: object) -> Iterator[tuple[int, int, str]]:
    if isinstance(node, parso.python.tree.String) and re.search(r"\b(SELECT|UPDATE|INSERT|DELETE) ", node.value):
        for pattern, becomes in SQL_CHANGES:
            for match in pattern.finditer(node.value):
                yield match.start(), match.end(), becomes


OURS: dict[str, type[Operator]] = {"NumberDoubler": NumberDoubler, "SqlReplacer": SqlReplacer}


def _is_small(number: str) -> bool:
    value = ast.literal_eval(number)
    return isinstance(value, int) and value < SMALL


class Mutant(NamedTuple):
    """One change: the n-th occurrence of an operator in a module, at a line."""

    module: str
    operator: str
    occurrence: int
    line: int

    def source(self) -> str:
        """Return the whole changed module."""
        return _changed(self)


@functools.cache
def _changed(mutant: Mutant) -> str:
    changed = mutate_code(_text(mutant.module), _operator(mutant.operator)(), mutant.occurrence)
    assert changed is not None, mutant
    return changed


class Change(NamedTuple):
    """What identifies a mutant as long as its line stays: its function and the lines that differ."""

    module: str
    inside: str
    before: str
    after: str

    @classmethod
    def of(cls, mutant: Mutant) -> Change:
        """Compare the changed module with the original."""
        old, new = _text(mutant.module).splitlines(), mutant.source().splitlines()
        first = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
        last = next(i for i, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b)
        before, after = old[first : len(old) - last], new[first : len(new) - last]
        return cls(mutant.module, _name_at(mutant.module, mutant.line), _joined(before), _joined(after))


def _name_at(module: str, line: int) -> str:
    """Return the dotted name of the innermost function or class, or of the variable, at a line."""
    names: list[str] = []
    body = ast.parse(_text(module)).body
    while node := next((each for each in body if _first_line(each) <= line <= (each.end_lineno or 0)), None):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
            body = node.body
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and not any(name.islower() for name in names):
            names.append(target.id)
        break
    return ".".join(names)


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])


def _joined(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


@functools.cache
def _text(module: str) -> str:
    return (ROOT / module).read_text(encoding="utf-8")


def _operator(name: str) -> type[Operator]:
    return OURS.get(name) or OperatorProvider()[name]


def mutants_of(module: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines."""
    text = _text(module)
    nodes = list(ast_nodes(get_ast(text)))
    without = _Unchanged(ast.parse(text), text)
    found = []
    for name in (*OPERATORS, *OURS):
        operator = _operator(name)()
        occurrence = -1
        for node in nodes:
            for (line, column), _ in operator.mutation_positions(node):
                occurrence += 1
                if name.startswith("ReplaceBinaryOperator") and node.parent.type not in EXPRESSIONS:
                    continue  # the stars of {**one, **other}
                if name == "NumberReplacer" and not _is_small(node.value):
                    continue
                if name == "AddNot" and _condition(node).type in ("comparison", "namedexpr_test"):
                    continue  # the operators of comparisons negate it already; `not x := y` is no Python
                if not without.covers(line, column):
                    found.append(Mutant(module, name, occurrence, line))
    return sorted(found, key=lambda mutant: (mutant.line, mutant.operator, mutant.occurrence))


def _condition(node: parso.tree.BaseNode) -> parso.tree.NodeOrLeaf:
    return node.children[2 if node.type == "test" else 1]


class _Unchanged:
    """The parts of a module that no test can see: annotations, and the options of a dataclass, which mypy checks."""

    def __init__(self, tree: ast.Module, text: str) -> None:
        self._lines = text.splitlines()
        self._spans = []
        for node in ast.walk(tree):
            hidden: list[ast.expr | None] = []
            if isinstance(node, ast.AnnAssign | ast.arg):
                hidden = [node.annotation]
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                hidden = [node.returns]
            elif isinstance(node, ast.ClassDef):
                hidden = [each for each in node.decorator_list if isinstance(each, ast.Call)]
            elif isinstance(node, ast.Assign) and _is_type(node.value):
                hidden = [node.value]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
                hidden = [keyword.value for keyword in node.keywords]  # strict= is an assertion
            for each in hidden:
                if each is not None:
                    assert each.end_lineno is not None and each.end_col_offset is not None
                    self._spans.append(((each.lineno, each.col_offset), (each.end_lineno, each.end_col_offset)))

    def covers(self, line: int, column: int) -> bool:
        """Whether the position is in such a part. `column` counts characters, as parso does."""
        offset = len(self._lines[line - 1][:column].encode()) if line <= len(self._lines) else column
        return any(start <= (line, offset) < end for start, end in self._spans)


def _is_type(value: ast.expr) -> bool:
    """Whether an assigned value is an alias such as `A | B`."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
        return all(isinstance(side, ast.Name | ast.Subscript) or _is_type(side) for side in (value.left, value.right))
    return False


def lines_of_statement(module: str, line: int) -> tuple[range, range | None]:
    """Return the lines of the statement (or of its header) at a line, and of its function; None if it has none.

    What runs when the module is imported has no function, even if it is a function's decorator or default.
    """
    inside, function = range(line, line + 1), None
    smallest = None
    for node in ast.walk(_tree(module)):
        if not isinstance(node, ast.stmt):
            continue
        end = node.end_lineno or node.lineno
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.body[0].lineno <= line <= end:
            function = function or range(node.lineno, end + 1)  # the outermost: walk() goes from the outside in
        header = range(node.lineno, max(body[0].lineno - 1 if body else end, node.lineno) + 1)
        if line in header and (smallest is None or len(header) < smallest):
            inside, smallest = header, len(header)
    return inside, function


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_text(module))
