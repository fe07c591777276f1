"""Sends the spool: chunks as they are sealed, and the processes' output as run log."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from lem_domain.wire.workers import CompleteAttempt
from lem_worker.process import spool
from lem_worker.server_api import ManifestIncomplete, ServerApi

logger = logging.getLogger(__name__)

UPLOAD_EVERY_S = 1.0
LOG_PIECE_CHARACTERS = 32_768
LOG_LIMIT_BYTES = 4 * 2**20
"""What a process writes beyond this is not sent; the run log says so."""


_Place = tuple[str, str, int]
"""Process, stream and number of a chunk."""


class Uploader:
    """The upload of one attempt's folder."""

    def __init__(self, api: ServerApi, attempt_id: str, attempt_dir: Path, *, send_logs: bool = True) -> None:
        self._api = api
        self._send_logs = send_logs
        self._attempt_id = attempt_id
        self._dir = attempt_dir
        self._logs: dict[str, _LogCursor] = {}

    async def run(self) -> None:
        """Send what is sealed, again and again, until cancelled."""
        while True:
            await self.send_pending()
            await asyncio.sleep(UPLOAD_EVERY_S)

    async def send_pending(self) -> None:
        """Send every sealed chunk and all new output."""
        for chunk in spool.pending_chunks(self._dir):
            await self._api.put_chunk(self._attempt_id, chunk)
            spool.mark_acknowledged(chunk)
        for path in sorted(self._dir.glob("*.log")) if self._send_logs else ():
            await self._send_log(path)

    async def complete(self, processes: Sequence[str]) -> None:
        """Send the rest, the completion markers, and the manifest of it all."""
        await self.send_pending()
        for process in processes:
            marker = spool.completion_marker(self._dir, process)
            if marker is not None:
                await self._api.put_completion(self._attempt_id, process, marker)
        request = CompleteAttempt(processes=tuple(processes), manifest=spool.sealed_manifests(self._dir))
        sent_again: set[_Place] = set()
        while True:
            try:
                await self._api.complete(self._attempt_id, request)
            except ManifestIncomplete as error:
                # The server names only so many at a time.
                named = {(gap.process, gap.stream, seq) for gap in error.missing for seq in gap.seqs} - sent_again
                if not await self._send_again(named):
                    raise
                sent_again |= named
            else:
                return

    async def _send_again(self, wanted: set[_Place]) -> set[_Place]:
        """Send what the server lacks, although it may have acknowledged it; says what that was."""
        logger.warning("the server lacks %d chunks; sending them again", len(wanted))
        sent = set()
        for chunk in spool.sealed_chunks(self._dir):
            place = (chunk.process, chunk.stream.value, chunk.seq)
            if place in wanted:
                await self._api.put_chunk(self._attempt_id, chunk)
                sent.add(place)
        return sent

    async def _send_log(self, path: Path) -> None:
        cursor = self._logs.setdefault(path.name, _LogCursor())
        while (piece := cursor.piece(path)) is not None:
            await self._api.put_log(self._attempt_id, path.stem, cursor.seq, piece)
            cursor.sent()


class _LogCursor:
    """How much of a log file was sent. A piece keeps its number and its text until the server has it."""

    def __init__(self) -> None:
        self.seq = 0
        self._offset = 0
        self._pieces: deque[str] = deque()

    def piece(self, path: Path) -> str | None:
        """What to send next."""
        if not self._pieces and self._offset < LOG_LIMIT_BYTES:
            self._pieces.extend(self._read(path))
        return self._pieces[0] if self._pieces else None

    def sent(self) -> None:
        """The server has the piece."""
        self._pieces.popleft()
        self.seq += 1

    def _read(self, path: Path) -> list[str]:
        with path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(LOG_LIMIT_BYTES - self._offset)
        if not content:
            return []
        self._offset += len(content)
        text = content.decode("utf-8", errors="replace")
        if self._offset >= LOG_LIMIT_BYTES:
            text += f"\n[{path.stem} wrote {LOG_LIMIT_BYTES // 2**20} MiB; what follows is not kept]\n"
        return [text[at : at + LOG_PIECE_CHARACTERS] for at in range(0, len(text), LOG_PIECE_CHARACTERS)]


def tail(path: Path, lines: int = 12, most: int = 2000) -> str:
    """The last lines of a log file, for a failure's message."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4 * most))
            content = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(content.splitlines()[-lines:])[-most:]
