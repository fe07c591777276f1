"""What is sent: the run log once and in order, and of the evidence all that the server wants, as often as it asks."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any, cast

import pytest

from lem_domain.errors import Problem, ProblemCode
from lem_domain.evidence.streams import StreamName, digest_of_digests
from lem_domain.wire.workers import CompleteAttempt, MissingChunks
from lem_worker.daemon import upload
from lem_worker.daemon.upload import Uploader, tail
from lem_worker.process.spool import EvidenceWriter, SpooledChunk
from lem_worker.server_api import ManifestIncomplete, ServerApi

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
    assert "not kept" in server.text


def test_the_tail_is_the_last_lines_and_no_error_where_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(str(number) for number in range(100_000)))
    assert tail(tmp_path / "log", lines=2) == "99998\n99999"
    assert tail(tmp_path / "none") == ""


class ChunkServer:
    """Holds chunks, and can lose them."""

    def __init__(self, named_at_once: int = 1000) -> None:
        self.held: dict[int, str] = {}
        self.puts: list[int] = []
        self.takes = True
        self._named_at_once = named_at_once

    async def put_chunk(self, _: str, chunk: SpooledChunk) -> None:
        self.puts.append(chunk.seq)
        if self.takes:
            self.held[chunk.seq] = hashlib.sha256(chunk.path.read_bytes()).hexdigest()

    async def complete(self, _: str, request: CompleteAttempt) -> None:
        [wanted] = request.manifest
        missing = [seq for seq in range(wanted.chunks) if seq not in self.held][: self._named_at_once]
        if missing:
            gap = MissingChunks(process=wanted.process, stream=wanted.stream.value, seqs=tuple(missing))
            problem = Problem(type="/", title="t", status=409, code=ProblemCode.MANIFEST_INCOMPLETE, detail="d")
            raise ManifestIncomplete(problem, (gap,))
        assert digest_of_digests(self.held[seq] for seq in sorted(self.held)) == wanted.sha256


def spooled(folder: Path, chunks: int) -> None:
    stream = EvidenceWriter(folder, "rank-0").stream(StreamName.EVENTS)
    for number in range(chunks):
        stream.append(time_ns=number, kind="test")
        stream.flush()


def chunk_uploader(server: ChunkServer, folder: Path) -> Uploader:
    return Uploader(cast(ServerApi, cast(Any, server)), "att_1", folder)


@pytest.mark.parametrize("named_at_once", [1000, 2])
async def test_whatever_the_server_lacks_is_sent_again_though_it_was_acknowledged(
    tmp_path: Path, named_at_once: int
) -> None:
    spooled(tmp_path, chunks=7)
    server = ChunkServer(named_at_once)
    sending = chunk_uploader(server, tmp_path)
    await sending.send_pending()
    for seq in (0, 2, 3, 5, 6):
        del server.held[seq]
    await sending.complete(["rank-0"])
    assert server.puts == [0, 1, 2, 3, 4, 5, 6, 0, 2, 3, 5, 6]


async def test_another_uploader_sends_nothing_that_is_marked_as_sent(tmp_path: Path) -> None:
    spooled(tmp_path, chunks=3)
    server = ChunkServer()
    await chunk_uploader(server, tmp_path).send_pending()
    await chunk_uploader(server, tmp_path).complete(["rank-0"])
    assert server.puts == [0, 1, 2]


async def test_a_server_that_keeps_asking_is_not_sent_the_same_for_ever(tmp_path: Path) -> None:
    spooled(tmp_path, chunks=2)
    server = ChunkServer()
    server.takes = False
    with pytest.raises(ManifestIncomplete):
        await chunk_uploader(server, tmp_path).complete(["rank-0"])
    assert server.puts == [0, 1, 0, 1]
