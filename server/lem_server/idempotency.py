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
from sqlalchemy.ext.asyncio import AsyncConnection

from lem_domain.errors import ProblemCode
from lem_server.problems import ProblemError

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Any text of your own, for example a UUID: sent again with the same body, nothing is created twice "
        "and the first answer is given again.",
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
