"""`Idempotency-Key`: a creating request can be repeated and creates once.

The key is stored in the transaction of the creation, so that both are committed or neither is. A concurrent duplicate
waits for the commit of the first request and returns its answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated, NamedTuple
from uuid import UUID

from fastapi import Header
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from lem_domain.errors import ProblemCode
from lem_server.http.problems import ProblemError

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Any text, for example a UUID. A repetition with the same body within 7 days changes nothing and "
        "returns the first answer.",
    ),
]


class KeyedRequest(NamedTuple):
    """A request that creates something. Without a key it is never recognised as a repetition."""

    principal: UUID
    route: str
    key: str | None
    fingerprint: bytes


class Answer(NamedTuple):
    """A new answer, or the stored one of an earlier request."""

    status: int
    body: bytes
    replayed: bool


# ON CONFLICT waits for a concurrent transaction that inserted the same key; after its commit no row is inserted.
_INSERT = text("""
    INSERT INTO idempotency_keys (principal, route, key, fingerprint) VALUES (:principal, :route, :key, :fingerprint)
    ON CONFLICT (principal, route, key) DO NOTHING
""")
_SELECT = text("""
    SELECT fingerprint, status, body FROM idempotency_keys
     WHERE principal = :principal AND route = :route AND key = :key
""")
_STORE = text("""
    UPDATE idempotency_keys SET status = :status, body = :body
     WHERE principal = :principal AND route = :route AND key = :key
""")


def fingerprint(request: BaseModel) -> bytes:
    """Return a digest of a request, to detect a key that is reused for another request."""
    return hashlib.sha256(request.model_dump_json().encode() + b"\n").digest()


KEPT_DAYS = 7
"""After this time a key is forgotten and a repetition is a new request."""
_BATCH = 1000
# Index ix_idempotency_keys_created_at. SKIP LOCKED: replicas that run this at the same time delete different keys.
_FORGET = text("""
    DELETE FROM idempotency_keys
     WHERE (principal, route, key) IN (
           SELECT principal, route, key FROM idempotency_keys
            WHERE created_at < now() - CAST(:days AS integer) * interval '1 day'
            ORDER BY created_at LIMIT :most
              FOR UPDATE SKIP LOCKED)
""")


async def forget_old_keys(engine: AsyncEngine) -> int:
    """Delete keys older than `KEPT_DAYS` in short transactions; return their number."""
    forgotten = 0
    while True:
        async with engine.begin() as connection:
            removed = (await connection.execute(_FORGET, {"days": KEPT_DAYS, "most": _BATCH})).rowcount
        forgotten += removed
        if removed < _BATCH:
            return forgotten


async def run_once(
    connection: AsyncConnection,
    request: KeyedRequest,
    produce: Callable[[], Awaitable[BaseModel]],
    *,
    status: int = 200,
) -> Answer:
    """Produce an answer with this status in the caller's transaction, or return the stored answer of the same key.

    Raises:
        ProblemError: `idempotency_mismatch` if the key was used for another request.
    """
    values = request._asdict()
    if request.key is not None and (await connection.execute(_INSERT, values)).rowcount == 0:
        stored = (await connection.execute(_SELECT, values)).one()
        if stored.fingerprint != request.fingerprint:
            raise ProblemError(
                ProblemCode.IDEMPOTENCY_MISMATCH,
                "this Idempotency-Key was used for another request; send a new key.",
            )
        return Answer(stored.status, stored.body, replayed=True)
    body = (await produce()).model_dump_json().encode()
    if request.key is not None:
        await connection.execute(_STORE, {**values, "status": status, "body": body})
    return Answer(status, body, replayed=False)
