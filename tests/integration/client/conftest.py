"""`lemctl` against the real application over a real PostgreSQL."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from sqlalchemy.engine import URL

from factories.served import Lem, Served
from lem_server.app import create_app
from lem_server.settings import Settings


@pytest.fixture
def lem(
    database_url: URL,
    server_settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Lem]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        served = Served(uvicorn.Config(create_app(server_settings, database_url), log_config=None))
        thread = threading.Thread(target=served.run, kwargs={"sockets": [listener]})
        thread.start()
        assert served.listening.wait(300)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name in ("LEM_TOKEN", "LEM_TOKEN_FILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("LEM_SERVER", url)
        monkeypatch.setenv("LEM_DATA_DIR", str(server_settings.data_dir))
        yield Lem(url, capsys, tmp_path)
        served.should_exit = True
        thread.join()
