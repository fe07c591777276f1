"""A served application, the command line that talks to it, and steps by SQL in between."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_client import Client
from lem_client.cli.main import main
from lem_server.database.engine import make_engine

T = TypeVar("T")

CAMPAIGN = """\
backend: simulated
model: builtin:tiny-llama
sweep: {simulated.batch_size: [1, 8]}
execution: {cycles: 2}
"""


class Answer(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document of the output."""
        return json.loads(self.out)


class Lem:
    """A served application and the command that talks to it."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.url = url
        self._capsys = capsys
        self._folder = folder

    def __call__(self, *arguments: str) -> Answer:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        output = self._capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Answer(caught.value.code, output.out, output.err)

    def file(self, text: str = CAMPAIGN, name: str = "night.yaml") -> str:
        path = self._folder / name
        path.write_text(text)
        return str(path)


class Served(uvicorn.Server):
    """Says when it listens, and lets go of open streams before it ends, as `lem-server` does."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        assert isinstance(self.config.app, FastAPI)
        self.config.app.state.context.hub.release()
        await super().shutdown(sockets)


def by_sql(database_url: URL, steps: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    """Run steps of the factories, which are asynchronous, from a test that isn't."""

    async def run() -> T:
        engine = make_engine(database_url)
        try:
            return await steps(engine)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def submitted(lem: Lem, text: str = CAMPAIGN) -> tuple[str, list[str]]:
    """A queued campaign and its runs in order."""
    campaign = lem("submit", lem.file(text), "--quiet").out.strip()
    with Client() as client:
        return campaign, [run.id for run in client.runs(campaign_id=campaign)]
