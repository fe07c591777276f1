"""The asynchronous client is what the tool writes from the synchronous one."""

from __future__ import annotations

import inspect

from lem_client import AsyncClient, Client
from tools.sync_to_async import asynchronous, twins


def test_the_twins_are_current() -> None:
    """`make reference` writes them."""
    assert {path.name: path.read_text(encoding="utf-8") for path in twins()} == {
        path.name: text for path, text in twins().items()
    }


def test_every_method_has_its_twin_with_the_same_parameters() -> None:
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            twin = inspect.signature(getattr(AsyncClient, name))
            assert list(twin.parameters) == list(inspect.signature(method).parameters), name


def test_calls_that_block_are_awaited_through_methods_and_generators() -> None:
    source = '''"""Docstring."""
from time import monotonic
class Client:
    def one(self) -> int:
        return self._sender.send(1)
    def two(self) -> int:
        return self.one() + self.pure()
    def pure(self) -> int:
        return 1
    def all(self) -> Iterator[int]:
        yield from self._sender.receive("/")
        with self._sender.stream("/") as response:
            yield from [1]
'''
    text = asynchronous(source, "client.py")
    assert "async def one(self) -> int:\n        return await self._sender.send(1)" in text
    assert "async def two(self) -> int:\n        return await self.one() + self.pure()" in text
    assert "    def pure(self) -> int:" in text
    assert 'async for item in self._sender.receive("/"):\n            yield item' in text
    assert "for item in [1]:\n                yield item" in text
    assert 'async with self._sender.stream("/") as response' in text
    assert "async def all(self) -> AsyncIterator[int]" in text
