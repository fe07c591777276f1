"""Reads the stored evidence of an attempt without any check."""

from __future__ import annotations

from itertools import groupby
from uuid import UUID

from pydantic.types import JsonValue
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from lem_domain.evidence.streams import StreamName
from lem_domain.wire.runs import ChunkView, StreamView
from lem_server.evidence import queries
from lem_server.evidence.validation import ChunkKey


async def streams_of(engine: AsyncEngine, attempt_id: UUID) -> tuple[StreamView, ...]:
    """Return the streams with their chunks in order, without bodies; empty if no chunk is stored."""
    async with engine.connect() as connection:
        chunks = await queries.stored_chunks(connection, attempt_id)
    return tuple(
        StreamView(
            process=process,
            stream=StreamName(stream),
            chunks=tuple(
                ChunkView(seq=one.seq, rows=one.rows, bytes=one.size, sha256=one.sha256.hex()) for one in found
            ),
        )
        for (process, stream), found in groupby(chunks, lambda chunk: (chunk.process, chunk.stream))
    )


async def rows_of(engine: AsyncEngine, attempt_id: UUID) -> int:
    """Return the number of rows of all chunks."""
    statement = text("SELECT coalesce(sum(rows), 0) FROM chunks WHERE attempt_id = :id")
    async with engine.connect() as connection:
        rows: int = (await connection.execute(statement, {"id": attempt_id})).scalar_one()
    return rows


async def summaries_of(engine: AsyncEngine, attempt_id: UUID) -> dict[str, dict[str, JsonValue]]:
    """Return the summary of each completed process."""
    async with engine.connect() as connection:
        markers = await queries.completions(connection, attempt_id)
    return {process: marker.summary for process, marker in markers.items()}


_NEXT_BODY = text("""
    SELECT seq, body FROM chunks
     WHERE attempt_id = :attempt_id AND process = :process AND stream = :stream AND seq > :seq
     ORDER BY seq LIMIT 1
""")


async def next_body(
    engine: AsyncEngine, attempt_id: UUID, process: str, stream: StreamName, after: int
) -> tuple[int, bytes] | None:
    """Return the number and body of the first chunk of a stream with a number above `after`.

    One short statement per chunk, so that no snapshot stays open for the whole read.
    """
    key = ChunkKey(attempt_id, process, stream, after)
    async with engine.connect() as connection:
        row = (await connection.execute(_NEXT_BODY, key._asdict())).one_or_none()
    return None if row is None else (row.seq, row.body)
