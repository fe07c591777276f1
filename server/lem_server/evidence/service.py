"""Stores evidence behind the fence, returns it unchanged, and checks that it is complete."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from uuid import UUID

from anyio import to_thread
from pydantic.types import JsonValue
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.errors import ProblemCode
from lem_domain.evidence.codec import ChunkError, ChunkTooLarge
from lem_domain.evidence.streams import StreamManifest, digest_of_digests
from lem_domain.ids import IdKind
from lem_domain.wire.runs import StreamView
from lem_domain.wire.workers import MissingChunks, ProcessCompletion
from lem_server.evidence import queries, reading
from lem_server.evidence.queries import StoredChunk
from lem_server.evidence.texts import storable, storable_text
from lem_server.evidence.validation import ChunkKey, check_chunk
from lem_server.http.problems import ProblemError, required
from lem_server.leases.fence import FencedAttempt, require_lease

MAX_MISSING_LISTED = 1000


async def put_chunk(
    engine: AsyncEngine, attempt: FencedAttempt, key: ChunkKey, body: bytes, digest: bytes
) -> tuple[bool, bool]:
    """Store a chunk byte for byte. A repetition of the same bytes is accepted, also after the lease has ended.

    Returns whether the chunk is new, and whether the attempt is to be cancelled.

    Raises:
        ProblemError: `digest_mismatch`, `chunk_conflict` (other bytes with this number), `evidence_invalid`,
            `decompression_limit`, `lease_lost`.
    """
    if hashlib.sha256(body).digest() != digest:
        raise ProblemError(
            ProblemCode.DIGEST_MISMATCH,
            "the SHA-256 of the body differs from the Content-Digest header; send it again.",
        )
    async with engine.connect() as connection:
        stored = await queries.chunk_digest(connection, key)
    if stored is None:
        # In a thread, because decoding 4 MiB blocks the event loop; before the transaction, which holds a connection.
        try:
            facts = await to_thread.run_sync(check_chunk, key.stream, body)
        except ChunkTooLarge as error:
            raise ProblemError(ProblemCode.DECOMPRESSION_LIMIT, str(error)) from error
        except ChunkError as error:
            raise ProblemError(ProblemCode.EVIDENCE_INVALID, str(error)) from error
        async with engine.begin() as connection:
            cancel = await require_lease(connection, attempt)
            if await queries.insert_chunk(connection, key, facts, sha256=digest, body=body):
                return True, cancel
            stored = await queries.chunk_digest(connection, key)
    if stored != digest:
        raise ProblemError(ProblemCode.CHUNK_CONFLICT, f"{key} is stored with other bytes and cannot be changed.")
    return False, False


async def import_chunk(connection: AsyncConnection, key: ChunkKey, body: bytes) -> str:
    """Store a chunk of an imported attempt with the checks of an upload; return its SHA-256.

    Raises:
        ChunkError: the bytes are not a chunk of this stream.
        ProblemError: `chunk_conflict` if a chunk with this number exists.
    """
    digest = hashlib.sha256(body)
    facts = await to_thread.run_sync(check_chunk, key.stream, body)
    if not await queries.insert_chunk(connection, key, facts, sha256=digest.digest(), body=body):
        raise ProblemError(ProblemCode.CHUNK_CONFLICT, f"{key} is already stored.")
    return digest.hexdigest()


async def put_log(engine: AsyncEngine, attempt: FencedAttempt, *, process: str, seq: int, content: str) -> bool:
    """Store a piece of a process's output; return whether it is new.

    Raises:
        ProblemError: `chunk_conflict`, `lease_lost`.
    """
    content = storable_text(content)
    async with engine.begin() as connection:
        stored = await queries.log_text(connection, attempt.attempt_id, process, seq)
        if stored is None:
            await require_lease(connection, attempt)
            if await queries.insert_log(connection, attempt.attempt_id, process, seq, content):
                return True
            stored = await queries.log_text(connection, attempt.attempt_id, process, seq)
    if stored != content:
        raise ProblemError(
            ProblemCode.CHUNK_CONFLICT,
            f"log piece {seq} of {process} is stored with another text and cannot be changed.",
        )
    return False


async def put_completion(
    engine: AsyncEngine, attempt: FencedAttempt, *, process: str, marker: ProcessCompletion
) -> bool:
    """Store a process's completion marker; return whether it is new.

    Raises:
        ProblemError: `conflict` (another marker is stored), `lease_lost`.
    """
    streams = [one.model_dump(mode="json") for one in marker.streams]
    completion = queries.Completion(process, streams, storable(marker.summary))
    async with engine.begin() as connection:
        stored = (await queries.completions(connection, attempt.attempt_id)).get(process)
        if stored is None:
            await require_lease(connection, attempt)
            if await queries.insert_completion(connection, attempt.attempt_id, completion):
                return True
            stored = (await queries.completions(connection, attempt.attempt_id)).get(process)
    if stored != completion:
        raise ProblemError(ProblemCode.CONFLICT, f"{process} has another completion marker, which cannot be changed.")
    return False


async def list_streams(engine: AsyncEngine, attempt_id: UUID) -> tuple[StreamView, ...]:
    """Return the stored streams of an attempt, so that its worker can resume an upload.

    Raises:
        ProblemError: `not_found`.
    """
    async with engine.connect() as connection:
        found = await connection.execute(text("SELECT 1 FROM attempts WHERE id = :id"), {"id": attempt_id})
        required(found.scalar_one_or_none(), IdKind.ATTEMPT, attempt_id)
    return await reading.streams_of(engine, attempt_id)


async def read_chunk(engine: AsyncEngine, key: ChunkKey) -> tuple[bytes, bytes]:
    """Return a chunk's original bytes and their digest.

    Raises:
        ProblemError: `not_found`, or `evidence_corrupt` if the bytes no longer match their digest.
    """
    async with engine.connect() as connection:
        found = await queries.chunk_body(connection, key)
    if found is None:
        raise ProblemError(ProblemCode.NOT_FOUND, f"{key} is not stored; GET …/streams lists the stored chunks.")
    if hashlib.sha256(found[0]).digest() != found[1]:
        raise ProblemError(ProblemCode.EVIDENCE_CORRUPT, f"{key} no longer matches its digest; restore the database.")
    return found


async def verify_manifest(
    connection: AsyncConnection, attempt_id: UUID, *, processes: Sequence[str], manifest: Sequence[StreamManifest]
) -> None:
    """Compare the stored chunks with the worker's manifest, down to counts and digests.

    Raises:
        ProblemError: `manifest_incomplete`; its member `missing` lists the chunks to send again.
    """
    done = await queries.completions(connection, attempt_id)
    without_marker = [process for process in processes if process not in done]
    if without_marker:
        raise _incomplete(
            f"{', '.join(without_marker)} sent no completion marker; PUT …/processes/<process>/completion."
        )
    ordered = groupby(await queries.stored_chunks(connection, attempt_id), lambda chunk: (chunk.process, chunk.stream))
    stored = {stream: list(chunks) for stream, chunks in ordered}
    missing = [gap for one in manifest if (gap := _missing(one, stored.get((one.process, one.stream.value), [])))]
    if missing:
        raise _incomplete(
            f"{sum(len(gap.seqs) for gap in missing)} chunks are missing; send them, then complete the attempt again.",
            missing=[gap.model_dump(mode="json") for gap in missing],
        )
    named = {(one.process, one.stream.value): one for one in manifest}
    for key, chunks in stored.items():
        one = named.get(key)
        if one is None or (len(chunks), sum(c.rows for c in chunks), sum(c.size for c in chunks)) != (
            one.chunks,
            one.rows,
            one.bytes,
        ):
            raise _incomplete(
                f"the stored chunks of {key[0]}/{key[1]} differ from the manifest; build it from GET …/streams."
            )
        if digest_of_digests(chunk.sha256.hex() for chunk in chunks) != one.sha256:
            raise _incomplete(f"the digest of {key[0]}/{key[1]} differs from that of the stored chunks in order.")


def _incomplete(detail: str, **members: JsonValue) -> ProblemError:
    return ProblemError(ProblemCode.MANIFEST_INCOMPLETE, detail, members=members)


def _missing(one: StreamManifest, chunks: Iterable[StoredChunk]) -> MissingChunks | None:
    stored = {chunk.seq for chunk in chunks}
    # A generator, because a faulty manifest may name billions of chunks.
    gaps = tuple(islice((seq for seq in range(one.chunks) if seq not in stored), MAX_MISSING_LISTED))
    return MissingChunks(process=one.process, stream=one.stream.value, seqs=gaps) if gaps else None
