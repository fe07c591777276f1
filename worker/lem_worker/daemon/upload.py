"""Upload of an attempt: sealed chunks, and the output of its processes as run log."""

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
"""The delay of log lines at the server, and of evidence after its chunk is sealed."""
LOG_PIECE_CHARACTERS = 32_768
LOG_LIMIT_BYTES = 4 * 2**20
"""Output of a process beyond this is not sent; the run log notes the cut."""


_ChunkKey = tuple[str, str, int]
"""Process, stream and sequence number of a chunk."""


class Uploader:
    """The upload of one attempt's folder."""

    def __init__(self, api: ServerApi, attempt_id: str, attempt_dir: Path, *, send_logs: bool = True) -> None:
        self._api = api
        self._send_logs = send_logs
        self._attempt_id = attempt_id
        self._dir = attempt_dir
        self._logs: dict[str, _LogCursor] = {}

    async def run(self) -> None:
        """Send new chunks and output every `UPLOAD_EVERY_S` until cancelled."""
        while True:
            await self.send_pending()
            await asyncio.sleep(UPLOAD_EVERY_S)

    async def send_pending(self) -> None:
        """Send every sealed chunk that was not acknowledged, and all new output."""
        for chunk in spool.pending_chunks(self._dir):
            await self._api.put_chunk(self._attempt_id, chunk)
            # Marked only after the answer: a chunk that is sent twice changes nothing, a lost one would be missing.
            spool.mark_acknowledged(chunk)
        for path in sorted(self._dir.glob("*.log")) if self._send_logs else ():
            await self._send_log(path)

    async def complete(self, processes: Sequence[str]) -> None:
        """Send the remaining chunks, the completion markers and the manifest.

        Raises:
            ManifestIncomplete: the server lacks a chunk that the spool does not have, or that was sent again already.
        """
        await self.send_pending()
        for process in processes:
            marker = spool.completion_marker(self._dir, process)
            if marker is not None:
                await self._api.put_completion(self._attempt_id, process, marker)
        request = CompleteAttempt(processes=tuple(processes), manifest=spool.sealed_manifests(self._dir))
        resent: set[_ChunkKey] = set()
        while True:
            try:
                await self._api.complete(self._attempt_id, request)
            except ManifestIncomplete as error:
                # One answer lists a limited number of missing chunks, so several rounds may be needed.
                missing = {(gap.process, gap.stream, seq) for gap in error.missing for seq in gap.seqs} - resent
                if not await self._resend(missing):
                    raise
                resent |= missing
            else:
                return

    async def _resend(self, missing: set[_ChunkKey]) -> bool:
        """Send chunks that the server lacks, even acknowledged ones; returns whether the spool has any of them."""
        logger.warning("the server lacks %d chunks; sending them again", len(missing))
        found = False
        for chunk in spool.sealed_chunks(self._dir):
            if (chunk.process, chunk.stream.value, chunk.seq) in missing:
                await self._api.put_chunk(self._attempt_id, chunk)
                found = True
        return found

    async def _send_log(self, path: Path) -> None:
        cursor = self._logs.setdefault(path.name, _LogCursor())
        while (piece := cursor.piece(path)) is not None:
            await self._api.put_log(self._attempt_id, path.stem, cursor.seq, piece)
            cursor.advance()


class _LogCursor:
    """Position in a log file. A piece keeps its number and text until it is sent, so that a retry sends the same."""

    def __init__(self) -> None:
        self.seq = 0
        self._offset = 0
        self._pieces: deque[str] = deque()

    def piece(self, path: Path) -> str | None:
        """Return the next piece to send; None when there is no new output."""
        if not self._pieces and self._offset < LOG_LIMIT_BYTES:
            self._pieces.extend(self._read(path))
        return self._pieces[0] if self._pieces else None

    def advance(self) -> None:
        """Move on to the next piece after the server has acknowledged this one."""
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
            text += f"\n[{path.stem} wrote {LOG_LIMIT_BYTES // 2**20} MiB; further output is not kept]\n"
        return [text[at : at + LOG_PIECE_CHARACTERS] for at in range(0, len(text), LOG_PIECE_CHARACTERS)]


def tail(path: Path, lines: int = 12, most: int = 2000) -> str:
    """Return the last lines of a log file, at most `most` characters, for the message of a failure."""
    try:
        with path.open("rb") as file:
            # UTF-8 needs up to four bytes per character.
            file.seek(max(0, path.stat().st_size - 4 * most))
            content = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(content.splitlines()[-lines:])[-most:]
