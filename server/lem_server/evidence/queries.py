"""SQL of chunks, logs and completion markers. Every statement uses a primary key."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam

from lem_server.database.rows import read_all
from lem_server.evidence.validation import ChunkFacts, ChunkKey


class StoredChunk(NamedTuple):
    """A chunk without its body; `size` is in bytes."""

    process: str
    stream: str
    seq: int
    rows: int
    size: int
    sha256: bytes


_IS_CHUNK = "attempt_id = :attempt_id AND process = :process AND stream = :stream AND seq = :seq"
_CHUNK_DIGEST = text(f"SELECT sha256 FROM chunks WHERE {_IS_CHUNK}")  # noqa: S608 - constants
_CHUNK_BODY = text(f"SELECT body, sha256 FROM chunks WHERE {_IS_CHUNK}")  # noqa: S608 - constants
_INSERT_CHUNK = text("""
    INSERT INTO chunks (attempt_id, process, stream, seq, rows, t_min_ns, t_max_ns, sha256, bytes, body)
    VALUES (:attempt_id, :process, :stream, :seq, :rows, :t_min_ns, :t_max_ns, :sha256, :size, :body)
    ON CONFLICT (attempt_id, process, stream, seq) DO NOTHING
""")
_CHUNKS = text("""
    SELECT process, stream, seq, rows, bytes AS size, sha256 FROM chunks
     WHERE attempt_id = :attempt_id ORDER BY process, stream, seq
""")


async def chunk_digest(connection: AsyncConnection, key: ChunkKey) -> bytes | None:
    """Return the digest of a stored chunk."""
    digest: bytes | None = (await connection.execute(_CHUNK_DIGEST, key._asdict())).scalar_one_or_none()
    return digest


async def insert_chunk(
    connection: AsyncConnection, key: ChunkKey, facts: ChunkFacts, *, sha256: bytes, body: bytes
) -> bool:
    """Store a chunk; return False if one with its number exists."""
    values = {**key._asdict(), **facts._asdict(), "sha256": sha256, "size": len(body), "body": body}
    return (await connection.execute(_INSERT_CHUNK, values)).rowcount == 1


async def stored_chunks(connection: AsyncConnection, attempt_id: UUID) -> list[StoredChunk]:
    """Return every chunk of an attempt without its body, in order."""
    return await read_all(connection, _CHUNKS, StoredChunk, attempt_id=attempt_id)


async def chunk_body(connection: AsyncConnection, key: ChunkKey) -> tuple[bytes, bytes] | None:
    """Return a chunk's body and its recorded digest."""
    row = (await connection.execute(_CHUNK_BODY, key._asdict())).one_or_none()
    return None if row is None else (row.body, row.sha256)


_INSERT_LOG = text("""
    INSERT INTO logs (attempt_id, process, seq, text) VALUES (:attempt_id, :process, :seq, :text)
    ON CONFLICT (attempt_id, process, seq) DO NOTHING
""")
_LOG = text("SELECT text FROM logs WHERE attempt_id = :attempt_id AND process = :process AND seq = :seq")


async def insert_log(connection: AsyncConnection, attempt_id: UUID, process: str, seq: int, content: str) -> bool:
    """Store a piece of log; return False if one with its number exists."""
    values = {"attempt_id": attempt_id, "process": process, "seq": seq, "text": content}
    return (await connection.execute(_INSERT_LOG, values)).rowcount == 1


async def log_text(connection: AsyncConnection, attempt_id: UUID, process: str, seq: int) -> str | None:
    """Return a stored piece of log."""
    key = {"attempt_id": attempt_id, "process": process, "seq": seq}
    found: str | None = (await connection.execute(_LOG, key)).scalar_one_or_none()
    return found


_INSERT_COMPLETION = text("""
    INSERT INTO process_results (attempt_id, process, streams, summary)
    VALUES (:attempt_id, :process, :streams, :summary)
    ON CONFLICT (attempt_id, process) DO NOTHING
""").bindparams(bindparam("streams", type_=JSONB), bindparam("summary", type_=JSONB))
_COMPLETIONS = text("SELECT process, streams, summary FROM process_results WHERE attempt_id = :id ORDER BY process")


class Completion(NamedTuple):
    """The completion marker of a process."""

    process: str
    streams: list[dict[str, Any]]
    summary: dict[str, Any]


async def insert_completion(connection: AsyncConnection, attempt_id: UUID, marker: Completion) -> bool:
    """Store a completion marker; return False if the process has one."""
    values = {"attempt_id": attempt_id, **marker._asdict()}
    return (await connection.execute(_INSERT_COMPLETION, values)).rowcount == 1


async def completions(connection: AsyncConnection, attempt_id: UUID) -> dict[str, Completion]:
    """Return the completion markers of all completed processes."""
    markers = await read_all(connection, _COMPLETIONS, Completion, id=attempt_id)
    return {marker.process: marker for marker in markers}
