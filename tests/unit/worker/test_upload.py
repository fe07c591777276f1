"""The run log: sent once, in order, whatever interrupts it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from lem_worker import upload
from lem_worker.server_api import ServerApi
from lem_worker.upload import Uploader, tail

pytestmark = pytest.mark.anyio


class LogServer:
    """Takes pieces of log; refuses another text under a known number, as the real one does."""

    def __init__(self) -> None:
        self.pieces: dict[int, str] = {}
        self.gate = asyncio.Event()
        self.reached = asyncio.Event()
        self.takes = True

    async def put_log(self, _attempt: str, _process: str, seq: int, text: str) -> None:
        if self.takes:
            assert self.pieces.setdefault(seq, text) == text
        self.reached.set()
        await self.gate.wait()

    @property
    def text(self) -> str:
        assert sorted(self.pieces) == list(range(len(self.pieces)))
        return "".join(self.pieces[seq] for seq in sorted(self.pieces))


def uploader(server: LogServer, folder: Path) -> Uploader:
    return Uploader(cast(ServerApi, cast(Any, server)), "att_1", folder)


@pytest.mark.parametrize("arrived", [True, False])
async def test_a_log_whose_sending_was_cut_off_is_sent_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    monkeypatch.setattr(upload, "LOG_PIECE_CHARACTERS", 4)
    log = tmp_path / "rank-0.log"
    log.write_text("one two three")
    server = LogServer()
    server.takes = arrived
    sending = uploader(server, tmp_path)
    first = asyncio.create_task(sending.send_pending())
    await server.reached.wait()
    first.cancel()  # whether the server has the piece or not, its answer never came
    await asyncio.gather(first, return_exceptions=True)
    log.write_text("one two three four")
    server.takes = True
    server.gate.set()
    await sending.send_pending()
    assert server.text == "one two three four"


async def test_more_output_than_a_log_takes_is_cut_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "LOG_LIMIT_BYTES", 10)
    (tmp_path / "rank-0.log").write_text("x" * 50)
    server = LogServer()
    server.gate.set()
    sending = uploader(server, tmp_path)
    await sending.send_pending()
    await sending.send_pending()
    assert server.text.startswith("x" * 10 + "\n[rank-0 wrote")
    assert "what follows is not kept" in server.text


def test_the_tail_is_the_last_lines_and_no_error_where_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(str(number) for number in range(100_000)))
    assert tail(tmp_path / "log", lines=2) == "99998\n99999"
    assert tail(tmp_path / "none") == ""
