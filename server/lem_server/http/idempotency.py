"""`Idempotency-Key`: a creating request may be sent any number of times and creates once.

The key is written in the transaction of the creation itself, so that both stand or neither does; a duplicate that comes
at the same time waits for the first one's commit and gets its answer.
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
        description="Any text of your own, for example a UUID: sent again with the same body within 7 days, nothing is "
        "done twice and the first answer is given again.",
    ),
]


class Answer(NamedTuple):
    """What is answered, now or again."""

    status: int
    body: bytes
    replayed: bool


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


def fingerprint(*models: BaseModel) -> bytes:
    """What tells whether a repeated key carries the same request."""
    whole = hashlib.sha256()
    for model in models:
        whole.update(model.model_dump_json().encode() + b"\n")
    return whole.digest()


KEPT_DAYS = 7
"""A key sent again later than this is a new request."""
_AT_ONCE = 1000
# Index ix_idempotency_keys_created_at. Replicas that do this at the same time take different keys.
_FORGET = text("""
    DELETE FROM idempotency_keys
     WHERE (principal, route, key) IN (
           SELECT principal, route, key FROM idempotency_keys
            WHERE created_at < now() - CAST(:days AS integer) * interval '1 day'
            ORDER BY created_at LIMIT :most
              FOR UPDATE SKIP LOCKED)
""")


async def forget_old_keys(engine: AsyncEngine) -> int:
    """Remove the keys that are older than they are kept, in short transactions; says how many."""
    forgotten = 0
    while True:
        async with engine.begin() as connection:
            removed = (await connection.execute(_FORGET, {"days": KEPT_DAYS, "most": _AT_ONCE})).rowcount
        forgotten += removed
        if removed < _AT_ONCE:
            return forgotten


async def run_once(
    connection: AsyncConnection,
    *,
    principal: UUID,
    route: str,
    key: str | None,
    request: bytes,
    produce: Callable[[], Awaitable[tuple[int, BaseModel]]],
) -> Answer:
    """Produce an answer inside the caller's transaction, or give the stored one of the same key again.

    `request` is the request's fingerprint. Without a key it is simply produced.

    Raises:
        ProblemError: `idempotency_mismatch` when the key was used with another request.
    """
    if key is None:
        status, model = await produce()
        return Answer(status, model.model_dump_json().encode(), replayed=False)
    place = {"principal": principal, "route": route, "key": key}
    inserted = await connection.execute(_INSERT, {**place, "fingerprint": request})
    if inserted.rowcount == 0:
        stored = (await connection.execute(_SELECT, place)).one()
        if stored.fingerprint != request:
            raise ProblemError(
                ProblemCode.IDEMPOTENCY_MISMATCH,
                "this Idempotency-Key was used with another body; send a new key for a new request.",
            )
        return Answer(stored.status, stored.body, replayed=True)
    status, model = await produce()
    body = model.model_dump_json().encode()
    await connection.execute(_STORE, {**place, "status": status, "body": body})
    return Answer(status, body, replayed=False)
