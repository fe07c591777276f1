"""SQL of tokens; the unique index on the digest serves the look-up of every request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import bindparam
from sqlalchemy.types import Text

from lem_domain.ids import IdKind
from lem_domain.wire.access import Scope, TokenCreate, TokenView
from lem_domain.wire.base import Page
from lem_server.database.rows import read_one
from lem_server.http.paging import Listing
from lem_server.http.problems import not_found

_TOKENS = Listing("tokens", TokenView, id=UUID)
_COLUMNS = "id, name, kind, scopes, created_at, expires_at, revoked_at, last_used_at"


class PresentedToken(NamedTuple):
    """A token that a request presents."""

    id: UUID
    name: str
    kind: str
    scopes: list[str]
    revoked: bool
    expired: bool


_BY_DIGEST = text("""
    SELECT id, name, kind, scopes, revoked_at IS NOT NULL AS revoked, coalesce(expires_at <= now(), false) AS expired
      FROM api_tokens WHERE sha256 = :digest
""")


async def by_digest(connection: AsyncConnection, digest: bytes) -> PresentedToken | None:
    """Return the token with this digest. Index uq_api_tokens_sha256."""
    return await read_one(connection, _BY_DIGEST, PresentedToken, digest=digest)


async def touch(connection: AsyncConnection, token_id: UUID) -> None:
    """Record the use of a token, at most once a minute, so that most requests only read."""
    await connection.execute(
        text("""
            UPDATE api_tokens SET last_used_at = now()
             WHERE id = :id AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
        """),
        {"id": token_id},
    )


_INSERT = text(f"""
    INSERT INTO api_tokens (id, name, kind, sha256, scopes, expires_at)
    VALUES (:id, :name, :kind, :digest, :scopes, now() + CAST(:days AS integer) * interval '1 day')
    RETURNING {_COLUMNS}
""").bindparams(bindparam("scopes", type_=ARRAY(Text)))  # noqa: S608 - constants only


async def insert(
    connection: AsyncConnection, token_id: UUID, request: TokenCreate, scopes: Iterable[Scope], digest: bytes
) -> TokenView:
    """Store a token's digest."""
    row = await connection.execute(
        _INSERT,
        {
            "id": token_id,
            "name": request.name,
            "kind": request.kind,
            "digest": digest,
            "scopes": list(scopes),
            "days": request.expires_in_days,
        },
    )
    return TokenView.model_validate(dict(row.mappings().one()))


_REPLACE_DIGEST = text(f"""
    UPDATE api_tokens SET sha256 = :digest WHERE id = :id AND revoked_at IS NULL RETURNING {_COLUMNS}
""")  # noqa: S608 - constants only
_LIST = text(f"""
    SELECT {_COLUMNS} FROM api_tokens WHERE CAST(:after AS uuid) IS NULL OR id > :after ORDER BY id LIMIT :limit
""")  # noqa: S608 - constants only


async def replace_digest(connection: AsyncConnection, token_id: UUID, digest: bytes) -> TokenView | None:
    """Give a token another secret; None when it was revoked or does not exist."""
    return await read_one(connection, _REPLACE_DIGEST, TokenView, id=token_id, digest=digest)


async def list_tokens(connection: AsyncConnection, *, cursor: str | None, limit: int) -> Page[TokenView]:
    """Return a page of tokens without their secrets, oldest first."""
    (after,) = _TOKENS.after(cursor, None)
    return await _TOKENS.page(connection, _LIST, limit, after=after)


async def revoke(connection: AsyncConnection, token_id: UUID) -> None:
    """Revoke a token at once and permanently.

    Raises:
        ProblemError: `not_found`.
    """
    done = await connection.execute(
        text("UPDATE api_tokens SET revoked_at = coalesce(revoked_at, now()) WHERE id = :id"), {"id": token_id}
    )
    if done.rowcount == 0:
        raise not_found(IdKind.TOKEN, token_id)
