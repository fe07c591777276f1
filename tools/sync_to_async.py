"""Writes the asynchronous twins of the client's synchronous modules: `python -m tools.sync_to_async`.

The synchronous module is the source. The tables below name the calls that block; a function that contains one becomes
`async def`, and calls to it are awaited in turn. Comments are not copied. A test compares the files with the sources.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "client" / "lem_client"
MODULES = {"sender.py": "async_sender.py", "client.py": "async_client.py"}

AWAITED = {
    "retrying",
    "response.read",
    "self._client.close",
    "self._client.post",
    "self._sender.close",
    "self._sender.send",
    "self._sender.transmit",
    "self._sender.sleep",
    "self.close",
}
ITERATED = {"response.iter_bytes", "response.iter_raw", "self._sender.receive", "self.table"}
ENTERED = {"self._client.stream", "self._sender.stream", "self.stream"}
NAMES = {
    "BaseTransport": "AsyncBaseTransport",
    "Client": "AsyncClient",
    "Iterator": "AsyncIterator",
    "Retrying": "AsyncRetrying",
    "Sender": "AsyncSender",
    "Sleep": "AsyncSleep",
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
    "contextmanager": "asynccontextmanager",
    "file_parts": "async_file_parts",
    "iter_bytes": "aiter_bytes",
    "iter_raw": "aiter_raw",
    "lem_client.sender": "lem_client.async_sender",
    "time": "asyncio",
}
METHODS = {"response.read": "aread", "self._client.close": "aclose"}


def asynchronous(source: str, name: str) -> str:
    """The text of a module's asynchronous twin."""
    tree = ast.parse(source)
    awaited = AWAITED | {f"self.{one}" for one in _blocking_methods(tree)}
    docstring = f"The asynchronous twin of `{name}`, written by `make reference` from it. Do not edit."
    tree.body[0] = ast.Expr(ast.Constant(docstring))
    text = ast.unparse(ast.fix_missing_locations(_ToAsync(awaited).visit(tree)))
    ruff = (sys.executable, "-m", "ruff")
    for command in (("check", "--select", "I", "--fix-only", "-q"), ("format",)):
        arguments = (*ruff, *command, "--stdin-filename", str(FOLDER / name), "-")
        text = subprocess.run(arguments, input=text, capture_output=True, text=True, check=True).stdout
    return text


class _ToAsync(ast.NodeTransformer):
    """Renames, adds `await` and `async`."""

    def __init__(self, awaited: set[str]) -> None:
        self._awaited = awaited

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        is_async = _blocks(node, self._awaited) or node.name == "__enter__"
        self.generic_visit(node)
        node.name = NAMES.get(node.name, node.name)
        if not is_async:
            return node
        return ast.AsyncFunctionDef(**{field: getattr(node, field) for field in node._fields})

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = NAMES.get(node.name, node.name)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = ast.unparse(node.func)
        self.generic_visit(node)
        if called in METHODS and isinstance(node.func, ast.Attribute):
            node.func.attr = METHODS[called]
        return ast.Await(node) if called in self._awaited else node

    def visit_For(self, node: ast.For) -> ast.AST:
        is_async = _calls(node.iter, ITERATED)
        self.generic_visit(node)
        return ast.AsyncFor(**{field: getattr(node, field) for field in node._fields}) if is_async else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if not isinstance(node.value, ast.YieldFrom):
            return self.generic_visit(node)
        # An asynchronous generator has no `yield from`.
        item = ast.Expr(ast.Yield(ast.Name("item", ast.Load())))
        return self.visit_For(ast.For(ast.Name("item", ast.Store()), node.value.value, [item], []))

    def visit_With(self, node: ast.With) -> ast.AST:
        is_async = _calls(node.items[0].context_expr, ENTERED)
        self.generic_visit(node)
        return ast.AsyncWith(**{field: getattr(node, field) for field in node._fields}) if is_async else node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = NAMES.get(node.id, node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = NAMES.get(node.attr, node.attr)
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        node.module = NAMES.get(node.module or "", node.module)
        return self.generic_visit(node)

    def visit_alias(self, node: ast.alias) -> ast.AST:
        node.name = NAMES.get(node.name, node.name)
        return node


def _blocking_methods(tree: ast.Module) -> set[str]:
    """Methods that are coroutines in the twin; generators are iterated instead of awaited."""
    return {
        one.name
        for one in ast.walk(tree)
        if isinstance(one, ast.FunctionDef)
        and _blocks(one, AWAITED)
        and not any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in ast.walk(one))
    }


def _blocks(function: ast.FunctionDef, awaited: set[str]) -> bool:
    return any(_calls(node, awaited | ITERATED | ENTERED) for node in ast.walk(function))


def _calls(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in names


def twins() -> dict[Path, str]:
    """Every twin's path and text."""
    return {
        FOLDER / twin: asynchronous((FOLDER / source).read_text(encoding="utf-8"), source)
        for source, twin in MODULES.items()
    }


if __name__ == "__main__":
    for path, content in twins().items():
        path.write_text(content, encoding="utf-8")
