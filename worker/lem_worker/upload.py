"""Sends the spool: chunks as they are sealed, and the processes' output as run log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from lem_domain.evidence import StreamManifest, StreamName, digest_of_digests
from lem_domain.wire.workers import CompleteAttempt, MissingChunks
from lem_worker import spool
from lem_worker.server_api import ManifestIncomplete, ServerApi

logger = logging.getLogger(__name__)

UPLOAD_EVERY_S = 1.0
LOG_PIECE_CHARACTERS = 32_768
LOG_LIMIT_BYTES = 4 * 2**20
"""What a process writes beyond this stays in the file on the worker; the run log says so."""


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
        for chunk in spool.pending(self._dir):
            await self._api.put_chunk(self._attempt_id, chunk)
            spool.mark_acknowledged(chunk)
        for path in sorted(self._dir.glob("*.log")) if self._send_logs else ():
            await self._send_log(path)

    async def complete(self, processes: Sequence[str]) -> None:
        """Send the rest, the completion markers, and the manifest of it all."""
        await self.send_pending()
        for process in processes:
            marker = spool.done(self._dir, process)
            if marker is not None:
                await self._api.put_completion(self._attempt_id, process, marker)
        request = CompleteAttempt(processes=tuple(processes), manifest=manifests(self._dir))
        try:
            await self._api.complete(self._attempt_id, request)
        except ManifestIncomplete as error:
            await self._send_again(error.missing)
            await self._api.complete(self._attempt_id, request)

    async def _send_again(self, missing: Sequence[MissingChunks]) -> None:
        """Chunks that the server lacks although they may have been acknowledged; only unsent ones are still here."""
        wanted = {(gap.process, gap.stream, seq) for gap in missing for seq in gap.seqs}
        logger.warning("the server lacks %d chunks; sending them again", len(wanted))
        for chunk in spool.pending(self._dir):
            if (chunk.process, chunk.stream.value, chunk.seq) in wanted:
                await self._api.put_chunk(self._attempt_id, chunk)
                spool.mark_acknowledged(chunk)

    async def _send_log(self, path: Path) -> None:
        cursor = self._logs.setdefault(path.name, _LogCursor())
        for piece in cursor.new_pieces(path):
            await self._api.put_log(self._attempt_id, path.stem, cursor.seq, piece)
            cursor.seq += 1


class _LogCursor:
    """How much of a log file was sent."""

    def __init__(self) -> None:
        self.seq = 0
        self._offset = 0

    def new_pieces(self, path: Path) -> list[str]:
        if self._offset >= LOG_LIMIT_BYTES:
            return []
        with path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(LOG_LIMIT_BYTES - self._offset)
        if not content:
            return []
        self._offset += len(content)
        text = content.decode("utf-8", errors="replace")
        if self._offset >= LOG_LIMIT_BYTES:
            text += f"\n[the rest of this output is only on the worker, in {path.name}]\n"
        return [text[at : at + LOG_PIECE_CHARACTERS] for at in range(0, len(text), LOG_PIECE_CHARACTERS)]


def manifests(attempt_dir: Path) -> tuple[StreamManifest, ...]:
    """What an attempt's folder says that there is, acknowledged or not."""
    by_stream: dict[tuple[str, StreamName], list[spool.SpooledChunk]] = {}
    for chunk in spool.chunks(attempt_dir):
        by_stream.setdefault((chunk.process, chunk.stream), []).append(chunk)
    return tuple(
        StreamManifest(
            process=process,
            stream=stream,
            chunks=len(chunks),
            rows=sum(chunk.rows for chunk in chunks),
            bytes=sum(chunk.bytes for chunk in chunks),
            sha256=digest_of_digests(chunk.sha256 for chunk in chunks),
        )
        for (process, stream), chunks in sorted(by_stream.items())
    )


def tail(path: Path, lines: int = 12, most: int = 2000) -> str:
    """The last lines of a log file, for a failure's message."""
    try:
        content = path.read_bytes()[-8 * most :].decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(content.splitlines()[-lines:])[-most:]
