"""SQL of chunks, logs and completion markers. Every statement uses a primary key."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam


class StoredChunk(NamedTuple):
    """A chunk without its body; `size` is in bytes."""

    process: str
    stream: str
    seq: int
    rows: int
    size: int
    sha256: bytes


async def chunk_digest(
    connection: AsyncConnection, attempt_id: UUID, process: str, stream: str, seq: int
) -> bytes | None:
    """Return the digest of a stored chunk."""
    digest: bytes | None = (
        await connection.execute(
            text("SELECT sha256 FROM chunks WHERE attempt_id = :a AND process = :p AND stream = :s AND seq = :q"),
            {"a": attempt_id, "p": process, "s": stream, "q": seq},
        )
    ).scalar_one_or_none()
    return digest


_INSERT_CHUNK = text("""
    INSERT INTO chunks (attempt_id, process, stream, seq, rows, t_min_ns, t_max_ns, sha256, bytes, body)
    VALUES (:attempt_id, :process, :stream, :seq, :rows, :t_min_ns, :t_max_ns, :sha256, :size, :body)
    ON CONFLICT (attempt_id, process, stream, seq) DO NOTHING
""")


async def insert_chunk(
    connection: AsyncConnection,
    *,
    attempt_id: UUID,
    chunk: StoredChunk,
    t_min_ns: int | None,
    t_max_ns: int | None,
    body: bytes,
) -> bool:
    """Store a chunk; return False if one with its number exists."""
    done = await connection.execute(
        _INSERT_CHUNK,
        {"attempt_id": attempt_id, **chunk._asdict(), "t_min_ns": t_min_ns, "t_max_ns": t_max_ns, "body": body},
    )
    return done.rowcount == 1


async def stored_chunks(connection: AsyncConnection, attempt_id: UUID) -> list[StoredChunk]:
    """Return every chunk of an attempt without its body, in order."""
    rows = await connection.execute(
        text("""
            SELECT process, stream, seq, rows, bytes, sha256 FROM chunks
             WHERE attempt_id = :a ORDER BY process, stream, seq
        """),
        {"a": attempt_id},
    )
    return [StoredChunk(*row) for row in rows]


async def stored_rows(connection: AsyncConnection, attempt_id: UUID) -> int:
    """Return the number of rows of all chunks of an attempt."""
    rows: int = (
        await connection.execute(
            text("SELECT coalesce(sum(rows), 0) FROM chunks WHERE attempt_id = :a"), {"a": attempt_id}
        )
    ).scalar_one()
    return rows


async def chunk_body(
    connection: AsyncConnection, attempt_id: UUID, process: str, stream: str, seq: int
) -> tuple[bytes, bytes] | None:
    """Return a chunk's body and its recorded digest."""
    row = (
        await connection.execute(
            text("SELECT body, sha256 FROM chunks WHERE attempt_id = :a AND process = :p AND stream = :s AND seq = :q"),
            {"a": attempt_id, "p": process, "s": stream, "q": seq},
        )
    ).one_or_none()
    return None if row is None else (row.body, row.sha256)


async def insert_log(connection: AsyncConnection, *, attempt_id: UUID, process: str, seq: int, content: str) -> bool:
    """Store a piece of log; return False if one with its number exists."""
    done = await connection.execute(
        text("""
            INSERT INTO logs (attempt_id, process, seq, text) VALUES (:a, :p, :q, :t)
            ON CONFLICT (attempt_id, process, seq) DO NOTHING
        """),
        {"a": attempt_id, "p": process, "q": seq, "t": content},
    )
    return done.rowcount == 1


async def log_text(connection: AsyncConnection, attempt_id: UUID, process: str, seq: int) -> str | None:
    """Return a stored piece of log."""
    found: str | None = (
        await connection.execute(
            text("SELECT text FROM logs WHERE attempt_id = :a AND process = :p AND seq = :q"),
            {"a": attempt_id, "p": process, "q": seq},
        )
    ).scalar_one_or_none()
    return found


_INSERT_COMPLETION = text("""
    INSERT INTO process_results (attempt_id, process, streams, summary) VALUES (:a, :p, :streams, :summary)
    ON CONFLICT (attempt_id, process) DO NOTHING
""").bindparams(bindparam("streams", type_=JSONB), bindparam("summary", type_=JSONB))


async def insert_completion(
    connection: AsyncConnection,
    *,
    attempt_id: UUID,
    process: str,
    streams: list[dict[str, Any]],
    summary: dict[str, Any],
) -> bool:
    """Store a completion marker; return False if the process has one."""
    done = await connection.execute(
        _INSERT_COMPLETION, {"a": attempt_id, "p": process, "streams": streams, "summary": summary}
    )
    return done.rowcount == 1


async def completion(
    connection: AsyncConnection, attempt_id: UUID, process: str
) -> tuple[list[dict[str, Any]], dict[str, Any]] | None:
    """Return a process's completion marker."""
    row = (
        await connection.execute(
            text("SELECT streams, summary FROM process_results WHERE attempt_id = :a AND process = :p"),
            {"a": attempt_id, "p": process},
        )
    ).one_or_none()
    return None if row is None else (row.streams, row.summary)


async def completions(connection: AsyncConnection, attempt_id: UUID) -> dict[str, dict[str, Any]]:
    """Return the summaries of all completed processes."""
    rows = await connection.execute(
        text("SELECT process, summary FROM process_results WHERE attempt_id = :a ORDER BY process"), {"a": attempt_id}
    )
    return {row.process: row.summary for row in rows}


async def next_body(
    connection: AsyncConnection, attempt_id: UUID, process: str, stream: str, after: int
) -> tuple[int, bytes] | None:
    """Return the first chunk of a stream with a number above `after`.

    One short statement per chunk, so that no snapshot stays open for the whole read.
    """
    row = (
        await connection.execute(
            text("""
                SELECT seq, body FROM chunks
                 WHERE attempt_id = :a AND process = :p AND stream = :s AND seq > :after
                 ORDER BY seq LIMIT 1
            """),
            {"a": attempt_id, "p": process, "s": stream, "after": after},
        )
    ).one_or_none()
    return None if row is None else (row.seq, row.body)


async def attempt_exists(connection: AsyncConnection, attempt_id: UUID) -> bool:
    """Return whether the attempt exists."""
    row = await connection.execute(text("SELECT 1 FROM attempts WHERE id = :id"), {"id": attempt_id})
    return row.one_or_none() is not None
